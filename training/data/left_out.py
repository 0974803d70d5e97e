"""Clips that could not be used, with reasons: one entry for each clip, folder or row, counted by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "unreadable", "unknown format", "no sequence", "stray picture", "broken link", "missing", "no caption",
    "broken",
    "no film", "too short", "too slow", "corrupt frames", "duplicate", "outside",
]  # fmt: skip
"""Why something was left out, in one or two words: what a summary counts."""


class VideoError(ValueError):
    """A clip, its caption, or a folder of clips cannot be used: callers leave it out, where a TrainingError
    ends the run. The message is one printable sentence for the user."""

    def __init__(self, message: str, kind: Kind = "broken") -> None:
        super().__init__(printable(message))
        self.kind: Kind = kind


@dataclass(frozen=True)
class LeftOut:
    """One thing that was passed over."""

    path: Path
    reason: str
    """One printable sentence."""
    kind: Kind

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))

    @classmethod
    def because(cls, path: Path, error: VideoError) -> LeftOut:
        """Text of an error about `path`."""
        return cls(path, str(error), error.kind)


def count_kinds(entries: Iterable[LeftOut]) -> str:
    """Counts by kind, the most frequent first: "3 broken, 2 too short"; "" for none."""
    counts = Counter(entry.kind for entry in entries)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def printable(text: str) -> str:
    """A text in which bytes of a file name that are no UTF-8 are written as \\udcXX: every encoder and file
    takes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def reason_of(error: OSError) -> str:
    """The system's words for a failed read, in lower case for the middle of a sentence."""
    text = error.strerror or os.strerror(error.errno) if error.errno else str(error)
    return text[:1].lower() + text[1:]
