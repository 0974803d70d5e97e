"""Arms: what each changes in the graph, or in the call of a diffusers pipeline.

All of them share prompts and seeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EvaluationError
from .plan import PLAIN


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


def load_arms(path: str | os.PathLike[str] | None) -> dict[str, dict[str, Any]]:
    """Arms in the file's order, the one called plain first; without a file, plain alone.

    Every table is an arm, every key of it "NODE.INPUT" or "NODE": see `graph.with_overrides`. Raises
    EvaluationError.
    """
    if path is None:
        return {PLAIN: {}}
    arms = read_toml(path)
    wrong = next((name for name, value in arms.items() if not isinstance(value, Mapping)), None)
    if wrong is not None:
        raise EvaluationError(
            f"{wrong} in {path} is no table; write [{wrong}] and the overrides of that arm below it."
        )
    if not arms:
        raise EvaluationError(f"{path} holds no arm; write [plain] for the graph as it is.")
    first = [PLAIN] if PLAIN in arms else []
    return {name: dict(arms[name]) for name in [*first, *(name for name in arms if name != PLAIN)]}
