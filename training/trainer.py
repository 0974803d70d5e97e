"""The one training loop. What is trained, on what, is a `Task`; fine-tuning and MoAlign's motion head are two of them.

Every random draw of a step (noise, times, dropped prompts, dropout) comes from a generator seeded by the run's seed and the
number of the micro-batch, and which clips a micro-batch takes is a function of the seed and that number. A run that was
stopped, or killed, therefore goes on from its last checkpoint exactly as if nothing had happened.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import processes
from .run import Log, ProgressLine, RunError, StopRequest, draw_curves
from .trainer_state import load_state, save_state
from .trainer_tune import ema_update, trainable


@dataclass(kw_only=True)
class TrainerConfig:
    """How to train; what to train with is in `FinetuneConfig`."""

    steps: int = 2000
    """Optimiser steps."""
    batch: int = 1
    """Clips per micro-batch and process."""
    accumulate: int = 1
    """Micro-batches per step."""
    rate: float = 2e-6
    """Learning rate."""
    projector_rate: float = 0.0
    """Learning rate of the objectives' projectors; 0 takes `rate`."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up; "cosine" falls to a tenth."""
    weight_decay: float = 1e-2
    """AdamW's."""
    beta1: float = 0.9
    """AdamW's."""
    beta2: float = 0.95
    """AdamW's."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay of an exponential moving average of what is trained; 0 keeps none. The average is what gets exported."""
    drop_prompt: float = 0.0
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision: bf16 or fp16 arithmetic over float32 weights that are trained."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for one more forward pass."""
    seed: int = 0
    """Seeds every random draw."""
    held_out: float = 0.05
    """Share of the films kept for validation; 0 for none."""
    validate_every: int = 100
    """Steps between validations, always on the same noise and times."""
    validation_clips: int = 16
    """At most so many clips per validation."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_every: int = 0
    """Also keep the checkpoint of every so many steps under a name of its own; 0 keeps the last only."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""


class Task:
    """What a run trains: a module whose forward pass gives losses by name, and the micro-batches it is shown."""

    module: nn.Module
    names: tuple[str, ...]
    """Of the losses, the main one first."""
    slow: tuple[str, ...] = ()
    """Prefixes of parameters that train at `projector_rate`."""
    latent_space: str
    about: dict[str, Any]
    """What the checkpoint says of the run; a resumed run must say the same."""
    validation_count: int = 0
    """How many validation micro-batches there are."""

    def weights(self, step: int) -> Mapping[str, float]:
        """Factors of the losses on a step, counted from 0."""
        return dict.fromkeys(self.names, 1.0)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Arguments of the module's forward pass for micro-batch `number` of an endless sequence: tensors, or things with
        `.to(device)`."""
        raise NotImplementedError

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Any, ...]:
        """The same for validation micro-batch `place`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the data."""
        raise NotImplementedError

    def placed(self, device: torch.device) -> None:
        """Called once the module is on its device."""

    def state(self) -> Mapping[str, Tensor]:
        """Tensors beyond the trained parameters that a resumed run needs; they are saved, and written into on resuming."""
        return {}

    def show(self, step: int, folder: Path | None) -> None:
        """Called by every process after each validation, without gradients: a chance to write samples into `folder`.

        Only one process is given a folder.
        """


@dataclass(kw_only=True)
class Outcome:
    """What `train` leaves."""

    step: int
    """Steps done."""
    stopped: bool
    """Whether it was stopped before the end."""
    checkpoint: Path
    """The last checkpoint."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last row of the log."""


@dataclass(kw_only=True)
class Run:
    """The parts of a run."""

    config: TrainerConfig
    task: Task
    out: Path
    """Folder for checkpoints, log.csv and curves.png."""
    accelerator: Any = None
    """accelerate's Accelerator; made where None."""


