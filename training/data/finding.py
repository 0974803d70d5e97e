"""Finding clips in folders, and naming what was passed over. Nothing is decoded here."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .left_out import LeftOut, VideoError, reason_of

FILM_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".ivf", ".m1v",
        ".m2ts", ".m2v", ".m4v",
        ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv",
        ".qt", ".rm", ".rmvb",
        ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
"""Films, read by PyAV."""
ANIMATION_SUFFIXES = frozenset({".apng", ".gif", ".webp"})
"""Animations, read by Pillow."""
FRAME_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})
"""Frames of a clip that is a folder. WebP stills count too."""
UNREAD_SUFFIXES = frozenset(
    {
        ".7z", ".ari", ".avif", ".braw", ".crdownload", ".dpx", ".exr", ".heic", ".heif", ".insv", ".jxl",
        ".part", ".r3d",
        ".rar", ".swf", ".tar", ".tgz", ".zip",
    }
)  # fmt: skip
"""Pictures, films, and archives and downloads that may hold some: named where they are passed over."""
REGULAR_SHARE = 0.75
"""Least share of a sequence's steps that are the usual one; below it, numbered pictures are no frames of one
clip."""
CLEAR_MAJORITY = 4
"""A numbered sequence is the clip of its folder where it is this many times as long as all other pictures
together."""


@dataclass
class Found:
    """Clips of some folders, and what was passed over."""

    clips: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def scan(paths: Iterable[str | os.PathLike[str]], inside: Path | None = None) -> Found:
    """All clips among `paths` (clips, or folders searched to any depth), sorted by path, each once, and what
    was passed over.

    A clip is a film or animation file, or a folder whose pictures are numbered as frames are and that holds
    no film. Folders outside `inside`, reached through links, are not entered; see `leads_out` for files.
    Raises VideoError where a path does not exist or is a file of another kind.
    """
    found, seen = Found(), set()
    clips: set[Path] = set()
    for path in map(Path, paths):
        _check_exists(path)
        if os.path.isdir(path):
            _scan_folder(path, inside, seen, clips, found.left_out)
        elif path.suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES:
            clips.add(path)
        else:
            known = " ".join(sorted(FILM_SUFFIXES | ANIMATION_SUFFIXES))
            raise VideoError(
                f"{path} is not a video; files that can be read end in {known}.", "unknown format"
            )
    found.clips = sorted(clips)
    return found


def find_clips(paths: Iterable[str | os.PathLike[str]], inside: Path | None = None) -> list[Path]:
    """The clips that `scan` finds. Raises VideoError as it does, and where there is no clip at all."""
    paths = [Path(path) for path in paths]
    found = scan(paths, inside)
    if not found.clips:
        raise no_clip(paths, found.left_out)
    return found.clips


def no_clip(paths: Sequence[Path], left_out: Sequence[LeftOut] = ()) -> VideoError:
    """The error for folders without a clip."""
    where = ", ".join(str(path) for path in paths) or "(no folder given)"
    kinds = "mp4, webm, mov, mkv, gif or animated webp files, or folders of numbered PNG frames"
    also = f" {len(left_out)} left out, the first: {left_out[0].reason}" if left_out else ""
    return VideoError(f"There is no clip in {where}: put {kinds} there.{also}", "missing")


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise VideoError(f"{path} does not exist.", "missing") from error
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({reason_of(error)}).", "unreadable") from error


def _scan_folder(
    folder: Path, inside: Path | None, seen: set[Path], clips: set[Path], left_out: list[LeftOut]
) -> None:
    """Adds the clips of one folder and those below it; dot files (the resource forks macOS leaves) are not
    looked at.

    `seen` holds the folders that were looked at: one that links lead to again, perhaps from inside itself, is
    taken once.
    """
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in seen or (inside is not None and not is_inside(folder, inside)):
            continue
        seen.add(folder.resolve())
        try:
            with os.scandir(folder) as entries:
                listed = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
        except OSError as error:
            left_out.append(
                LeftOut(folder, f"{folder.name} cannot be read ({reason_of(error)}).", "unreadable")
            )
            continue
        files = [Path(entry.path) for entry in listed if _is(entry.is_file)]
        waiting += [Path(entry.path) for entry in reversed(listed) if _is(entry.is_dir)]
        links = [
            Path(entry.path)
            for entry in listed
            if entry.is_symlink() and not _is(entry.is_file) and not _is(entry.is_dir)
        ]
        clips.update(_clips_of(folder, files, left_out))
        left_out.extend(_passed_over(folder, files, links))


def _is(kind: Callable[[], bool]) -> bool:
    """`entry.is_file` or `entry.is_dir`; False for a link into a folder that may not be entered."""
    try:
        return kind()
    except OSError:
        return False


def _clips_of(folder: Path, files: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """The clips that the files of one folder make."""
    films = [path for path in files if path.suffix.lower() in FILM_SUFFIXES]
    animations = [path for path in files if path.suffix.lower() in ANIMATION_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    stills = [path for path in animations if is_still(path)] if animations and not films else []
    animations = [path for path in animations if path not in set(stills)]
    pictures = sorted([*pictures, *stills])
    if not films and not animations and len(pictures) > 1:
        try:
            sequence = choose_sequence(folder, pictures)
        except VideoError as error:
            left_out.append(LeftOut.because(folder, error))
            return []
        strays = sorted(set(pictures) - set(sequence))
        message = f"is no frame of the sequence in {folder.name}."
        left_out += [LeftOut(path, f"{path.name} {message}", "stray picture") for path in strays]
        return [folder]
    thumbnails = {path.stem for path in [*films, *animations]}
    odd = [path for path in pictures if path.stem not in thumbnails]
    if odd:
        which = f"{odd[0].name} is a single picture" if len(odd) == 1 else f"{len(odd)} pictures"
        beside = ", beside films" if films or animations else ""
        left_out.append(LeftOut(folder, f"{which} in {folder.name}{beside}: no clip.", "stray picture"))
    return films + animations


def _passed_over(folder: Path, files: Sequence[Path], links: Sequence[Path]) -> Iterator[LeftOut]:
    """Files that a person may have taken for clips: one entry for each format, and for each link that leads
    nowhere."""
    counts: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.suffix.lower() in UNREAD_SUFFIXES:
            counts[path.suffix.lower()].append(path)
    for suffix, paths in counts.items():
        which = paths[0].name if len(paths) == 1 else f"{len(paths)} {suffix} files in {folder.name}"
        reason = f"{which}: {suffix} is not a format that is read; unpack or convert to mp4."
        yield LeftOut(paths[0] if len(paths) == 1 else folder, reason, "unknown format")
    for path in links:
        if path.suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES | FRAME_SUFFIXES or not path.suffix:
            yield LeftOut(path, f"{path.name} is a link that leads nowhere.", "broken link")


def is_still(path: Path) -> bool:
    """Whether an animation's file holds one picture only; False where that cannot be told."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return not getattr(image, "is_animated", False)
    except Exception:  # a broken file is no still; decoding will say what is wrong with it
        return False


