"""A world model and a clip whose features are known by hand."""

from __future__ import annotations

import torch
from torch import Tensor


class LinearWorld:
    """Features are pixels through a fixed matrix, mean over a tubelet of `2 x 4 x 4`; it expects motion to go
    on evenly.

    `predicted` continues the straight line through the last two context tubelets (or holds the only one),
    token by token.
    """

    patch = (2, 4, 4)

    def __init__(self, channels: int = 6) -> None:
        self.matrix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(3))
        self.seen: list[Tensor] = []
        """Every clip that was encoded as context."""

    def features(self, video: Tensor) -> Tensor:
        frames = video.shape[2] // 2 * 2
        pooled = torch.nn.functional.avg_pool3d(video[:, :, :frames].float(), self.patch)
        return torch.einsum("dc,bcfhw->bdfhw", self.matrix, pooled)

    def predicted(self, video: Tensor, context: int) -> Tensor:
        seen = video[:, :, : 2 * context]
        self.seen.append(seen.clone())
        known = self.features(seen)
        last = known[:, :, -1:]
        step = last - known[:, :, -2:-1] if context > 1 else torch.zeros_like(last)
        ahead = torch.arange(1, video.shape[2] // 2 - context + 1)[None, None, :, None, None]
        return last + ahead * step


def brightening(frames: int = 20, speed: float = 0.02) -> Tensor:
    """One clip `1 3 T 8 8` whose every pixel brightens evenly, by at most `speed` a frame."""
    generator = torch.Generator().manual_seed(4)
    start, slope = (
        torch.rand(1, 3, 1, 8, 8, generator=generator) / 4,
        torch.rand(1, 3, 1, 8, 8, generator=generator),
    )
    time = torch.arange(frames, dtype=torch.float32)[None, None, :, None, None]
    return start + slope * speed * time
