"""PILA's training (arXiv 2606.04737, section B.3) as a task of the one loop: its stages are phases of it.

Every random draw is a function of (seed, stage, step), and each process takes its own stretch of what is
drawn for all.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.pila import CATEGORIES, PilaAdapter, PilaConfig, save_adapter
from ....methods.pila.adapter import wide
from ....methods.pila.losses.objective import AdaptiveWeights
from ....methods.pila.losses.recovery import dead_slots
from ...console import ProgressLine, StopRequest, TrainingError, clock
from ...loop import processes
from ...loop.checkpoint import CURVES
from ...loop.config import LoopConfig
from ...loop.log import Log
from ...loop.loop import Loop
from ...loop.processes import pick_device
from ...loop.task import OnStep, ParameterGroup, Phase, Report, Run, Task
from .columns import COLUMNS, CURVE_PANELS, EXPORT, RESIDUAL_PANELS, RESIDUALS, VALIDATION_COLUMNS
from .data import Batch, PilaClips, shuffled_index
from .losses import FORMULAS, Noised, Step, variation
from .settings import PilaTraining, check
from .stages import FULL, GROUPS, Method, draw_sigma, parts_of, stages_of
from .zero import ZeroStepper, check_stage, units


def make_accelerator(config: PilaTraining, device: str | None = None) -> Any:
    """accelerate's Accelerator for a run; `device` goes before the config's. Raises TrainingError where the
    launch shards weights.

    Mixed precision is the module's own business, so that weights and fields stay float32 under DeepSpeed too.
    """
    from accelerate import DistributedDataParallelKwargs

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise TrainingError(
            "PILA's adapter takes 48 MB, nothing worth sharding; launch it with ddp.yaml or zero2.yaml."
        )
    # A step uses the experts that its clips are routed to, so some parameters get no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = processes.start("no", device=pick_device(device or config.device), handlers=[unused])
    if processes.deepspeed(accelerator):
        check_stage(accelerator)
    return accelerator


class PilaStudent(nn.Module):
    """The adapter with the loss of the stage at hand, which `PilaTask.begin` sets."""

    def __init__(self, adapter: PilaAdapter, backbone: Any, config: PilaTraining, method: Method) -> None:
        super().__init__()
        self.adapter, self.weights = adapter, AdaptiveWeights(adaptive=config.adaptive)
        self.config, self.laws = config, method.laws
        self.frozen = (backbone,)  # in a tuple: no part of this module
        self.formula, self.step, self.several = FORMULAS["A"], 0, False
        self.mean: Callable[[Tensor], Tensor] = Tensor.detach

    def forward(self, batch: Batch, sigma: Tensor, noise: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """Clips, noise levels `B`, noise `B C T H W` and whose prompt is kept `B 1` -> the loss, and what is
        logged of it.

        In evaluation mode, of the coupling: sums of the squared errors with and without the correction, the
        variation of the fields, and which experts ran.
        """
        clips = self.noised(batch, sigma, noise, kept)
        with torch.autocast(sigma.device.type, torch.bfloat16) if self.config.bf16 else nullcontext():
            if not self.training:
                return self.measured(clips)
            step = Step(
                number=self.step, config=self.config, weights=self.weights, laws=self.laws, mean=self.mean
            )
            loss, row = self.formula(self.adapter, step, clips)
        if (
            self.several and not loss.requires_grad
        ):  # an ablation in which no clip of this process counted: zeros, not silence
            loss = loss + 0.0 * sum(p.sum() for p in self.adapter.parameters() if p.requires_grad)
        return {"loss": loss, **{name: loss.new_tensor(value) for name, value in row.items()}}

    @torch.no_grad()
    def noised(self, batch: Batch, sigma: Tensor, noise: Tensor, kept: Tensor) -> Noised:
        """The clips noised to `sigma`, and what the frozen model makes of them (Eq 1)."""
        (backbone,) = self.frozen
        noisy = (1.0 - wide(sigma)) * batch.latent + wide(sigma) * noise
        velocity = backbone.predict(noisy, sigma, batch.tokens).float()
        return Noised(
            batch=batch, estimate=noisy - wide(sigma) * velocity, velocity=velocity,
            target=noise - batch.latent, sigma=sigma,
            kept=kept,
        )  # fmt: skip

    def measured(self, clips: Noised) -> dict[str, Tensor]:
        """Sums that `PilaTask.metrics` divides."""
        velocity, target, batch = clips.velocity, clips.target, clips.batch
        out = self.adapter(clips.estimate, velocity, clips.sigma, batch.cond, batch.labels)
        corrected = velocity + wide(self.adapter.gate(clips.sigma)) * out.delta
        found = {"error": (corrected - target).square().sum(), "base": (velocity - target).square().sum()}
        if out.routing is not None:
            found |= {
                f"val_{name}": target.new_tensor(value) for name, value in variation(out.fields).items()
            }
            runs = out.routing.selected.float().mean(dim=0)
            found |= {f"val_runs {name}": share for name, share in zip(CATEGORIES, runs)}
        return found


class PilaTask(Task):
    """The stages on cached or drawn clips. `backbone`: any object with `predict`, `latent_space`,
    `prediction`."""

    names, validation_names, shown = COLUMNS, VALIDATION_COLUMNS, ("physics", "val_gain")
    pictures = {CURVES: CURVE_PANELS, RESIDUALS: RESIDUAL_PANELS}
    may_change, shared_draws = ("coupling_steps",), True

    def __init__(
        self, backbone: Any, clips: PilaClips, config: PilaTraining, adapter: PilaConfig, method: Method
    ) -> None:
        """Raises TrainingError where the backbone predicts no velocity."""
        if backbone.prediction != "flow":
            raise TrainingError(
                f"PILA corrects a flow's velocity; the {backbone.family} backbone predicts "
                f"{backbone.prediction!r}."
            )
        self.clips, self.config, self.method = clips, config, method
        self.latent_space, self.about = clips.latent_space, {"recipe": "PILA"}
        self.adapter_config = replace(adapter, channels=clips.channels, cond_dim=clips.cond_dim)
        self.held = min(config.held_out_clips, len(clips) // 4)
        self.learned = clips.after(self.held)
        if not self.learned:
            raise TrainingError(
                f"all {len(clips)} clips are of the videos of the {self.held} held out, which leaves none to "
                f"learn from; cache more videos, or give held_out_clips 0."
            )
        self.stages = stages_of(config, method)
        self.phases = tuple(Phase(name=s.name, steps=s.steps, constant=s.name != "C") for s in self.stages)
        self.stage = 0
        self._epochs: dict[tuple[int, int], Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adapter = method.adapter(self.adapter_config)
        self.module = PilaStudent(self.adapter, backbone, config, method)

    def placed(self, accelerator: Any) -> None:
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.sharded = processes.deepspeed(accelerator)
        self.module.to(accelerator.device)
        self.module.several = self.processes > 1 and not self.sharded
        self.module.mean = lambda value: accelerator.reduce(value.detach(), "mean")

    def begin(self, phase: int) -> None:
        self.stage = phase
        self.module.formula = FORMULAS[self.stages[phase].name[0]]

    def groups(self, config: LoopConfig) -> list[ParameterGroup]:
        """The parts that learn in this stage; under DeepSpeed each part that may go unused by itself."""
        stage, groups = self.stages[self.stage].name, []
        parts = parts_of(self.adapter, stage, self.method.staged)
        for name in GROUPS:
            slow = name == "slow"
            for modules in [[unit] for unit in units(parts[name])] if self.sharded else [parts[name]]:
                parameters = [p for module in modules for p in module.parameters()]
                learning_rate, starts = (
                    config.learning_rate * (self.config.slow if slow else 1.0),
                    self.config.freeze_steps if slow else 0,
                )
                groups.append(
                    ParameterGroup(parameters=parameters, learning_rate=learning_rate, starts=starts)
                )
        return groups

    def weights(self, step: int) -> dict[str, float]:
        self.module.step = step
        return {"loss": 1.0}

    def share(self, values: Tensor) -> Tensor:
        """This process's stretch of what was drawn for the clips of all processes."""
        return values.chunk(self.processes)[self.rank]

    def draw(self, number: int, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor, Tensor]:
        config, stage, batch = self.config, self.stages[self.stage], self.read(number)
        count = self.processes * len(batch.latent)
        sigma = draw_sigma(count, stage.low, config.shift, generator)
        noise = torch.randn(count, *batch.latent.shape[1:], generator=generator)
        kept = torch.ones(count, 1)
        if stage.name == "C":
            labels = batch.labels.repeat(
                self.processes, 1
            )  # each row is drawn by itself: the others' do not matter
            batch = replace(batch, labels=self.share(self.method.relabel(labels, generator)))
            kept = (torch.rand(count, 1, generator=generator) >= config.prompt_dropout).float()
        return batch, self.share(sigma), self.share(noise), self.share(kept)

    def read(self, number: int) -> Batch:
        """This process's clips of a step: a stretch of an endless sequence of shuffled epochs over the clips
        to learn from."""
        count, size = len(self.learned), self.config.batch
        first = (number * self.processes + self.rank) * size
        seed = self.config.seed * 16 + self.stage
        return self.clips.batch(
            [self.learned[shuffled_index(first + i, count, seed, self._epochs)] for i in range(size)]
        )

    @property
    def validation_count(self) -> int:
        return self.held if self.stages[self.stage].name == "C" else 0

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """One clip; the noise levels of all of them are spread as training's are."""
        batch = self.clips.batch([place])
        sigma = draw_sigma(self.held, 0.0, self.config.shift, torch.Generator().manual_seed(977))[
            place : place + 1
        ]
        return batch, sigma, torch.randn(batch.latent.shape, generator=generator), torch.ones(1, 1)

    def derive(self, row: dict[str, float]) -> dict[str, float]:
        return row | {"gain": 1.0 - row["flow"] / row["base"]} if "flow" in row else row

    def metrics(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """val_gain: the share of the frozen model's flow-matching error that the correction removes on
        held-out clips."""
        means = {name: value / count for name, value in sums.items() if name.startswith("val_")}
        return {"val_gain": 1.0 - sums["error"] / sums["base"], **means}

    def score(self, found: Mapping[str, float]) -> float | None:
        return -found["val_gain"] if "val_gain" in found else None

    def fingerprint(self) -> str:
        return f"{self.clips.fingerprint()} {self.latent_space}"

    def state(self) -> dict[str, Tensor]:
        """Running means of the residuals."""
        return dict(self.module.weights.named_buffers())

    def settings(self) -> dict[str, Any]:
        """Settings that a resumed run must share."""
        return {**asdict(self.config), **asdict(self.adapter_config), "method": self.method.name}

    def recipe(self, report: Report) -> dict[str, Any]:
        """Origin of the weights, for their metadata, with the dead slots of the validation."""
        training = {key: value for key, value in asdict(self.config).items() if key != "device"}
        facts = {"clips": len(self.clips), "steps": report.step, "seconds": round(report.seconds, 1)}
        found = {"method": self.method.name, "val_gain": report.kept.get("val_gain")}
        return {**training, **facts, **found, **findings(report.kept)}

    def write(self, folder: Path, weights: Mapping[str, Tensor], report: Report) -> None:
        self.export(folder / EXPORT, weights, report)

    def export(self, path: Path, weights: Mapping[str, Tensor], report: Report) -> None:
        """Writes the adapter file that ComfyUI loads, in half precision for the toy world. Raises OSError."""
        adapter = copy.deepcopy(self.adapter)
        adapter.load_state_dict(
            {name.removeprefix("adapter."): value for name, value in weights.items()}, strict=False
        )
        dtype = torch.float16 if self.latent_space == "toy" else torch.float32
        save_adapter(path, adapter, self.latent_space, self.recipe(report), dtype)


def findings(found: Mapping[str, float]) -> dict[str, list[str]]:
    """Faults that a validation found: free slots that are constant, and experts that no held-out clip was
    routed to."""
    spread = {
        name.removeprefix("val_std "): value for name, value in found.items() if name.startswith("val_std ")
    }
    if not spread:
        return {}
    unused = [name for name in CATEGORIES if found.get(f"val_runs {name}") == 0]
    return {"dead_slots": dead_slots(spread), "unused_experts": unused}


class PilaRun:
    """One training run: the task in its loop, for callers that want to look inside."""

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
        """Raises TrainingError where backbone, clips, settings or the run in `folder` do not fit."""
        check(config)
        self.task = PilaTask(backbone, clips, config, adapter, method)
        accelerator = accelerator or make_accelerator(config, str(backbone.device))
        stepper = ZeroStepper if processes.deepspeed(accelerator) else None
        self._run = Run(
            config=loop_config(config), settings=self.task.settings(), task=self.task, out=folder,
            accelerator=accelerator,
            stepper=stepper,
        )  # fmt: skip
        self.accelerator, self.loop = accelerator, Loop(self._run)

    @property
    def adapter(self) -> PilaAdapter:
        """The adapter in training."""
        return self.task.adapter

    @property
    def log(self) -> Log:
        """The rows so far."""
        return self.loop.log

    @property
    def total_steps(self) -> int:
        """Steps done over all stages."""
        return self.loop.step

    @property
    def planned_steps(self) -> int:
        """Steps of the whole run."""
        return self.loop.planned

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.loop.finished

    @property
    def val_gain(self) -> float | None:
        """Share of the frozen model's error that the kept weights remove on held-out clips; None before
        stage C."""
        return self.loop.report().kept.get("val_gain")

    def run(
        self,
        stop: StopRequest | None = None,
        on_step: OnStep | None = None,
        progress: ProgressLine | None = None,
    ) -> None:
        """Trains until every stage is done, `stop` is asked for, or `on_step` returns False; then saves."""
        self._run.on_step = on_step
        self.loop.go(stop, progress)

    def export(self, path: Path) -> None:
        """Writes the adapter file that ComfyUI loads. Raises OSError."""
        self.task.export(path, self.loop.kept(), self.loop.report())


def loop_config(config: PilaTraining) -> LoopConfig:
    """The part of the settings that any training has; stages A and B keep their rate, stage C ends in a
    cosine to 0."""
    return LoopConfig(
        batch=config.batch, learning_rate=config.learning_rate,
        schedule="cosine" if config.cooldown else "constant", final_share=0.0,
        tail=config.cooldown or 1.0, weight_decay=config.weight_decay, beta1=0.9, beta2=0.999,
        max_grad_norm=config.max_grad_norm,
        ema=config.ema, keep=config.keep, seed=config.seed, validate_every=config.every,
        save_every=config.every,
        validation_clips=max(1, config.held_out_clips), read_ahead=config.read_ahead,
    )  # fmt: skip


def train(run: PilaRun, stop: StopRequest) -> None:
    """Runs it until it is finished or `stop` is asked for, with a line that says how far it is. Raises as
    `loop.train`."""
    say, task, accelerator = run.accelerator.print, run.task, run.accelerator
    size = sum(p.numel() for p in run.adapter.parameters()) / 1e6
    plan = ", ".join(f"{stage.name} {stage.steps}" for stage in task.stages)
    several = accelerator.num_processes
    where = f"{accelerator.device}" if several == 1 else f"{several} processes"
    say(
        f"{len(task.clips)} clips of {task.latent_space} latents; {size:.2f}M parameters on {where}; steps: "
        f"{plan}."
    )
    if run.total_steps:
        say(f"Resumed at step {run.total_steps} ({clock(run.loop.seconds)} of training so far).")
    run.run(stop, progress=ProgressLine("PILA"))
