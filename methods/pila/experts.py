"""The eight operator experts and their recipes (PILA Eq 5, 24)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..labels.taxonomy import CATEGORIES
from .bank import BANK_CHANNELS, COMPACT, OFFSETS, WIDTHS, spread
from .encoder import ResidualBlock, broadcast, zero_last

RECIPES: dict[str, tuple[str, ...]] = {
    "Rigid Body": ("d", "u", "eps", "sigma"),
    "Elastic": ("d", "u", "eps", "sigma"),
    "Fluid": ("u", "p", "rho"),
    "Compressible Flow": ("u", "p", "rho"),
    "Collision": ("d", "u", "j"),
    "Phase Change": ("u", "rho", "T", "alpha"),
    "Thermal": ("u", "T"),
    "Optical": ("psi", "alpha"),
}
"""The mask m_k: slots an expert may update, which are the slots its residuals read."""


def recipe_mask(category: str) -> Tensor:
    """m_k as a bool vector over the bank's 32 channels."""
    mask = torch.zeros(BANK_CHANNELS, dtype=torch.bool)
    for name in RECIPES[category]:
        mask[OFFSETS[name] : OFFSETS[name] + WIDTHS[name]] = True
    return mask


class OperatorExpert(nn.Module):
    """O_k: reads the bank and the condition vector, emits an update of its recipe's slots and exact zeros elsewhere.

    The last layer starts at zero, so that a new expert changes nothing. With `tie` (the default) it emits a slot's independent
    channels and the copies follow; otherwise duplicates could drift apart where no readout looks.
    """

    def __init__(self, category: str, hidden: int, extra: int = 0, tie: bool = True, operations: Any = nn) -> None:
        super().__init__()
        self.slots, self.tie = RECIPES[category], tie
        widths = COMPACT if tie else WIDTHS
        self.widths = [widths[name] for name in self.slots]
        self.net = nn.Sequential(
            operations.Conv3d(BANK_CHANNELS + hidden + extra, hidden, 1),
            nn.SiLU(),
            ResidualBlock(hidden, hidden, operations),
            operations.Conv3d(hidden, sum(self.widths), 1),
        )
        zero_last(self.net)

    def forward(self, bank: Tensor, cond: Tensor, feature: Tensor | None = None) -> Tensor:
        """m_k * O_k(F, c): `B 32 T H W`. `bank` is in the dtype to compute in, `cond` is c `B hidden`."""
        inputs = [bank, broadcast(cond, bank)] + ([feature.to(bank.dtype)] if feature is not None else [])
        parts = self.net(torch.cat(inputs, dim=1)).float().split(self.widths, dim=1)
        update = dict(zip(self.slots, parts))
        if self.tie:
            update = {name: spread(name, values) for name, values in update.items()}
        rest = parts[0].new_zeros(1, 1, 1, 1, 1).expand(bank.shape[0], 1, *bank.shape[2:])
        return torch.cat([update.get(name, rest.expand(-1, width, -1, -1, -1)) for name, width in WIDTHS.items()], dim=1)


def build_experts(hidden: int, extra: int, tie: bool, operations: Any = nn) -> nn.ModuleList:
    """One expert per category, in the order of the router's outputs."""
    return nn.ModuleList(OperatorExpert(category, hidden, extra, tie, operations) for category in CATEGORIES)
