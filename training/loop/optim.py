"""Optimiser, learning rate schedule and moving average of the trained weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import TrainerConfig
from .task import Task


def make_optimizer(task: Task, config: TrainerConfig) -> torch.optim.Optimizer:
    """AdamW over what is trained, the projectors in a group of their own."""
    values = trainable(task.module)
    outer = [value for name, value in values.items() if task.slow and name.startswith(task.slow)]
    inner = [value for name, value in values.items() if not (task.slow and name.startswith(task.slow))]
    groups = [{"params": inner, "lr": config.rate}] if inner else []
    if outer:
        groups.append({"params": outer, "lr": config.projector_rate or config.rate})
    for group in groups:
        group["base"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)


def rate_factor(config: TrainerConfig, step: int) -> float:
    """The learning rate's factor on a step, counted from 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that get a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], values: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Moves the average towards the values, in place; early steps forget faster, so that the start does not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, old in average.items():
        new = values[name].detach()
        old.lerp_(new.to(old.dtype), 1 - decay)
