"""Reading clips: finding them in folders, decoding them frame by frame, cutting them to the size and length a
VAE takes."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pkgutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...encoders.need import read_file, sample_file
from ...methods.video_models import FramesRule
from .captions import caption_file, caption_of
from .decoding import Frame, decode
from .finding import find_clips, frame_files, is_inside, scan
from .left_out import LeftOut, VideoError, reason_of
from .masks import mask_pixels, with_masks

__all__ = [
    "LeftOut", "VideoError", "Window", "caption_file", "caption_of", "content_hash", "decode", "find_clips",
    "fit", "frame_files",
    "is_inside", "leads_out", "sampled_hash", "scan", "template_clips", "template_folders", "thin",
    "windows",
]  # fmt: skip

Timed = TypeVar("Timed", bound=tuple)
TEMPLATE_PACKAGES = "comfyui_workflow_templates_media_"


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of a clip, cut to size."""

    frames: np.ndarray
    """`T H W 3`, uint8."""
    index: int
    """Number of the window within its clip, from 0."""
    last: bool
    """Whether no further window of this clip follows."""
    start: float
    """Time of the first frame in the clip, seconds."""
    fps: float
    """Frames per second after thinning; 0 where the clip does not say (a folder of frames)."""
    source_size: tuple[int, int] = (0, 0)
    """Width and height of the clip as it is shown, before the window is cut to size."""
    start_frame: int = 0
    """Number of the first frame in the clip, after thinning."""
    corrupt: int = 0
    """Number of the clip's windows passed over so far because a frame is corrupt, or frames are
    missing."""
    cuts: tuple[int, ...] = ()
    """Numbers of the clip's frames, after thinning, with which new scenes begin: no window spans one."""
    mask: np.ndarray | None = None
    """The clip's mask, `T H W` uint8."""


def leads_out(clip: Path, folder: Path) -> Path | None:
    """The first of the files read for a clip (itself or its frames, and its caption) that lies outside
    `folder`, all links followed; None where all of them lie inside. Raises VideoError where a folder of
    frames cannot be listed."""
    files = [clip, caption_file(clip), *(frame_files(clip) if clip.is_dir() else [])]
    return next((file for file in files if not is_inside(file, folder)), None)


def content_hash(clip: Path) -> str:
    """A 32-digit hash of everything that the clip's files hold; frames count with their names.

    Raises VideoError where a file cannot be read.
    """
    return _hash(clip, whole=True)


def sampled_hash(clip: Path) -> str:
    """A 32-digit hash of the length and the first and last MiB of each file: `content_hash` where no file is
    longer than that.

    It tells weights apart, whose header lists every tensor, and finds candidates among films without reading
    terabytes. Raises VideoError where a file cannot be read.
    """
    return _hash(clip, whole=False)


def _hash(clip: Path, whole: bool) -> str:
    digest = hashlib.blake2b(digest_size=16)
    read = read_file if whole else sample_file
    try:
        for path in frame_files(clip) if clip.is_dir() else [clip]:
            read(digest, path, path.name if clip.is_dir() else "")
    except OSError as error:
        raise VideoError(f"{clip.name} cannot be read ({reason_of(error)}).", "unreadable") from error
    return digest.hexdigest()


def thin(frames: Iterable[Timed], fps: float) -> Iterator[Timed]:
    """Drops frames, tuples whose first entry is their time, so that at most `fps` per second remain; 0 keeps
    all.

    Frames are never doubled: a doubled frame would be a moment without motion that the camera never saw.
    """
    if fps <= 0:
        yield from frames
        return
    step, due = 1 / fps, None
    for frame in frames:
        time = frame[0]
        if time is None or due is None or time >= due - 0.01 * step:
            yield frame
            if time is not None:
                due = time + step if due is None else max(due + step, time)


