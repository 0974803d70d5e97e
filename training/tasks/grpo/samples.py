"""Held-out clips as videos, with prompt and rewards written below them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..preview import write_video

LEAST_WIDTH = 320
"""Pixels that a caption needs; smaller clips are enlarged by whole factors."""


def write_sample(path: Path, video: Tensor, caption: str, fps: float) -> None:
    """`3 T H W` in [0, 1] with its caption as an mp4, all or nothing. Raises OSError."""
    factor = -(-LEAST_WIDTH // video.shape[-1])
    large = functional.interpolate(video.movedim(1, 0), scale_factor=factor).movedim(0, 1)
    strip = written(caption, large.shape[-1])[:, None].expand(-1, large.shape[1], -1, -1)
    write_video(path, torch.cat([large.cpu(), strip], dim=2), fps)


def written(text: str, width: int) -> Tensor:
    """Words on white, `3 H W` in [0, 1] with an even height, as wide as asked."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, max(16, width // 7)) or [""]]
    height = 8 + 16 * len(lines)
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).multiline_text((4, 3), "\n".join(lines), fill="black", font=font, spacing=4)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
