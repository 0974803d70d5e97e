"""Published rows: figures of papers and boards as data, each with its source, for the tables they belong
beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of somebody's table."""

    benchmark: str
    method: str
    values: dict[str, float]
    """Values by column, in the unit of our readers (shares, not percent)."""
    deviations: dict[str, float]
    """Deviations over runs, for the columns that state one."""
    source: str
    """Paper and table, or board."""
    url: str
    note: str
    """Facts to know before comparing: aggregation, prompts."""


def published(benchmark: str, columns: Sequence[str] = ()) -> list[PublishedRow]:
    """Rows of a benchmark that share a column with `columns` (all of them for none)."""
    tables = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [row for table in tables if table["benchmark"] == benchmark for row in _rows(table)]
    return [row for row in rows if not columns or row.values.keys() & set(columns)]


def _rows(table: dict) -> list[PublishedRow]:
    scale = 0.01 if table["percent"] else 1.0
    found = []
    for method, numbers in table["rows"].items():
        values, deviations = {}, {}
        for column, number in zip(table["columns"], numbers, strict=True):
            mean, deviation = number if isinstance(number, list) else (number, None)
            if mean is not None:
                values[column] = mean * scale
            if deviation is not None:
                deviations[column] = deviation * scale
        about = {key: table.get(key, "") for key in ("benchmark", "source", "url", "note")}
        found.append(PublishedRow(method=method, values=values, deviations=deviations, **about))
    return found
