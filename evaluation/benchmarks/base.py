"""The interface of every benchmark module: prompts, names of files, checks, the scorer's commands, and a
reader of its results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import read_csv, read_lines
from ..manifest import Record
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of a benchmark's table."""

    key: str
    title: str
    scale: float = 100.0
    """Factor from the value to what is printed: papers print percent."""
    digits: int = 1
    """Decimals printed."""
    rising: bool = True
    """Whether higher is better."""


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Numbers of one clip; nan for what does not count."""

    arm: str
    prompt_id: str
    run: int
    index: int
    values: Mapping[str, float]


@dataclass(kw_only=True)
class Reading:
    """Findings of a scorer."""

    columns: tuple[Column, ...]
    clips: list[ClipScore] = field(default_factory=list)
    totals: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    """Numbers of a whole run that are no mean over clips, by arm and run."""
    notes: list[str] = field(default_factory=list)
    """Sentences printed below the table."""

    def runs(self, arm: str) -> list[int]:
        """Runs of an arm that have any number."""
        found = {clip.run for clip in self.clips if clip.arm == arm}
        return sorted(found | {run for name, run in self.totals if name == arm})

    def arms(self) -> list[str]:
        """Arms that have any number."""
        return list(dict.fromkeys([clip.arm for clip in self.clips] + [arm for arm, _ in self.totals]))

    def of_run(self, arm: str, run: int, key: str) -> float:
        """A column's value in one run: the run's total, or the mean over the clips that count; nan if there
        is none.
        """
        if key in self.totals.get((arm, run), {}):
            return self.totals[arm, run][key]
        values = [clip.values.get(key, NAN) for clip in self.clips if (clip.arm, clip.run) == (arm, run)]
        counted = [value for value in values if not math.isnan(value)]
        return sum(counted) / len(counted) if counted else NAN

    def paired(self, arm: str, reference: str, key: str) -> tuple[list[float], list[float], list[str]]:
        """Values of two arms and the prompt of each pair, for the clips that count in both."""
        other = {
            (clip.prompt_id, clip.run, clip.index): clip.values.get(key, NAN)
            for clip in self.clips
            if clip.arm == reference
        }
        pairs = [
            (
                clip.values.get(key, NAN),
                other.get((clip.prompt_id, clip.run, clip.index), NAN),
                clip.prompt_id,
            )
            for clip in self.clips
            if clip.arm == arm
        ]
        kept = [pair for pair in pairs if not math.isnan(pair[0]) and not math.isnan(pair[1])]
        return [pair[0] for pair in kept], [pair[1] for pair in kept], [pair[2] for pair in kept]


class Benchmark:
    """Base of the benchmarks; each method's default fits one that needs nothing special."""

    name: str = ""
    title: str = ""
    prompts_from: str = ""
    """The user's source of its prompts."""
    runs: int = 1
    """Usual number of runs."""

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        """Prompts from the user's clone or file. Raises EvaluationError."""
        raise NotImplementedError

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        """Columns of its table."""
        raise NotImplementedError

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        """Where a clip lies in its layout."""
        raise NotImplementedError

    def objection(self, plan: Plan, record: Record) -> str | None:
        """Why a clip cannot be scored, in one sentence; None if it can. Asked as soon as the clip exists."""
        return None

    def warnings(self, plan: Plan) -> list[str]:
        """Warnings before hours are spent."""
        return []

    def score(self, scoring: Scoring) -> None:
        """Runs the official scorer on what has no result yet. Raises EvaluationError."""
        raise EvaluationError(f"{self.name} has no scorer of its own; `measure` and `table` are enough.")

    def read(self, scoring: Scoring) -> Reading:
        """Results as numbers. Raises EvaluationError if there are none."""
        raise NotImplementedError

    def folder(self, arm: str, run: int) -> str:
        """Name of an arm's run."""
        return f"{arm}-run_{run:02}"


def captions(source: Path, column: str = "caption") -> list[dict[str, str]]:
    """Prompts of a CSV (a row each, column `column`) or of a text file (a line each), each once, in order.

    Raises EvaluationError if there is none.
    """
    rows = (
        read_csv(source, [column])
        if source.suffix == ".csv"
        else [{column: line} for line in read_lines(source)]
    )
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row[column], row)
    rows = [row for text, row in first.items() if text.strip()]
    if not rows:
        raise EvaluationError(f"{source} holds no prompt.")
    return rows


def file_stem(caption: str) -> str:
    """A caption as a file name by VideoPhy's custom: no full stop at the end, _ for spaces and slashes."""
    return "_".join(caption.strip().rstrip(".").replace("/", " ").replace("\0", " ").split())


def by_path(scoring: Scoring) -> dict[str, Record]:
    """Records by the name that their clip has in the layout: folder/name."""
    plan = scoring.plan
    benchmark = scoring.benchmark
    found = {}
    for record in scoring.records:
        spot = benchmark.spot(plan, record.arm, plan.prompt(record.prompt_id), record.run, record.index)
        found[f"{spot.folder}/{spot.name}"] = record
    return found


def runs_of(records: Sequence[Record]) -> Iterator[tuple[str, int]]:
    """Arms and runs that have clips, in order."""
    yield from dict.fromkeys((record.arm, record.run) for record in records)


def clip_score(record: Record, values: Mapping[str, float]) -> ClipScore:
    """Numbers of a record's clip."""
    return ClipScore(
        arm=record.arm, prompt_id=record.prompt_id, run=record.run, index=record.index, values=values
    )


def merged(readings: Sequence[Reading]) -> Reading:
    """Several readings as one: columns side by side."""
    columns = tuple(column for reading in readings for column in reading.columns)
    joined = Reading(columns=columns)
    for reading in readings:
        joined.clips += reading.clips
        joined.notes += reading.notes
        for key, values in reading.totals.items():
            joined.totals.setdefault(key, {}).update(values)
    return joined
