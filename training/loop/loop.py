"""The one training loop. What is trained, on what, is a `Task`.

Every random draw of a step (noise, times, dropped prompts, dropout) comes from a generator seeded by the
run's seed and the number of the micro-batch, and which clips a micro-batch takes is a function of the seed
and that number. A run that was stopped, or killed, is therefore resumed from its last checkpoint exactly as
if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import settings
from ..console import ProgressLine, StopRequest, TrainingError, saving
from . import checkpoint, processes
from .ahead import drawn_ahead, usual_ahead
from .boards import Boards
from .gradients import loss_gradients
from .log import Log
from .optim import ema_update, make_optimizer, rate_factor, set_rates, trainable
from .optimizers import optimizer_arguments
from .shown import draw_run, log_columns, progress_words
from .stepper import Plain
from .task import Outcome, Paused, Phase, Report, Run
from .validation import evaluating, held_out_sums, moved, pinned

PHASE_SEEDS = 2**40
"""Distance of the phases' seeds: more micro-batches than any phase has."""
DRAW_SECONDS = 20.0
"""Minimum seconds between redraws of the curves: drawing takes a second."""


def train(run: Run, stop: StopRequest | None = None, progress: ProgressLine | None = None) -> Outcome:
    """Trains from the last checkpoint in `run.out`, or from the start, to the last step.

    Leaves a checkpoint, log.csv and curves.png. Raises TrainingError where a setting makes no sense, the loss
    is no longer finite, GPU memory or the disk is full, or the checkpoint belongs to another run.
    """
    return Loop(run).go(stop, progress or ProgressLine("train"))