# --- folders of frames --------------------------------------------------------------------------------------


def frame_files(folder: Path) -> list[Path]:
    """A folder's frames in counting order: frame_2 before frame_10. Raises VideoError where its pictures are
    no sequence."""
    try:
        with os.scandir(folder) as entries:
            files = [
                Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_file()
            ]
    except OSError as error:
        raise VideoError(f"{folder.name} cannot be read ({reason_of(error)}).", "unreadable") from error
    pictures = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    return choose_sequence(
        folder, pictures + [path for path in files if path.suffix.lower() == ".webp" and is_still(path)]
    )


def choose_sequence(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    """The pictures that are numbered as frames are, in counting order.

    Frames share their name but for one number that grows in even steps, with few gaps. Pictures that belong
    to no sequence are left aside where one sequence is clearly the folder's content. Raises VideoError where
    none is.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        groups[re.sub(r"\d+", "#", path.name.lower())].append(path)
    counts = sorted((len(group) for group in groups.values()), reverse=True)
    longest = max(groups.values(), key=len, default=[])
    if len(longest) < 2 or (len(groups) > 1 and counts[0] < CLEAR_MAJORITY * sum(counts[1:])):
        example = f", such as {pictures[0].name} and {pictures[1].name}" if len(pictures) > 1 else ""
        raise VideoError(
            f"{folder.name}: its {len(pictures)} pictures{example} are not one numbered sequence; give each "
            f"clip a folder of its "
            "own, with frames named frame_0001.png, frame_0002.png and so on.",
            "no sequence",
        )
    return _in_order(folder, longest)


def _in_order(folder: Path, frames: Sequence[Path]) -> list[Path]:
    """Names that differ in numbers only, by the number that grows evenly. Raises VideoError where none
    does."""
    rows = [_numbers(path) for path in frames]
    for place in range(len(rows[0])):
        ordered = sorted(zip([row[place] for row in rows], frames))
        steps = [after - before for (before, _), (after, _) in itertools.pairwise(ordered)]
        if min(steps) > 0 and steps.count(min(steps)) >= REGULAR_SHARE * len(steps):
            return [path for _, path in ordered]
    message = f"the numbers of its {len(frames)} pictures do not grow in even steps: no frames of one clip."
    raise VideoError(f"{folder.name}: {message}", "no sequence")


def frames_after_gaps(frames: Sequence[Path]) -> set[Path]:
    """The frames of a sequence in counting order before which others are missing: a jump that no camera
    saw."""
    rows = [_numbers(path) for path in frames]
    pairs = list(itertools.pairwise(rows))
    place = next(
        place for place in range(len(rows[0])) if all(after[place] > before[place] for before, after in pairs)
    )
    steps = [after[place] - before[place] for before, after in pairs]
    return {frame for frame, step in zip(frames[1:], steps) if step > min(steps)}


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.name)]


# --- links --------------------------------------------------------------------------------------------------


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, all links followed, lies in `folder` or is it. False where links go round in a
    circle."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
