"""Files of an evaluation: tables, lists and logs read or refused in one sentence, lines appended for good."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..methods.weights import write_atomically
from .errors import EvaluationError


def read_csv(path: Path, needed: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV with a header. Raises EvaluationError if it is missing or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} cannot be read as a CSV ({error}).") from error
    lacking = [name for name in needed if name not in (reader.fieldnames or [])]
    if lacking:
        has = ", ".join(reader.fieldnames or ["nothing"])
        raise EvaluationError(f"{path} has no column {lacking[0]!r}; it has {has}.")
    return rows


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a CSV with a header, all or nothing."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty. Raises EvaluationError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read as text ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """A JSON file of a scorer. Raises EvaluationError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as JSON ({error}).") from error


def last_line(log: Path) -> str:
    """Last line of a log that says anything, shortened."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1][:200] if lines else "no output"


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file. Raises EvaluationError if it is missing or not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} is not TOML ({error}).") from error


def append_lines(path: Path, text: str) -> None:
    """Appends whole lines in one write and waits until they are on the disk. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that grows by `append_lines`; a last line that a kill cut off is removed from it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.decode("utf-8").splitlines()
