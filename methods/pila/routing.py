"""Label-prior masked expert routing: which experts run, and with what weight (PILA Eq 4, 21-23)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..labels.taxonomy import CATEGORIES
from .config import check_top_k
from .encoder import mlp

EXPERTS = len(CATEGORIES)


@dataclass(frozen=True)
class Routing:
    """The router's decision for a batch."""

    logits: Tensor
    """`B 8`, label prior included."""
    selected: Tensor
    """`B 8` bool, the top-k set S."""
    weights: Tensor
    """`B 8`, softmax over the selected experts, exactly 0 elsewhere."""


def select(logits: Tensor, top_k: int, temperature: float) -> Routing:
    """Top-k by logit, softmax of logit / temperature over the selected (Eq 23). Equal logits are taken in the order of ids."""
    check_top_k(top_k)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    selected = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, True)
    if top_k == 0:
        return Routing(logits, selected, torch.zeros_like(logits))
    scores = (logits / temperature).masked_fill(~selected, float("-inf"))
    return Routing(logits, selected, scores.softmax(dim=1))


def uniform(logits: Tensor) -> Routing:
    """Every expert with weight 1/8: the "without expert routing" ablation."""
    return Routing(logits, torch.ones_like(logits, dtype=torch.bool), torch.full_like(logits, 1.0 / EXPERTS))


class Router(nn.Module):
    """Learned logits from the condition vector plus an additive prior for the labels."""

    def __init__(self, hidden: int, label_bias: float, temperature: float, operations: Any = nn) -> None:
        super().__init__()
        self.label_bias, self.temperature = label_bias, temperature
        self.net = mlp(hidden, hidden, EXPERTS, operations=operations)
        with torch.no_grad():  # near-equal experts at the start, without exact ties
            self.net[-1].weight.normal_(std=0.01)
            self.net[-1].bias.zero_()

    def forward(self, cond: Tensor, labels: Tensor | None, top_k: int) -> Routing:
        """`cond` is c `B hidden`; `labels` `B 8` in [0, 1] or None. Runs in float32 (Eq 21, 22)."""
        with torch.autocast(cond.device.type, enabled=False):
            logits = self.net(cond.float())
        if labels is not None:
            logits = logits + self.label_bias * labels.to(logits)
        return select(logits, top_k, self.temperature)
