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
LEARNED_SHARE = 0.45
"""Largest size of a learned logit, as a share of a label's. Below a half: a labelled expert ranks above any
unlabelled one."""


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
    """Top-k by logit, softmax of logit / temperature over the selected (Eq 23). Equal logits are taken in the
    order of ids."""
    check_top_k(top_k)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    selected = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, True)
    if top_k == 0:
        return Routing(logits, selected, torch.zeros_like(logits))
    scores = (logits / temperature).masked_fill(~selected, float("-inf"))
    return Routing(logits, selected, scores.softmax(dim=1))


def label_recall(routing: Routing, labels: Tensor) -> Tensor:
    """Share of the batch's labels whose expert was selected (recall@k), a scalar; 1 where there is no
    label."""
    labelled = labels > 0
    return (routing.selected & labelled).sum() / labelled.sum() if labelled.any() else labels.new_tensor(1.0)


def coactivation(routing: Routing) -> Tensor:
    """Share of the batch in which two experts ran together, `8 8`; the diagonal is each expert's own
    share."""
    chosen = routing.selected.float()
    return chosen.T @ chosen / len(chosen)


class Router(nn.Module):
    """Learned logits from the condition vector plus an additive prior for the labels."""

    def __init__(
        self,
        hidden: int,
        top_k: int,
        label_bias: float,
        temperature: float,
        bounded: bool = True,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        self.top_k, self.label_bias, self.temperature = top_k, label_bias, temperature
        self.bound = LEARNED_SHARE * label_bias if bounded else None
        self.net = mlp(hidden, hidden, EXPERTS, operations=operations)
        with torch.no_grad():  # near-equal experts at the start, without exact ties
            self.net[-1].weight.normal_(std=0.01)
            self.net[-1].bias.zero_()

    def learned(self, cond: Tensor) -> Tensor:
        """The learned logits `B 8` of c `B hidden` (Eq 21), float32, within `bound`."""
        with torch.autocast(cond.device.type, enabled=False):
            logits = self.net(cond.float())
        return logits if self.bound is None else self.bound * torch.tanh(logits / self.bound)

    def forward(self, cond: Tensor, labels: Tensor | None, top_k: int | None = None) -> Routing:
        """`cond` is c `B hidden`; `labels` `8` or `B 8` in [0, 1], or None; `top_k` overrides the file's (Eq
        21-23)."""
        logits = self.learned(cond)
        if labels is not None:
            logits = logits + self.label_bias * labels.to(logits).reshape(-1, EXPERTS)
        return select(logits, self.top_k if top_k is None else top_k, self.temperature)
