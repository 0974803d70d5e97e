"""Reading clips: finding them in folders, decoding them frame by frame, cutting them to the size and length a VAE takes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...encoders.need import sample_file

FILM_SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".m4v", ".avi"}
ANIMATION_SUFFIXES = {".gif", ".webp"}
FRAME_SUFFIXES = {".png", ".jpg", ".jpeg"}
TEMPLATE_PACKAGES = "comfyui_workflow_templates_media_"


class VideoError(ValueError):
    """A clip, or a folder of clips, cannot be used. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of a clip, cut to size."""

    frames: np.ndarray
    """`T H W 3`, uint8."""
    index: int
    """Which window of its clip this is, from 0."""
    last: bool
    """Whether no further window of this clip follows."""
    start: float
    """Time of the first frame in the clip, seconds."""
    fps: float
    """Frames per second after thinning; 0 where the clip does not say (a folder of frames)."""


def find_clips(paths: Iterable[str | os.PathLike[str]], inside: Path | None = None) -> list[Path]:
    """All clips among `paths` (clips, or folders searched to any depth), sorted by path, each once.

    A clip is a film or animation file, or a folder that directly holds at least two PNG or JPEG frames and no film. Folders that
    lie outside `inside`, reached through links, are not entered; see `leads_out` for files.
    Raises VideoError where a path does not exist, is a file of another kind, or where there is no clip at all.
    """
    paths = [Path(path) for path in paths]
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise VideoError(f"{path} does not exist.")
        if path.is_dir():
            found.update(_clips_in(path, set(), inside))
        elif path.suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES:
            found.add(path)
        else:
            known = " ".join(sorted(FILM_SUFFIXES | ANIMATION_SUFFIXES))
            raise VideoError(f"{path} is not a video; files that can be read end in {known}.")
    if not found:
        where = ", ".join(str(path) for path in paths) or "(no folder given)"
        kinds = "mp4, webm, mov, mkv, gif or animated webp files, or folders of PNG frames"
        raise VideoError(f"There is no clip in {where}: put {kinds} there.")
    return sorted(found)


def _clips_in(folder: Path, seen: set[Path], inside: Path | None = None) -> Iterator[Path]:
    """Clips of one folder and those below it; dot files (the resource forks macOS leaves) are not looked at.

    `seen` holds the folders that were looked at: one that links lead to again, perhaps from inside itself, is taken once.
    """
    if folder.resolve() in seen or (inside is not None and not is_inside(folder, inside)):
        return
    seen.add(folder.resolve())
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    films = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES]
    yield from films
    if not films and sum(entry.suffix.lower() in FRAME_SUFFIXES for entry in entries if entry.is_file()) >= 2:
        yield folder
    for entry in entries:
        if entry.is_dir():
            yield from _clips_in(entry, seen, inside)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, all links followed, lies in `folder` or is it. False where links go round in a circle."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


def leads_out(clip: Path, folder: Path) -> Path | None:
    """The first of the files read for a clip (itself or its frames, and its caption) that lies outside `folder`, all links
    followed; None where all of them lie inside."""
    files = [clip, caption_file(clip), *(frame_files(clip) if clip.is_dir() else [])]
    return next((file for file in files if not is_inside(file, folder)), None)


def caption_file(clip: Path) -> Path:
    """Where a clip's caption lies, if it has one: beside it, under the same name."""
    return clip.with_name(clip.name + ".txt") if clip.is_dir() else clip.with_suffix(".txt")


def caption_of(clip: Path) -> tuple[str, str]:
    """The clip's caption and where it came from: "file" (same name, .txt) or "name" (the file's own name, made readable).

    Raises VideoError where the .txt is empty or not UTF-8.
    """
    beside = caption_file(clip)
    if not beside.is_file():
        name = clip.stem if clip.is_file() else clip.name
        return re.sub(r"[\s_\-.]+", " ", name).strip(), "name"
    try:
        caption = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise VideoError(f"{beside.name} is not UTF-8 text.") from error
    if not caption:
        raise VideoError(f"{beside.name} is empty; write the caption into it, or delete it to use the file's name.")
    return caption, "file"


def content_hash(clip: Path) -> str:
    """A 32-digit hash of what the clip holds: of the length and the first and last MiB of each file.

    Whole files are not read because a resumed run would otherwise read terabytes to find out that it has nothing to do.
    Raises VideoError where a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in frame_files(clip) if clip.is_dir() else [clip]:
            sample_file(digest, path, path.name if clip.is_dir() else "")
    except OSError as error:
        raise VideoError(f"{clip.name} cannot be read ({error.strerror or error}).") from error
    return digest.hexdigest()


def frame_files(folder: Path) -> list[Path]:
    """A folder's frames in counting order: frame_2 before frame_10."""

    def key(path: Path) -> list[tuple[int, int | str]]:
        return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name.lower())]

    names = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted((path for path in names if path.suffix.lower() in FRAME_SUFFIXES), key=key)


def decode(clip: Path) -> Iterator[tuple[float | None, np.ndarray]]:
    """Yields (time in seconds, frame `H W 3` uint8) in order; the time is None for a folder of frames.

    Phone films come out upright, transparent animations on white. Raises VideoError where the clip cannot be decoded.
    """
    if clip.is_dir():
        frames = _decode_folder(clip)
    elif clip.suffix.lower() in ANIMATION_SUFFIXES:
        frames = _decode_animation(clip)
    else:
        frames = _decode_film(clip)
    try:
        yield from frames
    except VideoError:
        raise
    except ImportError as error:
        raise VideoError(f"{clip.name} cannot be decoded without {error.name}: pip install 'imageio[pyav]' pillow.") from error
    except Exception as error:  # decoders raise a dozen types of their own; every one of them means: this clip is broken
        raise VideoError(f"{clip.name} cannot be decoded ({type(error).__name__}: {error}).") from error


