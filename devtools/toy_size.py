"""Size and length of a toy clip, read from the text of toyworld/canvas.py: what is imported here must be the
standard library alone."""

from __future__ import annotations

import ast
from pathlib import Path

CANVAS = Path(__file__).resolve().parents[1] / "toyworld" / "canvas.py"


def constant(name: str) -> int:
    """The whole number that canvas.py gives `name`. Raises KeyError where it gives none."""
    for statement in ast.parse(CANVAS.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign([ast.Name(id=found)], ast.Constant(int(value))) if found == name:
                return value
    raise KeyError(f"{CANVAS} gives no number to {name}")


SIDE, FRAMES = constant("SIZE"), constant("FRAMES")
"""Pixels on a side and frames of a toy clip."""
