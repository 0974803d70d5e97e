"""Helpers around accelerate and DeepSpeed; all of it works in a single process too, there without
accelerate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import StopRequest, TrainingError
from .config import LoopConfig


def start(
    precision: str = "no",
    accumulate: int = 1,
    device: str = "auto",
    handlers: Sequence[Any] = (),
    log_with: Sequence[str] = (),
) -> Any:
    """accelerate's Accelerator as the launcher's environment wants it (torchrun, accelerate launch, or
    neither).

    `precision` is "no", "bf16" or "fp16". `device` "auto" takes the GPU where there is one; in a run of
    several processes "cuda" means each process's own GPU. `handlers` are accelerate's kwargs handlers,
    `log_with` its trackers.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(
        reset_partial_state=False
    )  # an earlier run in this process may have had another precision
    cpu = device == "cpu" or (
        device == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=cpu or None,
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=list(handlers),
        log_with=list(log_with) or None,
    )


class OneProcess:
    """accelerate's Accelerator for a single process, without accelerate, which ComfyUI's users need not have.

    Mixed precision is the module's own business here.
    """

    num_processes, process_index, is_main_process = 1, 0, True
    distributed_type, scaler = "NO", None

    def __init__(self, device: str | torch.device = "cpu", accumulate: int = 1) -> None:
        self.device, self._accumulate, self._micro = torch.device(device), accumulate, 0

    @property
    def sync_gradients(self) -> bool:
        """Whether this micro-batch is the last one of its step."""
        return self._micro % self._accumulate == 0

    @contextmanager
    def accumulate(self, module: nn.Module) -> Iterator[None]:
        """One micro-batch of a step."""
        self._micro += 1
        yield

    def prepare(self, module: nn.Module, *others: Any) -> Any:
        """The module on the device, and the others as they are."""
        return (module.to(self.device), *others) if others else module.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Adds a micro-batch's gradients."""
        (loss / self._accumulate if self._accumulate > 1 else loss).backward()

    def clip_grad_norm_(self, parameters: Sequence[Tensor], norm: float) -> Tensor:
        """torch's own."""
        return nn.utils.clip_grad_norm_(parameters, norm)

    def reduce(self, value: Tensor, how: str = "sum") -> Tensor:
        """The sum, or the mean, over one process."""
        return value

    def unwrap_model(self, module: nn.Module) -> nn.Module:
        """The module."""
        return module

    def autocast(self) -> Any:
        """Nothing."""
        return nullcontext()

    def wait_for_everyone(self) -> None:
        """Nobody to wait for."""

    def print(self, *words: Any) -> None:
        """Prints."""
        print(*words)


def place_among() -> tuple[int, int]:
    """(number of this process, count of processes), as accelerate launch and torchrun say it in the
    environment; (0, 1) for a process of its own.

    Nothing is started: it is for work that needs no word between processes.
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_gpu() -> None:
    """Makes "cuda" mean this process's own GPU among those of its machine, in a launch of several."""
    if place_among()[1] > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


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


# --- DeepSpeed ----------------------------------------------------------------------------------------------


def deepspeed(accelerator: Any) -> bool:
    """Whether the launch uses DeepSpeed, which keeps the optimiser's state in shards."""
    return "DEEPSPEED" in str(accelerator.distributed_type)


def configure_deepspeed(
    accelerator: Any, *, batch: int, accumulate: int, max_grad_norm: float
) -> dict[str, Any]:
    """Copies batch, accumulation and clipping into DeepSpeed's settings, which `prepare` reads, and returns
    those; {} without DeepSpeed."""
    if not deepspeed(accelerator):
        return {}
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings |= {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": max_grad_norm,
    }
    return settings


def save_shards(accelerator: Any, folder: Path, step: int) -> None:
    """Writes DeepSpeed's own checkpoint, which its sharded optimiser needs, under a name that appears when it
    is whole.

    Every process must call it. `drop_shards` deletes the one before once nothing names it any more.
    """
    final, partial = folder / f"{step:06}", folder / f"{step:06}.partial"
    accelerator.save_state(os.fspath(partial))
    accelerator.wait_for_everyone()  # every process has written its part
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    accelerator.wait_for_everyone()


def drop_shards(folder: Path, keep: int | None = None) -> None:
    """Deletes DeepSpeed's checkpoints but the one of step `keep`. For one process only."""
    for old in folder.glob("*"):
        if keep is None or old.name != f"{keep:06}":
            shutil.rmtree(old, ignore_errors=True)


def load_shards(accelerator: Any, folder: Path, step: int) -> None:
    """Brings DeepSpeed's engine to its checkpoint of `step`. Raises TrainingError where there is none."""
    path = folder / f"{step:06}"
    if not path.is_dir():
        raise TrainingError(
            f"{path} is missing; it holds the optimiser's state at that step: begin again with another --out."
        )
    accelerator.load_state(os.fspath(path))


def pick_device(name: str) -> str:
    """ "auto" -> "cuda", "mps" or "cpu", whichever is there; other names are returned as they are.

    Raises TrainingError where the name is no device, or a GPU is asked for and there is none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise TrainingError(f"device is {name!r}; use auto, cpu, mps, cuda or cuda:N.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device is {name!r}, but torch sees no CUDA GPU; use --device cpu.")
    return name


def make_accelerator(config: LoopConfig, unused: bool = False) -> Any:
    """accelerate's Accelerator as the launcher's environment and `config` want it. Raises TrainingError for
    fp16 without a GPU.

    unused: whether several processes must not wait for every parameter's gradient, as some have none.

    Processes wait for one another for days: one may be caching videos, or be the last one with teachers'
    features.
    """
    from accelerate import DistributedDataParallelKwargs
    from accelerate.utils import InitProcessGroupKwargs

    gpu = torch.cuda.is_available()
    if config.precision == "fp16" and not gpu:
        raise TrainingError("precision is fp16, which needs a CUDA GPU; use bf16 or no.")
    patience = InitProcessGroupKwargs(timeout=timedelta(days=4))
    handlers = [patience, DistributedDataParallelKwargs(find_unused_parameters=unused)]
    where = "auto" if gpu else "cpu"
    return start(config.precision, config.accumulate, where, handlers=handlers, log_with=config.log_with)