class Loop:
    """A run, brought to the state of its checkpoint; `go` takes its steps, even in `inference_mode`."""

    def __init__(self, run: Run) -> None:
        """Raises TrainingError where settings, data or the checkpoint in `run.out` do not fit."""
        settings.check(run.config)
        optimizer_arguments(run.config)
        run.accelerator = run.accelerator or processes.make_accelerator(run.config)
        self.run, self.config, self.task, self.accelerator = run, run.config, run.task, run.accelerator
        self.phases = run.task.phases or (Phase(name="", steps=run.config.steps),)
        self.step, self.seconds, self.saved = 0, 0.0, 0
        self.row: dict[str, float] = {}
        self.found: dict[str, float] = {}
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.best_found: dict[str, float] = {}
        self.best_step, self.best_score, self._drawn = 0, math.inf, 0.0
        self._whole = True  # whether no step is half done
        with torch.inference_mode(False), torch.enable_grad():
            self.task.placed(self.accelerator)
            self.task.module.train()
            self._names = tuple(trainable(self.task.module))
            self._resume()
        self.log = self._open_log()

    # --- where the run is -----------------------------------------------------------------------------------

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def planned(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def place(self) -> tuple[int, int]:
        """(phase, step within it) of the next step; at the very end the last phase, after its last step."""
        step = self.step
        for index, phase in enumerate(self.phases[:-1]):
            if step < phase.steps:
                return index, step
            step -= phase.steps
        return len(self.phases) - 1, step

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]: by steps or by time, whichever ends first."""
        return min(1.0, max(self.step / self.planned, self._timed))

    @property
    def _timed(self) -> float:
        return self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0

    @property
    def finished(self) -> bool:
        """Whether all steps are done or the time is used up."""
        return self.fraction >= 1

    @property
    def safe(self) -> str:
        """Says which checkpoint survives a failure."""
        if not self.saved:
            return "no checkpoint was written before"
        return f"the checkpoint of step {self.saved} is safe"

    def trained(self) -> dict[str, Tensor]:
        """Everything that any phase trains, by name."""
        values = dict(self.accelerator.unwrap_model(self.task.module).named_parameters())
        return {name: values[name] for name in self._names}

    def kept(self) -> dict[str, Tensor]:
        """The weights to export: the best ones or the last ones, averaged where there is an average."""
        return self.best or self.average or self.trained()

    def report(self) -> Report:
        """Progress of the run."""
        return Report(
            step=self.step, fraction=self.fraction, seconds=self.seconds, row=self.row, found=self.found,
            kept_step=self.best_step if self.best else self.step,
            kept=self.best_found if self.best else self.found,
        )  # fmt: skip

    # --- resuming -------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Restores the run from its checkpoint, or begins it."""
        found = None
        if self.run.out is not None:
            self.run.out.mkdir(parents=True, exist_ok=True)
            found = checkpoint.read_state(self.run, processes.deepspeed(self.accelerator))
        if found is not None:  # weights first: DeepSpeed copies them into its shards when the phase begins
            self.step, self.saved = found.progress["step"], found.progress["step"]
            self.seconds, self.found = found.progress["seconds"], found.progress["found"]
            checkpoint.fill(self.trained(), found.states["model"], found.path)
            checkpoint.fill(self.task.state(), found.states["task"], found.path)
        self._begin_phase()
        if self.config.ema:
            self.average = {name: value.detach().float().clone() for name, value in self.trained().items()}
        if found is None:
            return
        checkpoint.fill(self.average, found.states["average"], found.path)
        if found.states["best"]:
            saved, values = found.states["best"], self.trained()
            self.best = {name: checkpoint.like(saved[name], value) for name, value in values.items()}
            best = found.progress["best"]
            self.best_step, self.best_score, self.best_found = best["step"], best["score"], best["found"]
        self._load_optimizer(found)

    def _load_optimizer(self, found: checkpoint.Saved) -> None:
        if found.progress["shards"] is None:
            return
        if self.stepper.sharded:
            processes.load_shards(self.accelerator, self.run.out / checkpoint.SHARDS, self.step)
        else:
            checkpoint.fill_optimizer(self.stepper.optimizer, found.states["optimizer"], found.groups)
        if found.progress["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.progress["scaler"])

    def _begin_phase(self) -> None:
        """Chooses what learns, with a new optimiser."""
        self.phase, step = self.place
        self.task.begin(self.phase)
        self.groups = self.task.groups(self.config)
        learning = {id(value) for group in self.groups for value in group.parameters}
        for value in self.trained().values():
            value.requires_grad_(id(value) in learning)
        self.stepper = None  # the one before lets go of the gradients it averages
        build = self.run.stepper or Plain
        if not build.starts_together:
            self._thaw(step)
        optimizer = make_optimizer(self.groups, self.config)
        self.stepper = build(self.accelerator, self.task, optimizer, self.groups, self.config)

    def _thaw(self, step: int) -> None:
        """Lets those groups learn whose time has come."""
        for group in self.groups:
            for value in group.parameters:
                value.requires_grad_(group.starts <= step)

    # --- the steps ------------------------------------------------------------------------------------------

    def go(self, stop: StopRequest | None = None, progress: ProgressLine | None = None) -> Outcome:
        """Runs to the end, the next step after a stop request, or the observer's False; then saves."""
        self.progress, ended = progress, False
        self.boards = Boards(self.run, self.step)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            if self.step == 0 and self.config.validate_first:
                self._validate(first=True)
            while not (self.finished or ended or processes.stopping(self.accelerator, stop)):
                try:
                    ended = self._run_phase(stop)
                except Paused:
                    self._save()
                    raise
            # A finished run keeps its optimiser for a longer one.
            if self.step != self.saved or not self.saved:
                self._save()
        for shown in filter(None, (self.progress, self.boards)):
            shown.close()
        out = self.run.out / checkpoint.CHECKPOINT if self.run.out else None
        return Outcome(step=self.step, stopped=not self.finished, checkpoint=out, losses={**self.row})

    def _run_phase(self, stop: StopRequest | None) -> bool:
        """Steps to the end of the phase, or of the run; returns whether the observer ended it."""
        phase, step = self.place
        end = self.phases[phase].steps
        accumulate, began, before = self.config.accumulate, time.monotonic(), self.seconds
        ahead = 0 if self.task.live_draws else usual_ahead(self.config.read_ahead, self.accelerator.device)
        draws = (self._draw, step * accumulate, end * accumulate, ahead)
        with drawn_ahead(*draws) as following:
            while step < end and not self.finished and not processes.stopping(self.accelerator, stop):
                self.row = self._one_step(following, step)
                self.step, step = self.step + 1, step + 1
                self.seconds = before + time.monotonic() - began
                self._after_step(phase, phase_done=step == end)
                if self.run.on_step is not None and self._observe() is False:
                    return True
        return False

    def _after_step(self, phase: int, phase_done: bool) -> None:
        """Validates, logs, saves and begins the next phase, each when it is time."""
        done = phase_done or self.finished
        if done or self.step % self.config.validate_every == 0:
            self._validate()
        several = {"phase": phase} if len(self.phases) > 1 else {}
        self._note(several | self.row | {"seconds": round(self.seconds, 3)})
        if phase_done and phase + 1 < len(self.phases):
            self._begin_phase()
        keeps = self.config.keep_every and self.step % self.config.keep_every == 0
        if done or keeps or self.step % self.config.save_every == 0:
            self._save()

    def _observe(self) -> bool | None:
        try:
            return self.run.on_step(self.report())
        except BaseException:
            self._save()
            raise

    def _one_step(self, following: Any, step: int) -> dict[str, float]:
        """`_step`, with a GPU that is too small said in one sentence, once the state is saved."""
        self._whole = True
        try:
            return self._step(following, step)
        except torch.OutOfMemoryError as error:
            alone = self.accelerator.num_processes == 1  # others may wait for this process inside a step
            if self._whole and alone and self.step != self.saved:
                self._save()
            raise TrainingError(
                f"The GPU's memory does not hold step {self.step + 1} at batch {self.config.batch}; "
                f"{self.safe}: use a smaller batch, fewer frames or pixels, or bf16."
            ) from error

    def _step(self, following: Any, step: int) -> dict[str, float]:
        """Accumulates micro-batches, takes one optimiser step and returns what to log."""
        config, accelerator, stepper = self.config, self.accelerator, self.stepper
        if any(0 < group.starts == step for group in self.groups):
            if not stepper.starts_together:
                self._thaw(step)
            stepper.thaw()
        phase = self.phases[self.phase]
        scale = 1.0 if phase.constant else rate_factor(config, step, max(step / phase.steps, self._timed))
        set_rates(stepper.optimizer, scale)
        weights = self.task.weights(step)
        sums: dict[str, list[float]] = {}
        for micro in range(config.accumulate):
            arguments = moved(following(), accelerator.device)
            # What the module itself draws: a LoRA's dropout.
            torch.manual_seed(self._seed(step * config.accumulate + micro))
            with accelerator.accumulate(stepper.module):
                outputs = stepper.module(*arguments)
                total = sum(factor * outputs[name] for name, factor in weights.items() if name in outputs)
                values = self._reduced({"loss": total, **outputs})
                self._check(values, weights)
                if config.gradient_norms and micro == 0 and (self.step + 1) % config.gradient_norms == 0:
                    values |= loss_gradients(outputs, weights, self.groups)
                stepper.backward(total)
                for name, value in values.items():
                    sums.setdefault(name, []).append(value)
                if accelerator.sync_gradients:
                    norm = stepper.clip()
                    if config.precision != "fp16":  # its scaler skips such a step
                        self._check({"gradient": norm}, {})
                    self._whole = False
                    stepper.step()
        if self.average:
            ema_update(self.average, self.trained(), config.ema, self.step)
        row = {name: sum(values) / len(values) for name, values in sums.items()}
        rate = float(stepper.optimizer.param_groups[0]["lr"])
        return self.task.derive(row) | {"rate": rate, self.task.norm_name: norm}

    def _reduced(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes."""
        values = torch.stack([value.detach().float() for value in outputs.values()]).tolist()
        return processes.mean_row(self.accelerator, dict(zip(outputs, values)), ["loss", *self.task.names])

    def _check(self, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Raises TrainingError where a loss or the gradient is not finite, before anything was changed."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            name = next((name for name in bad if name in weights), bad[0])
            what = name if name in ("loss", "gradient") else f"{name} loss"
            raise TrainingError(
                f"The {what} is {values[name]} at step {self.step + 1}; {self.safe}: lower the learning rate "
                f"({self.config.learning_rate:g}) or use bf16."
            )

    def _number(self, micro: int) -> int:
        """The number of a micro-batch among those of all processes."""
        if self.task.shared_draws:
            return micro
        return micro * self.accelerator.num_processes + self.accelerator.process_index

    def _seed(self, micro: int) -> int:
        return (self.config.seed * 1_000_003 + self.phase * PHASE_SEEDS + self._number(micro)) % 2**63

    def _draw(self, micro: int) -> tuple[Any, ...]:
        """The arguments of one micro-batch's forward pass."""
        drawn = self.task.draw(self._number(micro), torch.Generator().manual_seed(self._seed(micro)))
        return pinned(drawn, self.accelerator.device)

    # --- validation -----------------------------------------------------------------------------------------

    def _validate(self, first: bool = False) -> None:
        """Measures held-out data, with the same draws every time; remembers the best weights."""
        count = min(self.task.validation_count, self.config.validation_clips)
        with evaluating(self.accelerator, self.stepper.module, self.average, self.trained):
            if count:
                measured = (self.stepper.module, self.task, count, self.config.seed)
                sums = held_out_sums(self.accelerator, *measured)
                self.found = self.task.metrics(sums, count)
            self.task.show(self.step, self.run.out if self.main else None)
        if not count:
            return
        self.row = {**self.row, **self.found}
        if first:  # untrained weights are no candidates: a predictor's may be the constant zero
            with saving(checkpoint.LOG, self.safe):
                self.log.add(step=0, **self.found)
            return
        score = self.task.score(self.found)
        if self.config.keep == "best" and score is not None and score < self.best_score:
            weights = self.average or self.trained()
            self.best = {name: value.detach().clone() for name, value in weights.items()}
            self.best_step, self.best_score, self.best_found = self.step, score, dict(self.found)

    # --- files ----------------------------------------------------------------------------------------------

    def _open_log(self) -> Log:
        path = self.run.out / checkpoint.LOG if self.main and self.run.out else None
        with saving(checkpoint.LOG, self.safe):
            return Log(path, log_columns(self.task, self.phases, self.config), after=self.step)

    def _note(self, row: Mapping[str, float]) -> None:
        if not self.main:
            return
        with saving(checkpoint.LOG, self.safe):
            self.log.add(step=self.step, **row)
        self.boards.add(row, self.step)
        if self.progress is not None:
            self._show(row)

    def _show(self, row: Mapping[str, float]) -> None:
        where = f"step {self.step}/{self.planned}"
        words = progress_words(self.task, self.phases[self.place[0]], where, {**self.found, **row})
        self.progress.show(self.fraction, words, self.seconds * (1 - self.fraction) / self.fraction)

    def _save(self) -> None:
        """Checkpoint, the task's own files and curves, each all or nothing. Every process must call it."""
        if (out := self.run.out) is None:
            return
        task = self.task.state()
        states = {"model": self.trained(), "average": self.average, "best": self.best, "task": task}
        phase, step = self.place
        best = {"step": self.best_step, "score": self.best_score, "found": self.best_found}
        progress = {"step": self.step, "phase": phase, "seconds": self.seconds, "found": self.found}
        progress["best"] = best if self.best else None
        # New at the start of a phase: nothing to keep.
        optimizer = self.stepper.optimizer if step > 0 else None
        sharded = self.stepper.sharded
        checkpoint.save_state(self.run, states, optimizer, progress, sharded=sharded, safe=self.safe)
        self.saved = self.step
        if not self.main:
            return
        with saving(f"the files in {out}", self.safe):
            self.task.write(out, self.kept(), self.report())
            if self.finished or time.monotonic() - self._drawn >= DRAW_SECONDS:
                self._drawn = time.monotonic()
                draw_run(self.log, out, self.task, self.step)
