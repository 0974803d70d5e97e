"""Report of the cache command, on the screen and in the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...methods.weights import write_atomically
from ..console import TrainingError, saving
from .format import CacheConfig
from .left_out import LeftOut, count_kinds, printable

SHOWN = 10
"""Number of reasons on the screen; the file has all."""
SKIPPED_FILE = "skipped.txt"


@dataclass(kw_only=True)
class CacheReport:
    """Result of a run of `cache_clips`."""

    written: list[Path] = field(default_factory=list)
    """Files written by this run."""
    finished_before: int = 0
    """Clips that were already cached."""
    same: list[tuple[Path, Path]] = field(default_factory=list)
    """(clip, the clip with the same content that was taken instead)."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Clips, folders and rows of a list that could not be used."""
    corrupt_windows: int = 0
    """Windows passed over inside clips that are otherwise cached: a frame is corrupt, or frames are
    missing."""
    cut_captions: int | None = 0
    """Number of captions longer than the text encoder reads; None where it does not say."""
    elsewhere: int = 0
    """Number of clips that other processes of the same launch cache."""
    stopped: bool = False
    """Whether the user stopped it."""

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """(path, reason) of what could not be used."""
        return [(entry.path, entry.reason) for entry in self.left_out]


def write_skipped(out: Path, left_out: Sequence[LeftOut], process: int = 0) -> None:
    """Leaves skipped.txt in the folder: path, kind with its number and count, and reason, one line each; no
    file where nothing was left out. The second process of a launch leaves skipped_1.txt, and so on."""
    path = out / (f"skipped_{process}.txt" if process else SKIPPED_FILE)
    if not left_out:
        path.unlink(missing_ok=True)
        return
    counts, numbers, lines = Counter(entry.kind for entry in left_out), Counter[str](), []
    for entry in sorted(left_out, key=lambda entry: entry.kind):
        numbers[entry.kind] += 1
        place = f"{entry.kind} {numbers[entry.kind]}/{counts[entry.kind]}"
        lines.append(printable(f"{entry.path}\t{place}\t{entry.reason}\n"))
    with saving(path.name, "the cached clips are safe"):
        write_atomically(path, "".join(lines).encode())


def left_out_lines(left_out: Sequence[LeftOut]) -> Iterable[str]:
    """The count by kind and the first reasons, a line each."""
    if left_out:
        yield f"{len(left_out)} left out: {count_kinds(left_out)}"
        yield from (f"  {entry.reason}" for entry in left_out[:SHOWN])
        if len(left_out) > SHOWN:
            yield f"  and {len(left_out) - SHOWN} more"


def summarise(report: CacheReport, config: CacheConfig) -> int:
    """Prints what was done; returns the exit status. Raises TrainingError where no clip could be used."""
    for clip, taken in report.same[:5]:
        print(printable(f"duplicate: {clip.name} has the same content as {taken.name}; kept {taken.name}."))
    if report.left_out:
        print(f"{len(report.left_out)} clips were skipped (all of them in {config.out / SKIPPED_FILE}):")
        print("\n".join(left_out_lines(report.left_out)))
    if report.corrupt_windows:
        print(f"{report.corrupt_windows} windows with corrupt or missing frames were passed over.")
    if report.cut_captions:
        print(f"{report.cut_captions} captions are longer than the text encoder reads; their ends were cut.")
    there = len(report.written) + report.finished_before
    if report.stopped:
        print(
            f"Stopped: {len(report.written)} files written to {config.out}; run the same command to resume."
        )
        return 130
    if not there and report.elsewhere:
        print(f"Cached: nothing here; other processes cache the other {report.elsewhere} clips.")
        return 0
    if not there:
        raise TrainingError(
            f"none of the {len(report.left_out)} clips could be used; the first: {report.left_out[0].reason}"
        )
    print(
        f"Cached: {len(report.written)} files written to {config.out}, {report.finished_before} clips were "
        f"there before."
    )
    return 0
