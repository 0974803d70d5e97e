"""Arms: what each changes in the graph, or in the call of a diffusers pipeline.

All of them share prompts and seeds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .errors import EvaluationError
from .files import read_toml
from .plan import PLAIN


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