def _decode_film(clip: Path) -> Iterator[tuple[float, np.ndarray]]:
    import av

    with av.open(str(clip)) as container:
        if not container.streams.video:
            raise VideoError(f"{clip.name} has no picture track.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        for count, frame in enumerate(container.decode(stream)):
            time = frame.time if frame.time is not None else (count / rate if rate else float(count))
            picture = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4
            yield time, np.rot90(picture, turns) if turns else picture


def _decode_animation(clip: Path) -> Iterator[tuple[float, np.ndarray]]:
    from PIL import Image, ImageSequence

    with Image.open(clip) as image:
        if getattr(image, "n_frames", 1) < 2:
            raise VideoError(f"{clip.name} is a still image.")
        milliseconds = 0  # summed as whole numbers, so that cutting a clip again finds the same times
        for frame in ImageSequence.Iterator(image):
            frame.load()
            picture = frame
            if frame.mode in ("RGBA", "LA", "PA") or "transparency" in frame.info:
                rgba = frame.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            yield milliseconds / 1000, np.asarray(picture.convert("RGB"))
            milliseconds += round(frame.info.get("duration") or 100)  # a duration of 0 is shown as 100 ms by browsers


def _decode_folder(clip: Path) -> Iterator[tuple[None, np.ndarray]]:
    from PIL import Image

    size = None
    for path in frame_files(clip):
        with Image.open(path) as image:
            size = size or image.size
            if image.size != size:
                sizes = [f"{width}x{height}" for width, height in (image.size, size)]
                raise VideoError(f"{clip.name}: {path.name} is {sizes[0]}, the frames before it are {sizes[1]}.")
            yield None, np.asarray(image.convert("RGB"))


def thin(frames: Iterable[tuple[float | None, np.ndarray]], fps: float) -> Iterator[tuple[float | None, np.ndarray]]:
    """Drops frames so that at most `fps` per second remain; 0 keeps all.

    Frames are never doubled: a doubled frame would be a moment without motion that the camera never saw.
    """
    if fps <= 0:
        yield from frames
        return
    step, due = 1 / fps, None
    for time, frame in frames:
        if time is None or due is None or time >= due - 0.01 * step:
            yield time, frame
            if time is not None:
                due = time + step if due is None else max(due + step, time)


def fit(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """Centre crop to the aspect of `width` x `height`, then resize: `H W 3` uint8 -> `height width 3` uint8."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), method=Image.Resampling.LANCZOS))


def windows(
    clip: Path, *, frames: int, width: int, height: int, fps: float = 0, limit: int = 1, allow_short: int = 0
) -> Iterator[Window]:
    """Cuts a clip into consecutive windows of `frames` frames; at most `limit` of them, 0 for as many as there are.

    `allow_short` is the VAE's temporal stride s where a clip shorter than `frames` may be cut to the largest s n + 1 (n >= 1)
    instead of being refused; 0 refuses it. Decoding stops as soon as enough frames have been seen.
    Raises VideoError where the clip is broken or too short.
    """
    held: list[np.ndarray] = []
    times: list[float | None] = []
    ready: Window | None = None
    count = 0
    for time, frame in thin(decode(clip), fps):
        held.append(fit(frame, width, height))
        times.append(time)
        if len(held) == frames:
            if ready is not None:
                yield ready
            last = limit > 0 and count + 1 == limit
            ready = Window(frames=np.stack(held), index=count, last=last, start=times[0] or 0.0, fps=_rate(times))
            held, times, count = [], [], count + 1
            if last:
                break
    if ready is None:
        length = len(held)
        short = (length - 1) // allow_short * allow_short + 1 if allow_short and length else 0
        if short <= 1:
            raise VideoError(f"{clip.name} has {length} frames, {frames} are needed.")
        ready = Window(frames=np.stack(held[:short]), index=0, last=True, start=times[0] or 0.0, fps=_rate(times))
    yield ready if ready.last else Window(**{**ready.__dict__, "last": True})


def _rate(times: list[float | None]) -> float:
    """Mean frame rate over a window's frame times, 0 where unknown."""
    if len(times) < 2 or times[0] is None or times[-1] is None or times[-1] <= times[0]:
        return 0.0
    return round((len(times) - 1) / (times[-1] - times[0]), 3)


def template_clips(match: str = "*") -> list[Path]:
    """The animated .webp clips that ComfyUI's own template packages install, by name; [] where they are not installed.

    `match` is a glob over file names, for example "*wan*". The packages are looked up, never imported.
    """
    from PIL import Image

    clips = []
    for module in pkgutil.iter_modules():
        if not module.name.startswith(TEMPLATE_PACKAGES):
            continue
        spec = importlib.util.find_spec(module.name)
        for folder in spec.submodule_search_locations or [] if spec else []:
            for path in Path(folder).rglob("*.webp"):
                if not path.match(match):
                    continue
                with Image.open(path) as image:
                    if getattr(image, "n_frames", 1) > 1:
                        clips.append(path)
    return sorted(clips, key=lambda path: (path.name, str(path)))
