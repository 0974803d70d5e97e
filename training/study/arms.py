"""Arms of a comparison: how each makes its clips, its row of one table, and paired differences between
arms.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...methods.step import Correction
from ...methods.weights import write_atomically
from ...toyworld.statistics import paired_difference, standard_error

SCORES = ("law", "adherence", "dynamic_degree")
HEAD = (
    "model | parameters | steps | min | law | less base | adherence | less base | "
    "dynamic degree | less base | s/clip"
)

Found = dict[str, list[float]]
"""Per score, the values of the clips."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table: how its clips are made."""

    title: str
    corrections: Callable[[slice], list[Correction]]
    """The corrections for a slice of the prompts."""
    size: str = ""
    """Number of the adapter's parameters."""
    steps: str = ""
    """Number of training steps."""
    minutes: str = ""
    """Duration of the training."""


def line_of(arm: Arm, found: Found, base: Found | None, prompts: list[str], seconds: float) -> str:
    """A row of the table."""
    cells = []
    for name in SCORES:
        mean = sum(found[name]) / len(found[name])
        cells.append(f"{mean:.3f} ± {standard_error(found[name], prompts):.3f}")
        cells.append("" if base is None else str(paired_difference(found[name], base[name], prompts)))
    return f"| {' | '.join([arm.title, arm.size, arm.steps, arm.minutes, *cells, f'{seconds:.2f}'])} |"


def print_pairs(results: dict[str, Found], prompts: list[str]) -> None:
    """The first adapter less each other one, which the intervals against the base model do not give."""
    titles = [title for title in results if title != "base" and "LaMo" not in title]
    means = [title for title in titles if "mean of" in title]
    first, *others = means or titles or [""]
    for other in others:
        gains = (paired_difference(results[first][name], results[other][name], prompts) for name in SCORES)
        words = (f"{name.replace('_', ' ')} {gain}" for name, gain in zip(SCORES, gains))
        print(f"{first} less {other}: {', '.join(words)}")


def write_scores(path: Path, results: dict[str, Found], worlds: list[str], prompts: list[str]) -> None:
    """A CSV with a line per model and clip. Raises OSError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "clip", "world", "prompt", *SCORES])
    for title, found in results.items():
        rows = zip(worlds, prompts, *(found[name] for name in SCORES))
        table.writerows([title, index, *row] for index, row in enumerate(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