def fit(frame: np.ndarray, width: int, height: int, aspect: float = 1.0) -> np.ndarray:
    """Centre crop to the proportions of `width` x `height`, then resize: `H W 3` uint8 -> `height width 3`
    uint8.

    `aspect`: width of the frame's pixels over their height; one resampling squares and resizes them.
    """
    if frame.shape[:2] == (height, width) and aspect == 1.0:
        return np.ascontiguousarray(frame)
    from PIL import Image

    tall, wide = frame.shape[:2]
    wanted = width / height / aspect  # in stored pixels
    crop_wide, crop_tall = (tall * wanted, tall) if wide / tall >= wanted else (wide, wide / wanted)
    left, top = (wide - crop_wide) / 2, (tall - crop_tall) / 2
    box = (left, top, left + crop_wide, top + crop_tall)
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(frame)).resize(
            (width, height), Image.Resampling.LANCZOS, box=box
        )
    )


def windows(
    clip: Path,
    *,
    frames: int,
    width: int,
    height: int,
    fps: float = 0,
    limit: int = 1,
    stride: int | None = None,
    starts: Sequence[int] | None = None,
    allow_short: FramesRule | None = None,
    cuts: Collection[int] = (),
    sizes: Sequence[tuple[int, int]] = (),
    mask: Path | None = None,
) -> Iterator[Window]:
    """Cuts a clip into windows of `frames` frames; at most `limit` of them, 0 for as many as there are.

    They are consecutive, or begin `stride` frames after one another, or with the frames of the numbers
    `starts` (ascending, after thinning). `allow_short` is the VAE's rule where a clip shorter than `frames`
    may be cut to the longest length that fits it instead of being refused. Decoding stops as soon as enough
    frames have been seen. Windows with corrupt or missing frames are passed over. Raises VideoError where the
    clip is broken or too short, after the windows that are whole.

    `cuts`: numbers of the frames, after thinning, with which new scenes begin; no window spans one. `sizes`:
    further widths and heights; a clip gets that one of all whose proportions are nearest to its own. `mask`:
    a film or picture that is cut as the clip is.
    """
    taking = _Taking(clip, frames, limit, tuple(sorted(cuts)), stride, starts)
    try:
        for number, frame in enumerate(thin(with_masks(clip, mask), fps)):
            taking.see(number, frame)
            if number < taking.begin:
                continue
            picture = frame.picture()
            shown = picture.shape[1] * frame.aspect
            if sizes and not any(taking.size):
                width, height = nearest_size(shown / picture.shape[0], [(width, height), *sizes])
            taking.size = (round(shown), picture.shape[0])
            fitted = partial(fit, width=width, height=height)
            pixels = fitted(picture, aspect=frame.aspect), mask_pixels(clip, frame, taking.size, fitted)
            if (window := taking.add(frame, *pixels)) is not None:
                yield window
            if taking.full:
                break
    except VideoError as error:
        if taking.ready is None:
            raise
        yield taking.last()
        kept = f"{taking.count} windows of {frames} frames, which are kept"
        message = f"{clip.name} breaks off after {kept} ({error})"
        raise VideoError(message, error.kind) from error
    if taking.ready is None:
        taking.cut_short(allow_short)
    yield taking.last()


