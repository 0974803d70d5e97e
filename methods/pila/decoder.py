"""From the refined bank to a correction of the velocity (PILA Eq 9-10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .encoder import ResidualBlock, broadcast, zero_last


class FlowDecoder(nn.Module):
    """D of Eq 9: [bank, condition, frozen velocity] -> velocity correction. Its last layer starts at zero."""

    def __init__(
        self, inputs: int, hidden: int, channels: int, blocks: int | Sequence[int] = 1, operations: Any = nn
    ) -> None:
        """`blocks`: how many residual blocks, or the inner width of each."""
        super().__init__()
        widths = [hidden] * blocks if isinstance(blocks, int) else blocks
        self.net = nn.Sequential(
            operations.Conv3d(inputs + hidden + channels, hidden, 1),
            nn.SiLU(),
            *(ResidualBlock(hidden, hidden, operations, inner) for inner in widths),
            operations.Conv3d(hidden, channels, 1),
        )
        zero_last(self.net)

    def forward(self, values: Tensor, cond: Tensor, velocity: Tensor) -> Tensor:
        """`values` `B inputs T H W` in the dtype to compute in; returns float32, because bf16 would round a small correction."""
        inputs = torch.cat([values, broadcast(cond, values), velocity.to(values.dtype)], dim=1)
        return self.net(inputs).float()


def sigma_gate(sigma: Tensor, shape: str = "quadratic", floor: float = 0.05) -> Tensor:
    """g(sigma) in [floor, 1]: full correction on clean latents, `floor` of it at pure noise (section B.2).

    Raises ValueError for an unknown shape.
    """
    if shape == "none":
        return torch.ones_like(sigma)
    clean = 1.0 - sigma.clamp(0.0, 1.0)
    if shape == "quadratic":
        return floor + (1.0 - floor) * clean.square()
    if shape == "linear":
        return floor + (1.0 - floor) * clean
    raise ValueError(f"sigma gate is {shape!r}; it must be 'quadratic', 'linear' or 'none'.")