def train(run: Run, stop: StopRequest | None = None, progress: ProgressLine | None = None) -> Outcome:
    """Trains from the last checkpoint in `run.out`, or from the start, to the last step.

    Leaves a checkpoint, log.csv and curves.png. Raises RunError where a setting makes no sense, the loss is no longer finite, a
    file cannot be written, or the checkpoint belongs to another run.
    """
    config, task = run.config, run.task
    check_config(config)
    run.out.mkdir(parents=True, exist_ok=True)
    accelerator = run.accelerator = run.accelerator or make_accelerator(config)
    task.module.train()
    optimizer = make_optimizer(task, config)
    processes.tell_deepspeed(accelerator, batch=config.batch, accumulate=config.accumulate, clip=config.clip)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    task.placed(accelerator.device)
    average: dict[str, Tensor] = {}
    if config.ema:
        average = {name: value.detach().clone().float() for name, value in trainable(accelerator.unwrap_model(module)).items()}
    done = load_state(run, module, optimizer, average)
    loop = Loop(run, module, optimizer, average, done, progress or ProgressLine("train"))
    return loop.go(stop or StopRequest())


def make_accelerator(config: TrainerConfig) -> Any:
    """accelerate's Accelerator as the launcher's environment and `config` want it. Raises RunError for fp16 without a GPU.

    Processes wait for one another for days: one may be caching videos, or be the last one with teachers' features.
    """
    from accelerate.utils import InitProcessGroupKwargs

    gpu = torch.cuda.is_available()
    if config.precision == "fp16" and not gpu:
        raise RunError("precision is fp16, which needs a CUDA GPU; use bf16 or no.")
    patience = InitProcessGroupKwargs(timeout=timedelta(days=4))
    return processes.start(config.precision, config.accumulate, "auto" if gpu else "cpu", handlers=[patience])


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


