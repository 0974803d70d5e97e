"""Strength of each loss: the norm of its own weighted gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .task import ParameterGroup


def loss_gradients(
    outputs: Mapping[str, Tensor], weights: Mapping[str, float], groups: Sequence[ParameterGroup]
) -> dict[str, float]:
    """{"gradient NAME": norm over all that learns} of each weighted loss, on this process's micro-batch.

    A loss without a gradient (weight 0, nothing of it learns) has 0. The graph is kept for the step's own
    backward pass.
    """
    parameters = [value for group in groups for value in group.parameters if value.requires_grad]
    found = {}
    for name, factor in weights.items():
        loss = outputs.get(name)
        norm = 0.0
        if loss is not None and loss.requires_grad and factor:
            gradients = torch.autograd.grad(factor * loss, parameters, retain_graph=True, allow_unused=True)
            norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
            norm = float(torch.stack(norms).norm()) if norms else 0.0
        found[f"gradient {name}"] = norm
    return found
