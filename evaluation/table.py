"""One table: rows of ours with mean and deviation over runs and the paired difference to the plain arm, then
published rows.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from ..methods.weights import write_atomically
from ..toyworld.statistics import Interval, paired_difference
from .benchmarks.base import Column, Reading
from .errors import EvaluationError
from .plan import BASELINES, Plan
from .published import PublishedRow


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A column's number in one row."""

    mean: float
    deviation: float = math.nan
    """Standard deviation over runs; nan for one run."""
    interval: Interval | None = None
    """Difference to the reference arm, with a 95 % interval over prompts; None where clips cannot be paired.
    """


@dataclass(kw_only=True)
class Row:
    """One row of the table."""

    name: str
    runs: int
    cells: dict[str, Cell] = field(default_factory=dict)
    source: str = ""
    """Where a published row comes from; empty for ours."""
    url: str = ""
    note: str = ""


@dataclass(kw_only=True)
class Table:
    """Everything that is printed."""

    title: str
    reference: str
    columns: tuple[Column, ...]
    rows: list[Row]
    published: list[Row]
    notes: list[str]


def make_table(plan: Plan, title: str, reading: Reading, rows: Sequence[PublishedRow] = ()) -> Table:
    """Table of a reading. Raises EvaluationError if it holds no number."""
    arms = [arm for arm in [*BASELINES, *plan.arms] if arm in reading.arms()]
    ours = [_row(plan, reading, arm) for arm in arms]
    columns = tuple(column for column in reading.columns if any(column.key in row.cells for row in ours))
    if not columns:
        raise EvaluationError(
            "there is no number to print; run `latent-physics evaluate score` or `measure` first."
        )
    keys = {column.key for column in columns}
    beside = [_published(row, keys) for row in rows if keys & row.values.keys()]
    notes = list(dict.fromkeys(reading.notes))
    return Table(
        title=title, reference=plan.reference, columns=columns, rows=ours, published=beside, notes=notes
    )


def _row(plan: Plan, reading: Reading, arm: str) -> Row:
    row = Row(
        name=f"{plan.label} {arm}" if arm not in BASELINES else f"{arm} baseline", runs=len(reading.runs(arm))
    )
    for column in reading.columns:
        by_run = [reading.of_run(arm, run, column.key) for run in reading.runs(arm)]
        found = [value for value in by_run if not math.isnan(value)]
        if found:
            spread = stdev(found) if len(found) > 1 else math.nan
            interval = None if arm == plan.reference else difference(plan, reading, arm, column.key)
            row.cells[column.key] = Cell(mean=fmean(found), deviation=spread, interval=interval)
    return row


def difference(plan: Plan, reading: Reading, arm: str, key: str) -> Interval | None:
    """Paired difference of an arm to the reference, resampled over prompts; None without clips in both."""
    ours, theirs, prompts = reading.paired(arm, plan.reference, key)
    if len(set(prompts)) < 2:
        return None
    return paired_difference(ours, theirs, prompts)


def _published(row: PublishedRow, keys: set[str]) -> Row:
    found = Row(name=row.method, runs=0, source=row.source, url=row.url, note=row.note)
    for key in keys & row.values.keys():
        found.cells[key] = Cell(mean=row.values[key], deviation=row.deviations.get(key, math.nan))
    return found


def number(cell: Cell | None, column: Column) -> str:
    """A cell's mean, and its deviation where there is one."""
    if cell is None:
        return ""
    text = f"{cell.mean * column.scale:.{column.digits}f}"
    return (
        text if math.isnan(cell.deviation) else f"{text} ± {cell.deviation * column.scale:.{column.digits}f}"
    )


def span(interval: Interval | None, column: Column) -> str:
    """A difference and its interval in the column's unit."""
    if interval is None:
        return ""
    mean, low, high = (value * column.scale for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.{column.digits}f} [{low:+.{column.digits}f}, {high:+.{column.digits}f}]"


