"""What the processes of one run settle among themselves; all of it works in a single process too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .run import StopRequest


def start(precision: str = "no", accumulate: int = 1, device: str = "auto", handlers: Sequence[Any] = ()) -> Any:
    """accelerate's Accelerator as the launcher's environment wants it (torchrun, accelerate launch, or neither).

    `precision` is "no", "bf16" or "fp16". `device` "auto" takes the GPU where there is one; in a run of several processes
    "cuda" means each process's own GPU. `handlers` are accelerate's kwargs handlers.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)  # an earlier run in this process may have had another precision
    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available())
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=cpu or None, mixed_precision=precision, gradient_accumulation_steps=accumulate, kwargs_handlers=list(handlers)
    )


def stopping(accelerator: Any, stop: StopRequest | None) -> bool:
    """Whether any process was asked to stop. Every process must ask."""
    asked = stop is not None and stop.asked
    if accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor([float(asked)], device=accelerator.device), "sum").item() > 0)


def mean_row(accelerator: Any, row: Mapping[str, float], columns: Sequence[str]) -> dict[str, float]:
    """A row of the log averaged over the processes that have each column. Every process must take part."""
    if accelerator.num_processes == 1:
        return dict(row)
    pairs = [[row[name], 1.0] if name in row else [0.0, 0.0] for name in columns]
    sums = accelerator.reduce(torch.tensor(pairs, device=accelerator.device), "sum").tolist()
    return {name: total / count for name, (total, count) in zip(columns, sums) if count}
