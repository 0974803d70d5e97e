"""From the refined bank to a correction of the velocity (PILA Eq 9-10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .encoder import ResidualBlock, broadcast, weight_dtype, zero_last

LARGEST_CORRECTION = 10.0
"""The velocity correction is clamped to this magnitude; velocities have about unit variance."""


class FlowDecoder(nn.Module):
    """D of Eq 9: [bank, condition, frozen velocity] -> velocity correction. Its last layer starts at zero."""

    def __init__(
        self, inputs: int, hidden: int, channels: int, blocks: Sequence[int], operations: Any = nn
    ) -> None:
        """`inputs`: channels of the bank and of what else it reads; `blocks`: the inner width of each
        residual block."""
        super().__init__()
        self.net = nn.Sequential(
            operations.Conv3d(inputs + hidden + channels, hidden, 1),
            nn.SiLU(),
            *(ResidualBlock(hidden, hidden, operations, inner) for inner in blocks),
            operations.Conv3d(hidden, channels, 1),
        )
        zero_last(self.net)

    def forward(self, bank: Tensor, cond: Tensor, velocity: Tensor, feature: Tensor | None = None) -> Tensor:
        """dv `B C T H W` float32, because bf16 would round a small correction.

        `bank` `B 32 T H W`, `cond` is c `B hidden`, `velocity` is v, `feature` is h where the decoder was
        built to read it.
        """
        bank = bank.to(weight_dtype(self))
        read = [bank] if feature is None else [bank, feature.to(bank.dtype)]
        inputs = torch.cat([*read, broadcast(cond, bank), velocity.to(bank.dtype)], dim=1)
        return self.net(inputs).float().clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)


def sigma_gate(sigma: Tensor, shape: str = "quadratic", floor: float = 0.05) -> Tensor:
    """g(sigma) in [floor, 1]: full correction on clean latents, `floor` of it at pure noise (section B.2).

    Raises ValueError for an unknown shape.
    """
    clean = 1.0 - sigma.clamp(0.0, 1.0)
    if shape == "quadratic":
        return floor + (1.0 - floor) * clean.square()
    if shape == "linear":
        return floor + (1.0 - floor) * clean
    raise ValueError(f"sigma gate is {shape!r}; it must be 'quadratic' or 'linear'.")


def unshrunk(gate: Tensor, penalty: float) -> Tensor:
    """The gate that undoes a penalty w |dv|^2 on the ungated correction: (g^2 + w) / g.

    |g dv - r|^2 + w |dv|^2 is smallest at g dv = r g^2 / (g^2 + w), which is the share of the wanted
    correction r that such an adapter learned; no penalty leaves g.
    """
    return gate + penalty / gate