def markdown(table: Table) -> str:
    """The table as Markdown: ours first, baselines framing them, published rows below with their sources as
    footnotes.
    """
    paired = [
        column
        for column in table.columns
        if any(row.cells.get(column.key, _NONE).interval for row in table.rows)
    ]
    head = ["row", "runs"]
    for column in table.columns:
        head.append(column.title)
        if column in paired:
            head.append(f"less {table.reference}")
    lines = [f"# {table.title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    sources = list(dict.fromkeys((row.source, row.note, row.url) for row in table.published))
    for row in [*table.rows, *table.published]:
        mark = f" [{sources.index((row.source, row.note, row.url)) + 1}]" if row.source else ""
        cells = [row.name + mark, str(row.runs) if row.runs else ""]
        for column in table.columns:
            cell = row.cells.get(column.key)
            cells.append(number(cell, column))
            if column in paired:
                cells.append(span(cell.interval if cell else None, column))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines += [
        f"[{place}] {source}{': ' + note if note else ''}{' ' + url if url else ''}"
        for place, (source, note, url) in enumerate(sources, 1)
    ]
    lines += [
        "",
        "± is the standard deviation over runs; [low, high] a 95 % interval of the paired difference, over"
        " prompts.",
    ]
    return "\n".join([*lines, *table.notes]) + "\n"


def as_csv(table: Table) -> str:
    """A line per row and column, numbers unrounded: row, runs, column, mean, sd, difference, low, high,
    source.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "runs", "column", "mean", "sd", "difference", "low", "high", "source"])
    for row in [*table.rows, *table.published]:
        for column in table.columns:
            cell = row.cells.get(column.key)
            if cell is None:
                continue
            spread = "" if math.isnan(cell.deviation) else repr(cell.deviation)
            gap = cell.interval
            apart = ["", "", ""] if gap is None else [repr(gap.mean), repr(gap.low), repr(gap.high)]
            writer.writerow(
                [row.name, row.runs or "", column.key, repr(cell.mean), spread, *apart, row.source]
            )
    return text.getvalue()


def plot(table: Table, path: Path) -> None:
    """A panel per column: rows of ours with their deviations, published means as lighter marks.

    Raises OSError.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = table.columns[:6]
    rows = [*table.rows, *table.published]
    figure, axes = pyplot.subplots(
        1,
        len(shown),
        figsize=(2 + 2.6 * len(shown), 1.2 + 0.22 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    names = [row.name for row in rows]
    for panel, column in zip(axes[0], shown):
        for place, row in enumerate(rows):
            cell = row.cells.get(column.key)
            if cell is None:
                continue
            error = None if math.isnan(cell.deviation) else cell.deviation * column.scale
            colour = "0.6" if row.source else "C0"
            panel.errorbar(cell.mean * column.scale, place, xerr=error, fmt="o", color=colour, markersize=4)
        panel.set_title(column.title, fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(rows)), names, fontsize=7)
    axes[0][0].invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(path, picture.getvalue())


def claims(table: Table, plan: Plan, arm: str) -> tuple[list[str], bool]:
    """Claims that an arm allows, a sentence per column, and whether any of it is a gain.

    A gain needs an interval over prompts that excludes 0 on the good side; a difference alone is none. Raises
    EvaluationError for an arm without numbers and for the reference itself.
    """
    name = f"{plan.label} {arm}"
    row = next((row for row in table.rows if row.name == name), None)
    if arm == table.reference:
        raise EvaluationError(f"{arm} is what the others are compared with; claim something of another arm.")
    if row is None:
        raise EvaluationError(f"there is no row of the arm {arm!r}; there are {', '.join(plan.arms)}.")
    sentences, any_gain = [], False
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            continue
        sentence, gain = _claim(arm, table.reference, column, cell.interval)
        sentences.append(sentence)
        any_gain |= gain
    return sentences, any_gain


def _claim(arm: str, reference: str, column: Column, gap: Interval | None) -> tuple[str, bool]:
    if gap is None:
        return f"{column.title}: no claim; its clips cannot be paired with {reference}'s.", False
    text = span(gap, column)
    better, worse = (gap.low > 0, gap.high < 0) if column.rising else (gap.high < 0, gap.low > 0)
    if better:
        return f"{column.title}: {arm} gains over {reference}, {text}.", True
    if worse:
        return f"{column.title}: {arm} loses against {reference}, {text}.", False
    return f"{column.title}: no claim; the difference {text} does not leave its interval.", False


def write_table(table: Table, folder: Path) -> list[Path]:
    """Writes table.md, table.csv and table.png; returns their paths. Raises OSError."""
    paths = [folder / name for name in ("table.md", "table.csv", "table.png")]
    write_atomically(paths[0], markdown(table).encode())
    write_atomically(paths[1], as_csv(table).encode())
    plot(table, paths[2])
    return paths


_NONE = Cell(mean=math.nan)