def nearest_size(aspect: float, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of several widths and heights the one whose proportions are nearest to `aspect`, width over height: the
    one that crops least."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))


class _Taking:
    """Frames on their way into windows. A window is held back until it is known whether it is the clip's
    last."""

    def __init__(
        self,
        clip: Path,
        frames: int,
        limit: int,
        cuts: tuple[int, ...] = (),
        stride: int | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        self.clip, self.frames, self.limit, self.cuts = clip, frames, limit, cuts
        self.stride, self.starts = stride or frames, starts
        self.begin = self._place(0)
        """Number of the frame with which the next window begins; infinite where none does."""
        self.held: list[tuple[Frame, np.ndarray, np.ndarray | None]] = []
        self.size = (0, 0)
        self.count = self.corrupt = 0
        self.ready: Window | None = None

    @property
    def full(self) -> bool:
        """Whether no further window is wanted."""
        return self.limit > 0 and self.count == self.limit

    @property
    def damaged(self) -> bool:
        """Whether the decoder marked one of the frames at hand as corrupt."""
        return any(frame.damaged for frame, *_ in self.held)

    def _place(self, number: int) -> float:
        """The first frame, from this one on, with which a window may begin."""
        if self.starts is None:
            return number
        return next((start for start in self.starts if start >= number), math.inf)

    def see(self, number: int, frame: Frame) -> None:
        """Notes what a frame says of those before it: none of them goes into a window with it where frames
        are missing between, or a scene begins with it."""
        if frame.jump or number in self.cuts:
            self.corrupt += frame.jump and bool(self.held)
            self.held, self.begin = [], self._place(number)

    def add(self, frame: Frame, pixels: np.ndarray, mask: np.ndarray | None = None) -> Window | None:
        """Takes one frame, from `begin` on; returns the window before the one that this frame completes, if
        both are there."""
        self.held.append((frame, pixels, mask))
        if len(self.held) < self.frames:
            return None
        before = self.ready
        if self.damaged:
            self.corrupt += 1
            before = None
        else:
            self._make(self.frames)
        following = self._place(int(self.begin) + (self.stride if self.starts is None else 1))
        del self.held[: int(min(following - self.begin, self.frames))]
        self.begin = following
        return before

    def _make(self, length: int) -> None:
        times = [frame.time for frame, *_ in self.held]
        _, pixels, masks = zip(*self.held[:length])
        self.ready = Window(
            frames=np.stack(pixels), mask=None if masks[0] is None else np.stack(masks),
            index=self.count, last=False,
            start=times[0] or 0.0, start_frame=int(self.begin), fps=_rate(times),
            source_size=self.size, corrupt=self.corrupt, cuts=self.cuts,
        )  # fmt: skip
        self.count += 1

    def cut_short(self, rule: FramesRule | None) -> None:
        """Makes the only window of a clip that is shorter than one. Raises VideoError where that may not or
        cannot be."""
        name, length = self.clip.name, len(self.held)
        if self.corrupt or self.damaged:
            raise VideoError(
                f"{name}: frames are corrupt or missing in every window of {self.frames}.", "corrupt frames"
            )
        short = rule.longest(length) if rule else 0
        if not short:
            raise VideoError(f"{name} has {length} frames, {self.frames} are needed.", "too short")
        self._make(short)

    def last(self) -> Window:
        """The window at hand, which is the clip's last."""
        assert self.ready is not None
        return replace(self.ready, last=True, corrupt=self.corrupt)


def _rate(times: list[float | None]) -> float:
    """Mean frame rate over a window's frame times, 0 where unknown."""
    if len(times) < 2 or times[0] is None or times[-1] is None or times[-1] <= times[0]:
        return 0.0
    return round((len(times) - 1) / (times[-1] - times[0]), 3)


def template_clips(match: str = "*") -> list[Path]:
    """The animated .webp clips that ComfyUI's own template packages install, by name; [] where they are not
    installed.

    `match` is a glob over file names, for example "*wan*". The packages are looked up, never imported.
    """
    from PIL import Image

    clips = []
    for folder in template_folders():
        for path in folder.rglob("*.webp"):
            if not path.match(match):
                continue
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    clips.append(path)
    return sorted(clips, key=lambda path: (path.name, str(path)))


def template_folders() -> Iterator[Path]:
    """Folders of ComfyUI's installed template packages, which are looked up and never imported."""
    for module in pkgutil.iter_modules():
        spec = importlib.util.find_spec(module.name) if module.name.startswith(TEMPLATE_PACKAGES) else None
        yield from map(Path, spec.submodule_search_locations or [] if spec else [])
