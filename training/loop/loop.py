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
from typing import Any

import torch
from torch import Tensor, nn

from ..console import ProgressLine, RunError, StopRequest
from . import processes
from .checkpoint import load_state, save_state
from .config import TrainerConfig
from .log import Log, draw_curves
from .optim import ema_update, make_optimizer, rate_factor, trainable
from .processes import make_accelerator
from .task import Outcome, Run


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
