"""Optimiser, the one learning rate schedule and the one moving average of the trained weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .config import LoopConfig
from .optimizers import find_optimizer, optimizer_arguments
from .task import ParameterGroup


def make_optimizer(groups: Sequence[ParameterGroup], config: LoopConfig) -> torch.optim.Optimizer:
    """The optimiser over the groups that have parameters, each with its own rate as "base". Raises
    TrainingError as `optimizers.find_optimizer`."""
    found = [
        {
            "params": group.parameters,
            "lr": group.learning_rate,
            "base": group.learning_rate,
            "starts": group.starts,
            "max_grad_norm": group.max_grad_norm,
        }
        for group in groups
        if group.parameters
    ]
    return find_optimizer(config.optimizer)(found, **optimizer_arguments(config))


def set_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Gives every group its rate times `scale`; torchao's optimisers keep theirs in a tensor."""
    for group in optimizer.param_groups:
        rate = group["base"] * scale
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rate_factor(config: LoopConfig, step: int, fraction: float) -> float:
    """The learning rate's factor before a step, counted from 0, with `fraction` of the steps, or of the time,
    done.

    It rises linearly over `warmup` steps. A cosine falls from 1 to `final_share` over the last `tail` of the
    way.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return rise
    share = max(0.0, (fraction - (1 - config.tail)) / config.tail)
    return rise * (config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * share)))


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that get a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], values: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Moves the average towards the values, in place; early steps forget faster, so that the start does not
    linger."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, old in average.items():
        old.lerp_(values[name].detach().to(old.dtype), 1 - decay)


@torch.no_grad()
def exchange(average: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Swaps the average and the values, tensor by tensor, in place; a second call swaps them back."""
    for name, old in average.items():
        kept = values[name].detach().clone()
        values[name].copy_(old)
        old.copy_(kept)
