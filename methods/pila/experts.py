"""The eight operator experts and their recipes (PILA Eq 5, 24)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..labels.taxonomy import CATEGORIES
from .bank import BANK_CHANNELS, COMPACT, WIDTHS, spread
from .encoder import ResidualBlock, broadcast, weight_dtype, zero_last

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


class OperatorExpert(nn.Module):
    """O_k: reads the bank and the condition vector, emits an update of its recipe's slots and exact zeros
    elsewhere.

    The last layer starts at zero, so that a new expert changes nothing. It emits a slot's independent
    channels and the copies follow; otherwise duplicates could drift apart where no readout looks.
    """

    def __init__(self, category: str, hidden: int, operations: Any = nn) -> None:
        super().__init__()
        self.slots = RECIPES[category]
        self.widths = [COMPACT[name] for name in self.slots]
        self.net = nn.Sequential(
            operations.Conv3d(BANK_CHANNELS + hidden, hidden, 1),
            nn.SiLU(),
            ResidualBlock(hidden, hidden, operations),
            operations.Conv3d(hidden, sum(self.widths), 1),
        )
        zero_last(self.net)

    def forward(self, bank: Tensor, cond: Tensor) -> Tensor:
        """m_k * O_k(F, c), `B 32 T H W` float32. `bank` is in the dtype to compute in, `cond` is c `B
        hidden`."""
        parts = self.net(torch.cat([bank, broadcast(cond, bank)], dim=1)).float().split(self.widths, dim=1)
        update = {name: spread(name, values) for name, values in zip(self.slots, parts)}
        rest = parts[0].new_zeros(1, 1, 1, 1, 1).expand(bank.shape[0], 1, *bank.shape[2:])
        return torch.cat(
            [update.get(name, rest.expand(-1, width, -1, -1, -1)) for name, width in WIDTHS.items()], dim=1
        )


Updates = Mapping[int, tuple[Tensor, Tensor]]
"""Per expert that ran: the samples it ran for, and its unweighted update m_k * O_k of those, `n 32 T H W`."""


class Experts(nn.ModuleList):
    """The eight operator experts, in the order of the router's outputs."""

    def __init__(self, hidden: int, operations: Any = nn) -> None:
        super().__init__(OperatorExpert(category, hidden, operations) for category in CATEGORIES)

    def forward(self, bank: Tensor, cond: Tensor, selected: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Runs each expert for the samples that selected it (`B 8` bool); see `Updates`."""
        bank, updates = bank.to(weight_dtype(self)), {}
        for index, expert in enumerate(self):
            samples = selected[:, index].nonzero()[:, 0]
            if len(samples):
                updates[index] = samples, expert(bank[samples], cond[samples])
        return updates


def add_updates(bank: Tensor, updates: Updates, weights: Tensor) -> Tensor:
    """F~ = F + sum of pi_k m_k * O_k (Eq 8); `weights` is pi `B 8`."""
    for index, (samples, update) in updates.items():
        bank = bank.index_add(0, samples, weights[samples, index][:, None, None, None, None] * update)
    return bank
