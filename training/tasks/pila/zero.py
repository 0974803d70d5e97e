"""PILA's optimiser step under DeepSpeed ZeRO-2, which keeps gradients and moments in shards.

DeepSpeed assumes that every process finds the same gradients in the same order: it packs them into a bucket
as they come, and averages buckets. A routed adapter breaks that, because the experts that run, and the order
in which backward reaches them, depend on a process's clips. Here gradients are therefore found first and then
handed over in one fixed order.

DeepSpeed also steps every tensor, with a gradient of zero where there was none; AdamW alone leaves such a
tensor, its moments and its count of steps as they are. Each part that may go unused is a group of its own
here, and a group that no process used sits a step out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.pila import PilaAdapter
from ....methods.pila.afe import AnchoredFieldEstimation
from ...console import TrainingError
from ...loop import processes
from ...loop.config import LoopConfig
from ...loop.task import ParameterGroup

CONTAINERS = (PilaAdapter, AnchoredFieldEstimation, nn.ModuleList, nn.ModuleDict)
"""Modules without parameters of their own, whose children are used independently of one another."""
STAGES = (1, 2)


def check_stage(accelerator: Any) -> None:
    """Raises TrainingError for a ZeRO stage that shards the weights too, and for one that shards nothing."""
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage not in STAGES:
        raise TrainingError(
            f"the launch asks for ZeRO stage {stage}; PILA's adapter trains with stage 2, as in zero2.yaml."
        )


def units(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The parts of the adapter that are used, or not, as a whole: each expert, each head, the encoder, ..."""
    for module in modules:
        if isinstance(module, CONTAINERS):
            yield from units(list(module.children()))
        else:
            yield module


class Handover(nn.Module):
    """The module that DeepSpeed wraps: a number whose gradient by each parameter is a tensor that was found
    before."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """sum of <parameter, gradient>: the same graph in every process, so DeepSpeed sees one order."""
        return torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()


class ZeroStepper:
    """One stage's DeepSpeed engine around the adapter, in the place of `loop.stepper.Plain`."""

    starts_together = sharded = True

    def __init__(
        self,
        accelerator: Any,
        task: Any,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[ParameterGroup],
        config: LoopConfig,
    ) -> None:
        """`groups` are the `units` of `task.adapter`; every one of their parameters must require a
        gradient."""
        self.accelerator, self.task, self.module = accelerator, task, task.module
        self.groups = [group for group in groups if group.parameters]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        accelerator.free_memory()  # the stage before lets go of its gradients
        settings = processes.configure_deepspeed(
            accelerator, batch=config.batch, accumulate=1, max_grad_norm=config.max_grad_norm
        )
        # DeepSpeed sets aside a buffer of 2 GB by default; everything there is to average fits into this one.
        settings["zero_optimization"]["reduce_bucket_size"] = sum(
            parameter.numel() for parameter in self.parameters
        )
        self.engine, self.optimizer = accelerator.prepare(Handover(task.adapter), optimizer)
        base = (
            self.optimizer.optimizer.optimizer
        )  # below accelerate's and DeepSpeed's: AdamW, or its twin for the CPU
        base.register_step_pre_hook(hide_unused_groups)
        base.register_step_post_hook(restore_groups)

    def thaw(self) -> None:
        """Nothing: what is frozen at first has its shards from the start."""

    def backward(self, loss: Tensor) -> None:
        """Backward pass, average over the processes, clipping and AdamW. Every process must call it."""
        learning = [p for group in self.groups if group.starts <= self.module.step for p in group.parameters]
        found: list[Tensor | None] = [None] * len(learning)
        if loss.requires_grad:
            found = list(torch.autograd.grad(loss, learning, allow_unused=True))
        own = {
            id(parameter): gradient
            for parameter, gradient in zip(learning, found, strict=True)
            if gradient is not None
        }
        counts = [float(any(id(parameter) in own for parameter in group.parameters)) for group in self.groups]
        used = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum") > 0
        gradients = [own.get(id(parameter), torch.zeros_like(parameter)) for parameter in self.parameters]
        for group, flag in zip(self.optimizer.param_groups, used.tolist(), strict=True):
            group["used"] = flag
        self.accelerator.backward(
            self.engine(self.parameters, gradients)
        )  # DeepSpeed steps in here, group by group

    def clip(self) -> float:
        """The gradient's norm before DeepSpeed clipped it by its own settings."""
        return float(self.accelerator.clip_grad_norm_(self.parameters, math.inf))

    def step(self) -> None:
        """Done in `backward`."""


def hide_unused_groups(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step of AdamW: groups that were not used have nothing to step."""
    for group in optimizer.param_groups:
        if not group["used"]:
            group["waiting"], group["params"] = group["params"], []


def restore_groups(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After it: they have their parameters back."""
    for group in optimizer.param_groups:
        if "waiting" in group:
            group["params"] = group.pop("waiting")
