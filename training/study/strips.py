"""Films as strips of pictures, and sheets of them: one seed, a row per model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ...methods.weights import write_atomically
from ..console import saving
from ..data.contact_sheet import Tile, draw_sheet

FILMS, SHOWN = 8, 4
"""Films in a strip, and frames of each."""


def write_strip(path: Path, clips: Tensor) -> None:
    """A few frames of the first films of `B 3 T H W`, side by side, as PNG. Raises TrainingError."""
    from PIL import Image

    chosen = np.linspace(0, clips.shape[2] - 1, SHOWN).round().astype(int)
    frames = clips[:FILMS, :, chosen].permute(3, 0, 2, 4, 1).flatten(1, 3)  # H, films x frames x W, 3
    picture = (frames.clamp(0, 1) * 255).round().byte().numpy()
    target = io.BytesIO()
    Image.fromarray(picture).save(target, format="png")
    with saving(path.name, "the runs are safe"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, target.getvalue())


def write_sheet(path: Path, strips: Sequence[tuple[str, Path]]) -> None:
    """A page of strips, one under another, each over its title. Raises TrainingError."""
    from PIL import Image

    tiles = []
    for title, strip in strips:
        with Image.open(strip) as picture:
            tiles.append(Tile(path=Path(title), caption="", picture=np.asarray(picture)))
    with saving(path.name, "the table is complete"):
        write_atomically(path, draw_sheet(tiles, columns=1))
