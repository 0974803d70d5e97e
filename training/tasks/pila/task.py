"""One run of PILA's training: its loop over stages and steps, in one process or several.

Every random draw is a function of (seed, stage, step), and each process takes its own stretch of what is drawn for all.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.pila import CATEGORIES, PilaConfig
from ....methods.pila.losses.objective import AdaptiveWeights
from ....methods.pila.losses.recovery import dead_slots
from ...console import ProgressLine, RunError, StopRequest, clock, saving
from ...loop import processes
from ...loop.log import Log
from ...loop.processes import pick_device
from .columns import COLUMNS, LOG, RunFiles
from .data import Batch, PilaClips, shuffled_index
from .losses import FORMULAS, StageLoss, variation
from .settings import PilaTraining, check
from .stages import FULL, GROUPS, Method, draw_sigma, parts_of, rate_factor, stages_of
from .zero import ZeroStep, check_stage, units


def make_accelerator(config: PilaTraining, device: str | None = None) -> Any:
    """accelerate's Accelerator for a run; `device` goes before the config's. Raises RunError where the launch shards weights.

    Mixed precision is the run's own business (`PilaRun.autocast`), so that weights and fields stay float32 under DeepSpeed too.
    """
    from accelerate import DistributedDataParallelKwargs

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise RunError("PILA's adapter takes 48 MB, nothing worth sharding; launch it with ddp.yaml or zero2.yaml.")
    # A step uses the experts that its clips are routed to, so some parameters get no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = processes.start("no", device=pick_device(device or config.device), handlers=[unused])
    if processes.deepspeed(accelerator):
        check_stage(accelerator)
    return accelerator


class PilaRun:
    """One training run. `backbone` is any object with `predict`, `latent_space`, `prediction`, `device` (training/backbones)."""

    _stage_loss: nn.Module | None = None
    _zero: ZeroStep | None = None
    _slow_learns = False

    def __init__(
        self,
        backbone: Any,
        clips: PilaClips,
        config: PilaTraining,
        adapter: PilaConfig,
        folder: Path | None = None,
        accelerator: Any = None,
        method: Method = FULL,
    ) -> None:
        """Raises RunError where backbone, clips, settings or the run in `folder` do not fit."""
        check(config)
        if backbone.prediction != "flow":
            raise RunError(f"PILA corrects a flow's velocity; the {backbone.family} backbone predicts {backbone.prediction!r}.")
        self.backbone, self.clips, self.config, self.folder, self.method = backbone, clips, config, folder, method
        self.adapter_config = replace(adapter, channels=clips.channels, cond_dim=clips.cond_dim)
        self.accelerator = accelerator or make_accelerator(config, str(backbone.device))
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.sharded = processes.deepspeed(self.accelerator)
        self.device = self.accelerator.device
        self.held = min(config.validation, len(clips) // 4)
        self.stages = stages_of(config, method)
        self.stage, self.step, self.seconds, self.val_gain = 0, 0, 0.0, None
        self.findings: dict[str, Any] = {}
        """What the last validation found: free slots that are constant, and experts that no held-out clip was routed to."""
        self._epochs: dict[tuple[int, int], Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adapter = method.adapter(self.adapter_config).to(self.device)
        self.weights = AdaptiveWeights(adaptive=config.adaptive).to(self.device)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.files = RunFiles(self)
        self._resume()
        self.log = Log(folder / LOG if folder and self.main else None, COLUMNS, after=self.total_steps)

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def total_steps(self) -> int:
        """Steps done over all stages."""
        return sum(stage.steps for stage in self.stages[: self.stage]) + self.step

    @property
    def planned_steps(self) -> int:
        """Steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.stage >= len(self.stages)

    def _resume(self) -> None:
        """Goes on from the checkpoint in the folder, or begins where there is none."""
        has_optimizer = self.files.load()
        self._begin_stage()  # DeepSpeed copies the weights into its shards here, so they are loaded before
        if has_optimizer:
            self.files.load_optimizer()

    def _begin_stage(self) -> None:
        """Chooses what learns, with a new optimiser: the moments of another stage's losses mean nothing here."""
        if self.finished:
            return
        config, parts = self.config, self.parts()
        self.adapter.requires_grad_(False)
        groups = []
        for name in GROUPS:
            rate = config.lr * (config.slow if name == "slow" else 1.0)
            for modules in [[unit] for unit in units(parts[name])] if self.sharded else [parts[name]]:
                parameters = [p.requires_grad_() for module in modules for p in module.parameters()]
                if parameters:
                    groups.append({"params": parameters, "lr": rate, "full_rate": rate})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self._prepare()

    def _prepare(self) -> None:
        """Hands the stage's loss and optimiser to accelerate."""
        stage = self.stages[self.stage].name
        formula = partial(FORMULAS[stage[0]], self)
        self._stage_loss = self._zero = None  # the one before lets go of the gradients it averages
        self.accelerator.free_memory()
        module = StageLoss(self.adapter, formula, self.processes > 1 and not self.sharded)
        if self.sharded:  # once per stage: what is frozen at first has its shards from the start
            self._zero = ZeroStep(self.accelerator, self.adapter, self.optimizer, self.config.batch, self.config.clip)
            self._stage_loss, self.optimizer = module, self._zero.optimizer
        else:
            self._thaw()
            self._stage_loss, self.optimizer = self.accelerator.prepare(module, self.optimizer)

    def _thaw(self) -> None:
        """Lets the slow parts learn if it is their time."""
        self._slow_learns = self.slow_may_learn
        for module in self.parts()["slow"]:
            module.requires_grad_(self._slow_learns)

    @property
    def slow_may_learn(self) -> bool:
        """Whether the parts that are frozen at first, in stage C, learn on this step."""
        return self.stages[self.stage].name == "C" and self.step >= self.config.freeze_steps

    def learning(self) -> list[nn.Parameter]:
        """The parameters that learn on this step."""
        parts = self.parts()
        names = GROUPS if self.slow_may_learn else GROUPS[:1]
        return [p for name in names for module in parts[name] for p in module.parameters()]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules that learn in this stage, by group."""
        return parts_of(self.adapter, self.stages[self.stage].name, self.method.staged)

    def autocast(self) -> Any:
        """Where the adapter computes in bfloat16, if the run is to; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.bf16 else nullcontext()

    def run(self, stop: StopRequest | None = None, on_step: Callable[[PilaRun, dict[str, float]], None] | None = None) -> None:
        """Trains until every stage is done or `stop` is asked for; saves at the end of each stage and every so many steps."""
        last, began = self.seconds, time.monotonic()
        while not self.finished and not processes.stopping(self.accelerator, stop):
            row = self.train_step()
            self.seconds = last + time.monotonic() - began
            number, stage_done = self.total_steps, self.step >= self.stages[self.stage].steps
            if number % self.config.every == 0 or stage_done:
                row |= self.validate()
            with saving(LOG, self.files.kept()):
                self.log.add(step=number, stage=self.stage, seconds=round(self.seconds, 2), **row)
            if stage_done:
                self.stage, self.step = self.stage + 1, 0
                self._begin_stage()
            if number % self.config.every == 0 or stage_done:
                self.files.save()
            if on_step is not None:
                on_step(self, row)
        if self.total_steps != self.files.saved:  # a run that was finished already keeps its optimiser for a longer one
            self.files.save()

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns what to log. Raises RunError where the loss is not finite."""
        stage = self.stages[self.stage]
        if self.slow_may_learn and not self._slow_learns and not self.sharded:
            self._prepare()  # anew: other parameters begin to learn
        generator = torch.Generator().manual_seed(((self.config.seed * 8 + self.stage) * 1_000_003 + self.step) * 64)
        batch = self.draw(self.step).to(self.device)
        sigma = draw_sigma(self.processes * len(batch.latent), stage.low, self.config.shift, generator)
        noise = torch.randn(self.processes * len(batch.latent), *batch.latent.shape[1:], generator=generator)
        noised = self.noised(batch, self.share(sigma), self.share(noise))
        with self.autocast():
            loss, row = self._stage_loss(batch, *noised, generator)
        row = processes.mean_row(self.accelerator, {"loss": loss.item(), **row}, COLUMNS)
        if "flow" in row:
            row["gain"] = 1.0 - row["flow"] / row["base"]
        if not math.isfinite(row["loss"]):
            kept = self.files.kept()
            raise RunError(f"the loss is {row['loss']} at step {self.step} of stage {stage.name}; {kept}: lower --lr.")
        if stage.name == "C":
            factor = rate_factor(self.step, stage.steps, self.config.cooldown)
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group["full_rate"]
        norm = self._descend(loss)
        self.step += 1
        return {**row, "grad_norm": norm}

    def _descend(self, loss: Tensor) -> float:
        """Backward pass and the optimiser's step; returns the gradient's norm before it was clipped."""
        learning = self.learning()
        if self._zero is not None:
            return self._zero.step(loss, learning)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(learning, self.config.clip)
        self.optimizer.step()
        return norm.item()

    def share(self, values: Tensor) -> Tensor:
        """This process's stretch of what was drawn for the clips of all processes."""
        return values.chunk(self.processes)[self.rank]

    def average(self, value: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""
        return self.accelerator.reduce(value.detach(), "mean")

    def draw(self, step: int) -> Batch:
        """This process's clips of a step: a stretch of an endless sequence of shuffled epochs over the clips not held out."""
        count, size = len(self.clips) - self.held, self.config.batch
        first = (step * self.processes + self.rank) * size
        seed = self.config.seed * 16 + self.stage
        return self.clips.batch([self.held + shuffled_index(first + i, count, seed, self._epochs) for i in range(size)])

    @torch.no_grad()
    def noised(self, batch: Batch, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(estimate, frozen velocity, target velocity, sigma) of the clips noised to `sigma`; float32 (Eq 1)."""
        noise, sigma = noise.to(self.device), sigma.to(self.device)
        level = sigma[:, None, None, None, None]
        noisy = (1.0 - level) * batch.latent + level * noise
        velocity = self.backbone.predict(noisy, sigma, batch.tokens).float()
        return noisy - level * velocity, velocity, noise - batch.latent, sigma

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The share of the frozen model's flow-matching error that the correction removes on held-out clips, fixed noise."""
        if self.held == 0 or self.finished or self.stages[self.stage].name != "C":
            return {}
        errors, mine, fields, routed = torch.zeros(2), self.config.batch, [], torch.zeros(len(CATEGORIES))
        for start in range(0, self.held, self.processes * mine):
            count = min(self.processes * mine, self.held - start)
            generator = torch.Generator().manual_seed(977 + start)
            sigma = draw_sigma(count, 0.0, self.config.shift, generator)
            part = slice(self.rank * mine, min((self.rank + 1) * mine, count))
            if part.start >= part.stop:
                continue
            batch = self.clips.batch(range(start + part.start, start + part.stop)).to(self.device)
            sigma, noise = sigma[part], torch.randn(count, *batch.latent.shape[1:], generator=generator)[part]
            estimate, velocity, target, sigma = self.noised(batch, sigma, noise)
            with self.autocast():
                out = self.adapter(estimate, velocity, sigma, batch.cond, batch.labels)
            gate = self.adapter.gate(sigma)[:, None, None, None, None]
            errors[0] += (velocity + gate * out.delta - target).square().sum().cpu()
            errors[1] += (velocity - target).square().sum().cpu()
            if out.routing is not None:
                fields.append(variation(out.fields))
                routed += out.routing.selected.sum(dim=0).cpu()
        errors = self.accelerator.reduce(errors.to(self.device), "sum")
        if fields:
            spread = {name.removeprefix("std "): sum(row[name] for row in fields) / len(fields) for name in fields[0]}
            unused = [name for name, count in zip(CATEGORIES, routed.tolist()) if count == 0]
            self.findings = {"dead_slots": dead_slots(spread), "unused_experts": unused}
        self.val_gain = 1.0 - float(errors[0] / errors[1])
        return {"val_gain": self.val_gain}


def train(run: PilaRun, stop: StopRequest) -> None:
    """Runs it until it is finished or `stop` is asked for, with a line that says how far it is. Raises as `PilaRun.run`."""
    say = run.accelerator.print
    size = sum(p.numel() for p in run.adapter.parameters()) / 1e6
    plan = ", ".join(f"{stage.name} {stage.steps}" for stage in run.stages)
    where = f"{run.device}" if run.processes == 1 else f"{run.processes} processes"
    say(f"{len(run.clips)} clips of {run.clips.latent_space} latents; {size:.2f}M parameters on {where}; steps: {plan}.")
    if run.total_steps:
        say(f"Going on from step {run.total_steps} ({clock(run.seconds)} of training so far).")
    progress = ProgressLine("PILA")
    run.run(stop, (lambda now, row: _show(progress, now, row)) if run.main else None)
    progress.close()


def _show(progress: ProgressLine, run: PilaRun, row: dict[str, float]) -> None:
    stage = run.stages[min(run.stage, len(run.stages) - 1)].name
    words = [f"stage {stage} {run.total_steps}/{run.planned_steps}", f"loss {row['loss']:.4f}"]
    if "gain" in row:
        words.append(f"physics {row['physics']:.3f}")
    if run.val_gain is not None:
        words.append(f"held-out gain {run.val_gain:+.2%}")
    progress.show(run.total_steps / run.planned_steps, " ".join(words))
