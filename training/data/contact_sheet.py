"""Contact sheets: many first frames on one page, so that a person looks before training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...methods.weights import write_atomically
from ..console import saving
from .left_out import printable

COLUMNS, ROWS = 10, 20
LINE = 12
"""Height of a line of text, pixels."""
MARGIN = 4
LETTERS = 26
"""Number of letters of a name or caption that fit under a picture."""


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet."""

    path: Path
    caption: str
    picture: np.ndarray
    """`H W 3` uint8."""


def write_sheets(folder: Path, tiles: Sequence[Tile]) -> list[Path]:
    """Writes the tiles as contact_sheet_1.png, contact_sheet_2.png and so on, and removes sheets of an
    earlier run. Raises TrainingError where they cannot be written."""
    page = COLUMNS * ROWS
    pages = [tiles[start : start + page] for start in range(0, len(tiles), page)]
    written = []
    for number, part in enumerate(pages, 1):
        path = folder / f"contact_sheet_{number}.png"
        with saving(path.name, "the table is complete"):
            write_atomically(path, draw_sheet(part))
        written.append(path)
    for old in set(folder.glob("contact_sheet_*.png")) - set(written):
        old.unlink(missing_ok=True)
    return written


def draw_sheet(tiles: Sequence[Tile], columns: int = COLUMNS) -> bytes:
    """One page as PNG: pictures in rows of `columns`, under each its file's name and the start of its
    caption."""
    from PIL import Image, ImageDraw

    width = max(tile.picture.shape[1] for tile in tiles) + 2 * MARGIN
    height = max(tile.picture.shape[0] for tile in tiles) + 2 * LINE + 2 * MARGIN
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        sheet.paste(Image.fromarray(tile.picture), (left, top))
        for line, (text, colour) in enumerate(((tile.path.name, "black"), (tile.caption, "grey"))):
            place = (left, top + height - 2 * LINE - 2 * MARGIN + line * LINE)
            pen.text(place, printable(text)[: LETTERS * (width - 2 * MARGIN) // 160], fill=colour)
    target = io.BytesIO()
    sheet.save(target, format="png")
    return target.getvalue()