class Loop:
    """The steps of a run."""

    def __init__(
        self, run: Run, module: nn.Module, optimizer: Any, average: dict[str, Tensor], done: int, progress: ProgressLine
    ) -> None:
        self.run, self.config, self.accelerator = run, run.config, run.accelerator
        self.module, self.optimizer, self.average, self.step, self.progress = module, optimizer, average, done, progress
        names = run.task.names
        self.columns = ["loss", *names, *(f"val_{name}" for name in names), "rate", "gradient", "seconds"]
        self.log = Log(run.out / "log.csv" if self.main else None, self.columns, after=done)
        self.board = self._board()

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    def go(self, stop: StopRequest) -> Outcome:
        """Runs to the end, or to the next step after a stop request."""
        config = self.config
        values: dict[str, float] = self.log.rows[-1] if self.log.rows else {}
        while self.step < config.steps and not processes.stopping(self.accelerator, stop):
            start = time.monotonic()
            values = self._one_step()
            self.step += 1
            last = self.step == config.steps
            if last or self.step % config.validate_every == 0:
                self._validate(values)
                self._show()
            values["seconds"] = time.monotonic() - start
            self._note(values)
            if last or self.step % config.save_every == 0:
                self._save()
        stopped = self.step < config.steps
        if stopped:
            self._save()
        self.progress.close()
        if self.board is not None:
            self.board.close()
        return Outcome(step=self.step, stopped=stopped, checkpoint=self.run.out / "checkpoint.safetensors", losses=values)

    def _one_step(self) -> dict[str, float]:
        """Accumulates micro-batches and takes one optimiser step; returns what to log."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate_factor(config, self.step)
        sums: dict[str, Tensor] = {}
        norm = torch.zeros(())
        for micro in range(config.accumulate):
            with accelerator.accumulate(self.module):
                losses = self.module(*self._draw(micro))
                weights = self.run.task.weights(self.step)
                total = sum(weights[name] * value for name, value in losses.items())
                accelerator.backward(total)
                for name, value in {"loss": total, **losses}.items():
                    sums[name] = sums.get(name, 0) + value.detach().float() / config.accumulate
                if accelerator.sync_gradients:
                    norm = self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        values = {name: accelerator.reduce(value, "mean").item() for name, value in sums.items()}
        self._check(values, norm)
        if self.average:
            ema_update(self.average, trainable(accelerator.unwrap_model(self.module)), config.ema, self.step)
        return {**values, "rate": self.optimizer.param_groups[0]["lr"], "gradient": float(norm)}

    def _clip(self) -> Tensor:
        """The gradient's norm, clipped where the config wants it."""
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip or math.inf)
        return torch.zeros(()) if norm is None else norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _check(self, values: Mapping[str, float], norm: Tensor) -> None:
        """Raises RunError where a loss is not finite. fp16 skips steps whose gradient overflows, so there it may be infinite."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad and (math.isfinite(float(norm)) or self.config.precision == "fp16"):
            return
        name = next((name for name in bad if name != "loss"), bad[0] if bad else "gradient")
        raise RunError(
            f"the {name} loss is {values.get(name, float(norm))} at step {self.step + 1}; lower the learning rate or use bf16. "
            f"The checkpoint in {self.run.out} is from before."
        )

    def _draw(self, micro: int) -> tuple[Any, ...]:
        """The arguments of one micro-batch's forward pass; also seeds what the module itself draws (a LoRA's dropout)."""
        config, accelerator = self.config, self.accelerator
        number = (self.step * config.accumulate + micro) * accelerator.num_processes + accelerator.process_index
        seed = (config.seed * 1_000_003 + number) % 2**63
        torch.manual_seed(seed)
        return self._moved(self.run.task.draw(number, torch.Generator().manual_seed(seed)))

    def _moved(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(self.accelerator.device) for value in args)

    @torch.no_grad()
    def _validate(self, values: dict[str, float]) -> None:
        """Losses on held-out data with the same draws every time, spread over the processes."""
        task, config, accelerator = self.run.task, self.config, self.accelerator
        count = min(task.validation_count, config.validation_clips)
        if not count:
            return
        self.module.eval()
        sums = dict.fromkeys(task.names, torch.zeros((), device=accelerator.device))
        mine = range(accelerator.process_index, count, accelerator.num_processes)
        # Every process makes as many forward passes as every other: sharded modules need all of them.
        spare = -(-count // accelerator.num_processes) - len(mine)
        for place, counts in [*((place, 1.0) for place in mine), *[(0, 0.0)] * spare]:
            generator = torch.Generator().manual_seed(config.seed * 7_919 + place)
            with accelerator.autocast():
                losses = self.module(*self._moved(task.draw_validation(place, generator)))
            sums = {name: value + counts * losses[name].float() for name, value in sums.items()}
        for name, value in sums.items():
            values[f"val_{name}"] = accelerator.reduce(value, "sum").item() / count
        self.module.train()

    @torch.no_grad()
    def _show(self) -> None:
        self.module.eval()
        with self.accelerator.autocast():
            self.run.task.show(self.step, self.run.out if self.main else None)
        self.module.train()

    def _note(self, values: Mapping[str, float]) -> None:
        if not self.main:
            return
        self.log.add(step=self.step, **values)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(
                    name.replace("val_", "validation/") if name.startswith("val_") else f"training/{name}", value, self.step
                )
        shown = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", *self.run.task.names[1:]) if name in values)
        self.progress.show(self.step / self.config.steps, f"step {self.step}/{self.config.steps} {shown}")

    def _save(self) -> None:
        save_state(self.run, self.module, self.optimizer, self.average, self.step)
        if self.main:
            panels = {name: [name, f"val_{name}"] for name in self.run.task.names} | {"gradient": ["gradient"]}
            draw_curves(self.log, self.run.out / "curves.png", panels, title=self.run.task.about.get("recipe", ""))

    def _board(self) -> Any:
        """TensorBoard's writer, or None."""
        if not (self.main and self.config.tensorboard):
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(os.fspath(self.run.out / "tensorboard"), purge_step=self.step + 1 if self.step else None)


def check_config(config: TrainerConfig) -> None:
    """Raises RunError for settings that do not make sense, before anything is loaded or written."""
    for name in ("steps", "batch", "accumulate", "validate_every", "save_every"):
        if getattr(config, name) < 1:
            raise RunError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if not config.rate > 0 or not math.isfinite(config.rate):
        raise RunError(f"rate is {config.rate}; it must be above 0.")
    for name in ("ema", "drop_prompt", "held_out", "beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise RunError(f"{name} is {getattr(config, name)}; it must be at least 0 and below 1.")
    for name in ("warmup", "weight_decay", "clip", "projector_rate", "validation_clips", "keep_every"):
        if not 0 <= getattr(config, name) < math.inf:
            raise RunError(f"{name} is {getattr(config, name)}; it must be at least 0.")
