"""PILA's optimiser step under DeepSpeed ZeRO-2, which keeps gradients and moments in shards.

DeepSpeed assumes that every process finds the same gradients in the same order: it packs them into a bucket as they come, and
averages buckets. A routed adapter breaks that, because the experts that run, and the order in which backward reaches them,
depend on a process's clips. Here gradients are therefore found first and then handed over in one fixed order.

DeepSpeed also steps every tensor, with a gradient of zero where there was none; AdamW alone leaves such a tensor, its moments
and its count of steps as they are. Each part that may go unused is a group of its own here, and a group that no process used
sits a step out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.pila import PilaAdapter
from ....methods.pila.afe import AnchoredFieldEstimation
from ...console import RunError
from ...loop import processes

CONTAINERS = (PilaAdapter, AnchoredFieldEstimation, nn.ModuleList, nn.ModuleDict)
"""Modules without parameters of their own, whose children are used independently of one another."""
STAGES = (1, 2)


def check_stage(accelerator: Any) -> None:
    """Raises RunError for a ZeRO stage that shards the weights too, and for one that shards nothing."""
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage not in STAGES:
        raise RunError(f"the launch asks for ZeRO stage {stage}; PILA's adapter trains with stage 2, as in zero2.yaml.")


def units(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The parts of the adapter that are used, or not, as a whole: each expert, each head, the encoder, ..."""
    for module in modules:
        if isinstance(module, CONTAINERS):
            yield from units(list(module.children()))
        else:
            yield module


class Handover(nn.Module):
    """What DeepSpeed wraps: a number whose gradient by each parameter is a tensor that was found before."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """sum of <parameter, gradient>: the same graph in every process, so DeepSpeed sees one order."""
        return torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()


class ZeroStep:
    """One stage's DeepSpeed engine around the adapter."""

    def __init__(self, accelerator: Any, adapter: PilaAdapter, optimizer: torch.optim.Optimizer, batch: int, clip: float) -> None:
        """`optimizer`'s groups are the `units`; every one of their parameters must require a gradient."""
        self.accelerator = accelerator
        self.groups = [list(group["params"]) for group in optimizer.param_groups]
        self.parameters = [parameter for group in self.groups for parameter in group]
        settings = processes.tell_deepspeed(accelerator, batch=batch, accumulate=1, clip=clip)
        # DeepSpeed sets aside a buffer of 2 GB by default; everything there is to average fits into this one.
        settings["zero_optimization"]["reduce_bucket_size"] = sum(parameter.numel() for parameter in self.parameters)
        self.engine, self.optimizer = accelerator.prepare(Handover(adapter), optimizer)
        base = self.optimizer.optimizer.optimizer  # below accelerate's and DeepSpeed's: AdamW, or its twin for the CPU
        base.register_step_pre_hook(sit_out)
        base.register_step_post_hook(come_back)

    def step(self, loss: Tensor, learning: Sequence[Tensor]) -> float:
        """Backward pass, average over the processes, clipping and AdamW; returns the gradient's norm before it was clipped.

        `learning` are the parameters that may change. Every process must call it.
        """
        found: list[Tensor | None] = [None] * len(learning)
        if loss.requires_grad:
            found = list(torch.autograd.grad(loss, learning, allow_unused=True))
        own = {id(parameter): gradient for parameter, gradient in zip(learning, found, strict=True) if gradient is not None}
        counts = [float(any(id(parameter) in own for parameter in group)) for group in self.groups]
        used = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum") > 0
        gradients = [own.get(id(parameter), torch.zeros_like(parameter)) for parameter in self.parameters]
        for group, flag in zip(self.optimizer.param_groups, used.tolist(), strict=True):
            group["used"] = flag
        self.accelerator.backward(self.engine(self.parameters, gradients))  # DeepSpeed steps in here, group by group
        norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf)  # DeepSpeed clipped by its own settings
        return float(norm)


def sit_out(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step of AdamW: groups that were not used have nothing to step."""
    for group in optimizer.param_groups:
        if not group["used"]:
            group["waiting"], group["params"] = group["params"], []


def come_back(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After it: they have their parameters back."""
    for group in optimizer.param_groups:
        if "waiting" in group:
            group["params"] = group.pop("waiting")
