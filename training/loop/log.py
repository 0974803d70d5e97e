"""A run's log.csv and its curves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...methods.weights import write_atomically


class Log:
    """A CSV with fixed columns; the column "step" comes first. Rows are flushed as they are written.

    A row may leave columns out (validation happens on some steps only); its cell is empty then.
    """

    def __init__(self, path: str | os.PathLike[str] | None, columns: Sequence[str], after: int = 0) -> None:
        """Continues the file at `path`, dropping rows after step `after`: what a killed run wrote beyond its
        checkpoint.

        `path` None keeps the rows in memory only.
        """
        self.path = Path(path) if path else None
        self.columns = ["step", *columns]
        self.rows: list[dict[str, float]] = []
        if self.path and after > 0:
            self.rows = [row for row in read_log(self.path) if row["step"] <= after]
        if self.path:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: repr_number(value) for key, value in row.items()} for row in self.rows)
            write_atomically(self.path, text.getvalue().encode())

    def add(self, **values: float) -> None:
        """Appends one row. Raises OSError (disk full)."""
        row = {key: float(value) for key, value in values.items()}
        self.rows.append(row)
        if self.path:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(
                    {key: repr_number(value) for key, value in row.items()}
                )

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one column, rows without it left out."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


def repr_number(value: float) -> str:
    """Whole numbers without a point, others with six significant digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def read_log(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Rows of a log; [] where the file is missing. A last line cut off by a crash is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                values = {key: float(value) for key, value in row.items() if key and value}
            except (TypeError, ValueError):
                continue
            if "step" in values and None not in row.values():
                rows.append(values)
    return rows


def draw_curves(
    log: Log, path: str | os.PathLike[str], panels: Mapping[str, Sequence[str]], title: str = ""
) -> None:
    """Draws the log as a PNG: one panel per entry of `panels`, title -> columns drawn in it. Written
    atomically.

    Columns with no rows are left out. A column with more than 200 points is also shown as a running mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, columns) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for column in columns:
            steps, values = log.column(column)
            if not steps:
                continue
            many = len(values) > 200
            (line,) = axes.plot(
                steps, values, label=column, marker="" if len(values) > 30 else ".", alpha=0.3 if many else 1
            )
            if many:
                axes.plot(steps, _running_mean(values, len(values) // 50), color=line.get_color())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over the last `width` values (fewer at the start)."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]
