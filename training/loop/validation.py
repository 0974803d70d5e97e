"""Passes over held-out data, spread over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .optim import exchange
from .task import Task


@contextmanager
def evaluating(
    accelerator: Any,
    module: nn.Module,
    average: Mapping[str, Tensor],
    trained: Callable[[], Mapping[str, Tensor]],
) -> Iterator[None]:
    """The module in evaluation mode, without gradients; meanwhile `trained` holds the average."""
    with torch.no_grad(), accelerator.autocast():
        swap(module, average, trained)
        module.eval()
        try:
            yield
        finally:
            module.train()
            swap(module, average, trained)


def swap(
    module: nn.Module, average: Mapping[str, Tensor], trained: Callable[[], Mapping[str, Tensor]]
) -> None:
    """Exchanges average and values. FSDP2 may hold gathered copies of its shards: they would hide what is
    written into the shards.
    """
    if average:
        for part in module.modules():
            if hasattr(part, "reshard"):
                part.reshard()
        exchange(average, trained())


def held_out_sums(accelerator: Any, module: nn.Module, task: Task, count: int, seed: int) -> dict[str, float]:
    """Sums of the module's outputs over `count` validation micro-batches, with the same draws every time."""
    sums: dict[str, Tensor] = {}
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    # Every process makes as many forward passes as every other: sharded modules need all of them.
    spare = -(-count // accelerator.num_processes) - len(mine)
    for place, counts in [*((place, 1.0) for place in mine), *[(0, 0.0)] * spare]:
        generator = torch.Generator().manual_seed(seed * 7_919 + place)
        outputs = module(*moved(task.draw_validation(place, generator), accelerator.device))
        for name, value in outputs.items():
            sums[name] = sums.get(name, 0) + counts * value.float()
    return {name: accelerator.reduce(value, "sum").item() for name, value in sums.items()}


def moved(arguments: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """The arguments of a forward pass on the device; the processor waits for no pinned tensor's copy."""
    return tuple(
        value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
        for value in arguments
    )


def pinned(arguments: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """The arguments in pages that a CUDA GPU reads by itself, for `moved`; as they are for other devices, and
    where a thing has no `pin_memory`."""
    if device.type != "cuda":
        return arguments
    return tuple(value.pin_memory() if hasattr(value, "pin_memory") else value for value in arguments)
