"""Views: the clips of the store under the names and in the folders that an official scorer reads.

A view holds links to the store's files, copies where the file system links nothing, and cut copies where a
benchmark wants fewer frames. Nothing else ever lies in its folders: stray files end several scorers, and one
of them renames what it finds.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .benchmarks.base import Benchmark
from .errors import EvaluationError
from .manifest import Manifest, Record, digest
from .plan import Plan
from .scoring import Spot, view_root
from .video import read_frames, write_video

CUTS = "cuts"
LONGEST_NAME = 255
"""Bytes of a file name on the usual file systems."""


def planned_spots(plan: Plan, benchmark: Benchmark) -> list[tuple[Spot, str]]:
    """Every clip's spot and, for sentences, what the clip is."""
    return [
        (benchmark.spot(plan, arm, prompt, run, index), f"prompt {prompt.id}, clip {index}")
        for run in range(1, plan.runs + 1)
        for prompt in plan.prompts
        for index in range(prompt.samples)
        for arm in plan.all_arms()
    ]


def check_names(plan: Plan, benchmark: Benchmark, folder: Path | None = None) -> None:
    """Raises EvaluationError if two clips would have one name, or a name is too long for a file.

    folder: where the clips are laid out; names that differ in case alone are two where its file system tells
    them apart (VBench has "A fantasy landscape" and "a fantasy landscape"). Without it they are one.
    """
    taken: dict[tuple[str, str], str] = {}
    apart = folder is not None and not ignores_case(folder)
    for spot, what in planned_spots(plan, benchmark):
        size = len(spot.name.encode())
        if size > LONGEST_NAME:
            raise EvaluationError(
                f"{spot.name[:60]}... ({what}) has {size} bytes, and file names end at {LONGEST_NAME}:"
                " shorten that prompt."
            )
        name = spot.name if apart else spot.name.casefold()
        other = taken.setdefault((spot.folder, name), what)
        if other != what:
            raise EvaluationError(
                f"{what} and {other} would both be called {spot.name}, as {benchmark.title} cuts and spells"
                " names: drop one."
            )


def ignores_case(folder: Path) -> bool:
    """Whether the file system takes a name in other case for the same, asked of the nearest folder that
    exists and has a letter in its name; True where there is none."""
    for here in (folder.absolute(), *folder.absolute().parents):
        other = here.name.swapcase()
        if other != here.name and here.exists():
            return here.with_name(other).exists() and here.samefile(here.with_name(other))
    return True


def missing(plan: Plan, records: Iterable[Record]) -> list[str]:
    """Clips of the plan that do not exist, in words."""
    have = {record.key for record in records}
    return [
        f"{arm}, prompt {prompt.id}, run {run}, clip {index}"
        for run in range(1, plan.runs + 1)
        for prompt in plan.prompts
        for index in range(prompt.samples)
        for arm in plan.all_arms()
        if (arm, prompt.id, run, index) not in have
    ]


def check_clips(plan: Plan, benchmark: Benchmark, manifest: Manifest) -> None:
    """Raises EvaluationError if a clip is missing, cannot be scored, or has another frame rate or size than
    the others.
    """
    records = list(manifest.records.values())
    gone = missing(plan, records)
    if gone:
        raise EvaluationError(
            f"{len(gone)} clips are missing ({gone[0]}): run `latent-physics evaluate generate` first."
        )
    for record in records:
        objection = benchmark.objection(plan, record)
        if objection:
            raise EvaluationError(objection)
    shapes = {(round(record.fps, 3), record.width, record.height, record.frames) for record in records}
    if len(shapes) > 1:
        (fps, width, height, frames), other = sorted(shapes)[:2]
        raise EvaluationError(
            f"the clips differ: {width}x{height}, {frames} frames at {fps:g} fps and {other[1]}x{other[2]},"
            f" {other[3]} frames at"
            f" {other[0]:g} fps; arms are only comparable with one size, length and rate."
        )


def build_views(plan: Plan, benchmark: Benchmark, manifest: Manifest) -> dict[str, int]:
    """Lays the clips out; returns the number of clips by folder.

    Raises EvaluationError as `check_clips` and `check_names` do.
    """
    check_names(plan, benchmark, manifest.folder)
    check_clips(plan, benchmark, manifest)
    root = view_root(manifest.folder, benchmark.name)
    wanted: dict[str, dict[str, Path]] = defaultdict(dict)
    for record in manifest.records.values():
        spot = benchmark.spot(plan, record.arm, plan.prompt(record.prompt_id), record.run, record.index)
        wanted[spot.folder][spot.name] = cut(manifest, record, spot.frames)
    for folder, files in wanted.items():
        fill(root / folder, files)
    return {folder: len(files) for folder, files in wanted.items()}


def cut(manifest: Manifest, record: Record, frames: int) -> Path:
    """The record's file, or a copy of its first `frames` frames; the copy is made once."""
    source = manifest.file_of(record)
    if not frames or frames == record.frames:
        return source
    target = manifest.folder / CUTS / f"{record.job}-{frames}.mp4"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part.mp4")
        try:
            write_video(part, read_frames(source, frames), record.fps)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def fill(folder: Path, files: dict[str, Path]) -> None:
    """Makes `folder` hold exactly `files` (name -> source)."""
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.iterdir():
        if stray.name not in files and not stray.is_dir():
            stray.unlink()
    for name, source in files.items():
        target = folder / name
        if not same(target, source):
            link_or_copy(source, target)


def same(target: Path, source: Path) -> bool:
    """Whether `target` is a link to `source`, or a copy as old and large as it."""
    try:
        here, there = target.stat(), source.stat()
    except FileNotFoundError:
        return False
    linked = (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
    return linked or (here.st_size, int(here.st_mtime)) == (there.st_size, int(there.st_mtime))


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system or the border between two disks allows none."""
    part = target.with_name(f".{digest(target.name)}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copy2(source, part)
    os.replace(part, target)
    part.unlink(missing_ok=True)  # a rename onto another link of the same file leaves both names
