"""Strategies of the optimiser's step: `Plain`, through accelerate or in one process. Another strategy has the
same five attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from . import processes
from .config import LoopConfig
from .task import ParameterGroup, Task


class Plain:
    """Backward passes that add up, then one clipped step of AdamW."""

    starts_together = False
    """Whether all groups require a gradient from the phase's first step on, those too that begin to learn
    later."""

    def __init__(
        self,
        accelerator: Any,
        task: Task,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[ParameterGroup],
        config: LoopConfig,
    ) -> None:
        """Hands module and optimiser to accelerate."""
        self.accelerator, self.task, self.groups, self.config = accelerator, task, groups, config
        self.sharded = processes.deepspeed(accelerator)
        if accelerator.num_processes > 1:
            accelerator.free_memory()  # another phase's modules let go of the gradients that they average
        processes.configure_deepspeed(
            accelerator, batch=config.batch, accumulate=config.accumulate, max_grad_norm=config.max_grad_norm
        )
        if self.sharded and any(group.max_grad_norm for group in groups):
            raise TrainingError(
                "projector_max_grad_norm is given, and DeepSpeed clips all gradients together; leave it out."
            )
        self.module: nn.Module
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)

    def thaw(self) -> None:
        """Called when other parameters begin to learn; several processes agree anew on whose gradients they
        wait for."""
        if self.accelerator.num_processes > 1:
            self.module = None  # lets go of the gradients it averages
            self.accelerator.free_memory()
            self.module, self.optimizer = self.accelerator.prepare(self.task.module, self.optimizer)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to those of the step's micro-batches so far."""
        if loss.requires_grad:
            self.accelerator.backward(loss)

    def clip(self) -> float:
        """The norm of the gradient before it is scaled down to `config.max_grad_norm`; groups with a norm of
        their own are scaled by themselves and are not in it."""
        groups = self.optimizer.param_groups
        apart = [group for group in groups if group.get("max_grad_norm")]
        together = [group for group in groups if not group.get("max_grad_norm")]
        parameters = [value for group in together for value in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        for group in apart:  # not through accelerate, which takes fp16's scale off at the first call
            nn.utils.clip_grad_norm_(group["params"], group["max_grad_norm"])
        if norm is None:
            return 0.0
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def step(self) -> None:
        """The optimiser's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()
