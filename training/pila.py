"""`latent-physics pila`: trains the PILA adapter on a frozen backbone in the stages of arXiv 2606.04737, section B.3.

    python training pila --recipe toy --toy-clips 512 --out runs/pila          # the toy world, two cores
    python training pila --recipe wan --cache CLIPS --out runs/pila_wan         # Wan 2.1 1.3B

Stage A fits the velocity slot to optical flow on ever noisier estimates, stage B recovers the fields that no data shows, stage C
trains everything with the flow-matching loss and the routed residuals. A run goes on where it stopped, inside a stage and
between stages; every random draw is a function of (seed, stage, step). Several processes share the clips of a step:

    accelerate launch --config_file training/recipes/ddp.yaml training pila --recipe wan --cache CLIPS --out runs/pila_wan

Each takes its own stretch of what one process with all the clips would draw, so the number of processes changes the speed and
not the result (up to rounding). With zero2.yaml instead, DeepSpeed keeps the optimiser's state in shards.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..methods.pila import CATEGORIES, TOY, PilaAdapter, PilaConfig, save_adapter
from ..methods.pila.bank import SLOTS
from ..methods.pila.categories import random_labels
from ..methods.pila.masks import blended_mask, bootstrap_mask, physical_mask
from ..methods.pila.objective import (
    TERM_NAMES,
    AdaptiveWeights,
    coupling_loss,
    largest_sigma,
    physics_loss,
    ramp,
)
from ..methods.pila.recovery import RECOVERY_NAMES, observable_loss, phase_weights, recovery_losses, spread_guard
from ..methods.pila.residuals import TERMS
from ..methods.weights import WeightsError
from . import cli, processes
from .dataset import DatasetError
from .pila_data import Batch, FlowSource, PilaClips, cached_clips, shuffled_index, toy_clips
from .pila_zero import ZeroStep, check_stage, units
from .run import Log, ProgressLine, RunError, StopRequest, clock, differing, draw_curves, load_checkpoint, save_checkpoint, saving

KIND = "pila_checkpoint"
CHECKPOINT, EXPORT, LOG = "checkpoint.safetensors", "pila_adapter.safetensors", "log.csv"
CURVES, RESIDUALS = "curves.png", "residuals.png"
SHARDS = "deepspeed"
"""Folder of DeepSpeed's checkpoints in a run's folder."""
FREE_TO_CHANGE = ("device", "every", "coupling_steps")
GROUPS = ("main", "slow")
DRAW_SECONDS = 20.0
"""Curves are drawn anew at most so often: there are many, and drawing takes seconds."""


@dataclass(kw_only=True)
class PilaTraining:
    """How an adapter is trained. The defaults are the paper's numbers for Wan 2.1 1.3B."""

    observable_steps: int = 3000
    """Steps of each of stage A's three phases (index ranges 0.90-1, 0.75-1, 0.50-1)."""
    recovery_steps: int = 2600
    """Steps of stage B."""
    alpha_start: int = 800
    """Step of stage B at which the phase and temperature fields join."""
    impulse_start: int = 1500
    """Step of stage B at which impulses join."""
    wave_start: int = 2100
    """Step of stage B at which waves join."""
    coupling_steps: int = 18000
    """Steps of stage C. The source trains 3 epochs and evaluates step 18000."""
    freeze_steps: int = 1000
    """Steps of stage C in which encoder and velocity path stay frozen."""
    slow: float = 0.3
    """Learning rate of encoder and scaffold after that, relative to the rest."""
    physics_weight: float = 0.30
    """Weight of the routed residuals (lambda of Eq 11)."""
    physics_warmup: int = 2000
    """Steps over which that weight, and the noise up to which physics is judged, rise."""
    condition_warmup: int = 1000
    """Steps over which the prompt is faded in."""
    correction_weight: float = 0.01
    """Weight of the squared correction."""
    observable_anchor: float = 0.1
    """Weight of the flow target in stage B."""
    coupling_anchor: float = 0.0
    """Weight of the flow target in stage C. The paper's Eq 11 has none; without it the velocity slot can forget the flow."""
    coupling_spread: float = 0.0
    """Weight, in stage C, of the guards against temperature, impulse and wave fields that collapse to a constant."""
    drop_prompt: float = 0.1
    """Share of samples trained without a prompt."""
    shift: float = 5.0
    """Noise schedule: sigma = shift s / (1 + (shift - 1) s) for s = 1 - index."""
    batch: int = 1
    """Clips per step and process."""
    lr: float = 1e-5
    """Learning rate of AdamW, constant."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip: float = 0.5
    """Gradients are scaled down to this norm."""
    adaptive: bool = True
    """Weigh the terms of a category by their running means; off, every term has weight 1."""
    validation: int = 16
    """Clips held out to measure the coupled flow-matching error; 0 for none."""
    every: int = 250
    """Validate, save and draw every so many steps."""
    seed: int = 0
    """Seed of weights, data order, noise."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    bf16: bool = False
    """Compute in bfloat16 (weights and fields stay float32)."""


RECIPES: dict[str, tuple[PilaTraining, PilaConfig]] = {
    "wan": (PilaTraining(bf16=True), PilaConfig()),
    "toy": (
        PilaTraining(
            observable_steps=150,
            recovery_steps=400,
            alpha_start=100,
            impulse_start=200,
            wave_start=300,
            coupling_steps=2000,
            freeze_steps=100,
            physics_warmup=300,
            condition_warmup=150,
            shift=3.0,
            batch=16,
            lr=1e-3,
            every=100,
            validation=32,
        ),
        TOY,
    ),
}
"""wan: the source's numbers, for GPUs. toy: a small adapter on the toy world, for two cores."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with its own trainable parts and noise range."""

    name: str
    steps: int
    low: float
    """Smallest index fraction (0 is pure noise, 1 is clean): how noisy it gets."""


def stages_of(config: PilaTraining, adapter: PilaConfig) -> list[Stage]:
    """The stages in order; without staged recovery (an ablation) the coupling stage alone."""
    coupling = Stage(name="C", steps=config.coupling_steps, low=0.0)
    if not adapter.ablation.staged_recovery:
        return [coupling]
    observable = [Stage(name=f"A{i}", steps=config.observable_steps, low=low) for i, low in enumerate((0.90, 0.75, 0.50), 1)]
    return [*observable, Stage(name="B", steps=config.recovery_steps, low=0.0), coupling]


def parts_of(adapter: PilaAdapter, stage: str) -> dict[str, list[nn.Module]]:
    """Which modules learn in a stage: "main" at the full rate, "slow" (frozen at first) in the coupling stage."""
    if stage.startswith("A"):
        return {"main": [adapter.encoder, adapter.level, adapter.afe.scaffold, adapter.afe.u_head], "slow": []}
    if stage == "B":
        return {"main": [adapter.afe.p_rho_head, adapter.afe.heads], "slow": []}
    if adapter.config.ablation.plain_adapter or not adapter.config.ablation.staged_recovery:
        return {"main": [adapter], "slow": []}  # nothing was trained before, so there is nothing to protect
    slow = [adapter.encoder, adapter.afe.scaffold]
    rest = [adapter.level, adapter.condition, adapter.router, adapter.decoder, adapter.afe.p_rho_head, adapter.afe.heads]
    return {"main": rest + ([adapter.experts] if adapter.config.ablation.moe_operator else []), "slow": slow}


def draw_sigma(count: int, low: float, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels of index fractions uniform in [low, 1), one draw per stratum, `count`."""
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    s = 1.0 - (low + (1.0 - low) * share)
    return (shift * s / (1.0 + (shift - 1.0) * s)).clamp(min=1e-3)


# --- several processes ----------------------------------------------------------------------------------------------------


def make_accelerator(config: PilaTraining, device: str | None = None) -> Any:
    """accelerate's Accelerator for a run; `device` goes before the config's. Raises RunError where the launch shards weights.

    Mixed precision is the run's own business (`PilaRun.autocast`), so that weights and fields stay float32 under DeepSpeed too.
    """
    from accelerate import DistributedDataParallelKwargs

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise RunError("PILA's adapter takes 48 MB, nothing worth sharding; launch it with ddp.yaml or zero2.yaml.")
    # A step uses the experts that its clips are routed to, so some parameters get no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = processes.start("no", device=cli.pick_device(device or config.device), handlers=[unused])
    if processes.deepspeed(accelerator):
        check_stage(accelerator)
    return accelerator


class StageLoss(nn.Module):
    """A stage's loss as a module around the adapter: what accelerate prepares, so that gradients are averaged."""

    def __init__(self, adapter: PilaAdapter, formula: Callable[..., tuple[Tensor, dict[str, float]]], several: bool) -> None:
        """`several`: whether other processes wait for this one's gradients."""
        super().__init__()
        self.adapter, self.formula, self.several = adapter, formula, several

    def forward(self, *arguments: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss, and what to log of it."""
        loss, row = self.formula(*arguments)
        if self.several and not loss.requires_grad:  # an ablation in which no clip of this process counted: zeros, not silence
            loss = loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return loss, row


# --- the run --------------------------------------------------------------------------------------------------------------

COLUMNS = (
    "stage", "loss", "observable", "flow", "base", "gain", "val_gain", "physics", "samples", "regulariser", "ratio", "mask",
    "grad_norm", "off_label", "seconds",
    *(f"B {name}" for name in RECOVERY_NAMES),
    *TERM_NAMES,
    *(f"std {name}" for name in SLOTS),
    *(f"route {name}" for name in CATEGORIES),
)  # fmt: skip
"""gain: 1 - flow / base, the share of the frozen model's error that the correction removes. off_label: routing weight given to
experts without a label. route X: mean routing weight of an expert. std X: how much a field varies within a clip before the
experts; constants obey every law, so a fall towards 0 means that the residuals judge nothing any more."""
CURVE_PANELS = {
    "flow target": ("observable",),
    "flow matching": ("flow", "base"),
    "error removed": ("gain", "val_gain"),
    "physics": ("physics",),
    "|g dv| / |v|": ("ratio",),
    "routing": ("off_label",),
    "variation of the fields": tuple(f"std {name}" for name in SLOTS),
}


class PilaRun:
    """One training run. `backbone` is any object with `predict`, `latent_space`, `prediction`, `device` (training/backbones)."""

    def __init__(
        self,
        backbone: Any,
        clips: PilaClips,
        config: PilaTraining,
        adapter: PilaConfig,
        folder: Path | None = None,
        accelerator: Any = None,
    ) -> None:
        """Raises RunError where backbone, clips, settings or the run in `folder` do not fit."""
        check(config)
        if backbone.prediction != "flow":
            raise RunError(f"PILA corrects a flow's velocity; the {backbone.family} backbone predicts {backbone.prediction!r}.")
        self.backbone, self.clips, self.config, self.folder = backbone, clips, config, folder
        self.adapter_config = replace(adapter, channels=clips.channels, cond_dim=clips.cond_dim)
        self.accelerator = accelerator or make_accelerator(config, str(backbone.device))
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.sharded = processes.deepspeed(self.accelerator)
        self.device = self.accelerator.device
        self.held = min(config.validation, len(clips) // 4)
        self.stages = stages_of(config, self.adapter_config)
        self.stage, self.step, self.seconds, self.val_gain = 0, 0, 0.0, None
        self._epochs: dict[tuple[int, int], Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adapter = PilaAdapter(self.adapter_config).to(self.device)
        self.weights = AdaptiveWeights(adaptive=config.adaptive).to(self.device)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
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

    def _begin_stage(self) -> None:
        """Chooses what learns, with a new optimiser: the moments of another stage's losses mean nothing here."""
        if self.finished:
            return
        config, parts = self.config, parts_of(self.adapter, self.stages[self.stage].name)
        self.adapter.requires_grad_(False)
        groups = []
        for name in GROUPS:
            rate = config.lr * (config.slow if name == "slow" else 1.0)
            for modules in [[unit] for unit in units(parts[name])] if self.sharded else [parts[name]]:
                parameters = [p.requires_grad_() for module in modules for p in module.parameters()]
                if parameters:
                    groups.append({"params": parameters, "lr": rate})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self._prepare()

    def _prepare(self) -> None:
        """Hands the stage's loss and optimiser to accelerate."""
        stage = self.stages[self.stage].name
        formula = {"A": self._observable, "B": self._recovery, "C": self._coupling}[stage[0]]
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
        for module in parts_of(self.adapter, self.stages[self.stage].name)["slow"]:
            module.requires_grad_(self._slow_learns)

    @property
    def slow_may_learn(self) -> bool:
        """Whether the parts that are frozen at first, in stage C, learn on this step."""
        return self.stages[self.stage].name == "C" and self.step >= self.config.freeze_steps

    def learning(self) -> list[nn.Parameter]:
        """The parameters that learn on this step."""
        parts = parts_of(self.adapter, self.stages[self.stage].name)
        names = GROUPS if self.slow_may_learn else GROUPS[:1]
        return [p for name in names for module in parts[name] for p in module.parameters()]

    def autocast(self) -> Any:
        """Where the adapter computes in bfloat16, if the run is to; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.bf16 else nullcontext()

    _stage_loss: nn.Module | None = None
    _zero: ZeroStep | None = None
    _slow_learns = False

    def run(self, stop: StopRequest | None = None, on_step: Callable[[PilaRun, dict[str, float]], None] | None = None) -> None:
        """Trains until every stage is done or `stop` is asked for; saves at the end of each stage and every so many steps."""
        last, began = self.seconds, time.monotonic()
        while not self.finished and not processes.stopping(self.accelerator, stop):
            row = self.train_step()
            self.seconds = last + time.monotonic() - began
            number, stage_done = self.total_steps, self.step >= self.stages[self.stage].steps
            if number % self.config.every == 0 or stage_done:
                row |= self.validate()
            with saving(LOG, self._kept()):
                self.log.add(step=number, stage=self.stage, seconds=round(self.seconds, 2), **row)
            if stage_done:
                self.stage, self.step = self.stage + 1, 0
                self._begin_stage()
            if number % self.config.every == 0 or stage_done:
                self.save()
            if on_step is not None:
                on_step(self, row)
        if self.total_steps != self._saved:  # a run that was finished already keeps its optimiser for a longer one
            self.save()

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns what to log. Raises RunError where the loss is not finite."""
        stage = self.stages[self.stage]
        if self.slow_may_learn and not self._slow_learns and not self.sharded:
            self._prepare()  # anew: other parameters begin to learn
        generator = torch.Generator().manual_seed(((self.config.seed * 8 + self.stage) * 1_000_003 + self.step) * 64)
        batch = self.draw(self.step).to(self.device)
        sigma = draw_sigma(self.processes * len(batch.latent), stage.low, self.config.shift, generator)
        noise = torch.randn(self.processes * len(batch.latent), *batch.latent.shape[1:], generator=generator)
        noised = self.noised(batch, self._share(sigma), self._share(noise))
        with self.autocast():
            loss, row = self._stage_loss(batch, *noised, generator)
        row = processes.mean_row(self.accelerator, {"loss": loss.item(), **row}, COLUMNS)
        if "flow" in row:
            row["gain"] = 1.0 - row["flow"] / row["base"]
        if not math.isfinite(row["loss"]):
            raise RunError(f"the loss is {row['loss']} at step {self.step} of stage {stage.name}; {self._kept()}: lower --lr.")
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

    def _share(self, values: Tensor) -> Tensor:
        """This process's stretch of what was drawn for the clips of all processes."""
        return values.chunk(self.processes)[self.rank]

    def _average(self, value: Tensor) -> Tensor:
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

    # -- stages --------------------------------------------------------------------------------------------------------

    def _observable(
        self, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Stage A: the velocity slot follows optical flow."""
        fields = self.adapter.estimate(estimate, sigma, "core")
        loss = observable_loss(fields["u"], batch.flow, batch.confidence, self._average)
        return loss, {"observable": loss.item()}

    def _recovery(
        self, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Stage B: fields that no data shows are recovered from laws, in phases."""
        config = self.config
        starts = {"core": 0, "alpha": config.alpha_start, "T": config.alpha_start}
        starts |= {"j": config.impulse_start, "psi": config.wave_start}
        phase, weights = phase_weights(self.step, starts)
        fields = self.adapter.estimate(estimate, sigma, phase)
        mask = self._mask(velocity, estimate, fields, batch.labels)
        losses = recovery_losses(fields, weights, mask)
        observable = observable_loss(fields["u"], batch.flow, batch.confidence, self._average)
        loss = sum(losses.values()) + config.observable_anchor * observable
        row = {f"B {name}": value.item() for name, value in losses.items()}
        return loss, {"observable": observable.item(), "mask": mask.mean().item(), **row, **variation(fields)}

    def _mask(self, velocity: Tensor, estimate: Tensor, fields: dict[str, Tensor], labels: Tensor) -> Tensor:
        physical = physical_mask({name: value.detach() for name, value in fields.items()}, labels)
        return blended_mask(self.step, bootstrap_mask(velocity, estimate), physical)

    def _coupling(
        self, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Stage C: flow matching through the correction, plus routed residuals (Eq 11)."""
        config, ablation = self.config, self.adapter_config.ablation
        labels = batch.labels
        if ablation.random_label:
            labels = self._share(random_labels(self.accelerator.gather(labels), generator))
        kept = self._share(torch.rand(self.processes * len(sigma), 1, generator=generator) >= config.drop_prompt).to(self.device)
        fade = ramp(self.step, config.condition_warmup) * kept.float()
        out = self.adapter(estimate, velocity, sigma, batch.cond, labels, ramp=fade, keep_updates=True)
        mask = None if out.refined is None else self._mask(velocity, estimate, self.adapter.read(out.refined.detach()), labels)
        limit = largest_sigma(self.step, config.physics_warmup)
        law = physics_loss(
            self.adapter, out, labels, sigma, mask=mask, sigma_max=limit, weights=self.weights, synchronise=self._average
        )
        self.weights.update(law.terms, self._average)
        result = coupling_loss(
            self.adapter, out, velocity, target, sigma, law, step=self.step,
            physics_weight=config.physics_weight, physics_warmup=config.physics_warmup,
            correction_weight=config.correction_weight,
        )  # fmt: skip
        gate = self.adapter.gate(sigma)[:, None, None, None, None]
        row = {
            "flow": result.flow.item(),
            "base": result.base.item(),
            "physics": law.loss.item(),
            "samples": law.samples,
            "regulariser": result.regulariser.item(),
            "ratio": ((gate * out.delta).norm() / velocity.norm()).item(),
        }
        loss = result.loss
        if mask is not None:
            row["mask"] = mask.mean().item()
            anchors = self._anchors(batch, out.fields, mask)
            row |= {"observable": anchors["observable"].item(), **variation(out.fields)}
            loss = loss + config.coupling_anchor * anchors["observable"] + config.coupling_spread * anchors["spread"]
        row |= {name: value.mean().item() for name, value in law.terms.items()}
        if out.routing is not None:
            weights = out.routing.weights.detach()
            row |= {f"route {name}": value for name, value in zip(CATEGORIES, weights.mean(dim=0).tolist())}
            row["off_label"] = (weights * (labels == 0)).sum(dim=1).mean().item()
        return loss, row

    def _anchors(self, batch: Batch, fields: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """What ties the fields to the clip beside the laws: the flow target, and guards against fields that are constant."""
        observable = observable_loss(fields["u"], batch.flow, batch.confidence, self._average)
        guarded = (fields["T"], fields["psi"], mask * fields["j"])
        return {"observable": observable, "spread": sum(spread_guard(field) for field in guarded)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The share of the frozen model's flow-matching error that the correction removes on held-out clips, fixed noise."""
        if self.held == 0 or self.finished or self.stages[self.stage].name != "C":
            return {}
        errors, mine = torch.zeros(2), self.config.batch
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
        errors = self.accelerator.reduce(errors.to(self.device), "sum")
        self.val_gain = 1.0 - float(errors[0] / errors[1])
        return {"val_gain": self.val_gain}

    # -- files ---------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on; "batch" is that of all processes together."""
        facts = {"data": self.clips.fingerprint(), "latent_space": self.clips.latent_space}
        facts["batch"] = self.config.batch * self.processes
        adapter = self.adapter_config.to_dict()
        return {**asdict(self.config), **adapter.pop("ablation"), **adapter, **facts}

    def recipe(self) -> dict[str, Any]:
        """How the weights came about, for their metadata."""
        training = {key: value for key, value in asdict(self.config).items() if key != "device"}
        facts = {"clips": len(self.clips), "steps": self.total_steps, "seconds": round(self.seconds, 1)}
        return {**training, **facts, "val_gain": self.val_gain}

    def save(self) -> None:
        """Checkpoint, adapter and curves, each all or nothing. Every process must call it.

        Raises RunError where the disk is full.
        """
        if self.folder is None:
            return
        # The optimiser is new at the start of a stage: nothing to keep, and any launch may go on from there.
        moments = self.step > 0 or self.finished
        if self.sharded and moments:
            with saving(SHARDS, self._kept()):
                processes.save_shards(self.accelerator, self.folder / SHARDS, self.total_steps)
        kept, self._saved = self._kept(), self.total_steps
        if not self.main:
            return
        states = {"adapter": self.adapter.state_dict(), "weights": self.weights.state_dict()}
        progress = {"stage": self.stage, "step": self.step, "seconds": self.seconds, "val_gain": self.val_gain}
        progress["shards"] = self.shards if moments else None
        with saving(CHECKPOINT, kept):
            save_checkpoint(
                self.folder / CHECKPOINT,
                kind=KIND,
                latent_space=self.clips.latent_space,
                config=self.settings(),
                progress=progress,
                states=states,
                optimizer=self.optimizer if moments and not self.sharded else None,
            )
        processes.drop_shards(self.folder / SHARDS, keep=self.total_steps if self.sharded and moments else None)
        with saving(EXPORT, self._kept()):
            self.export(self.folder / EXPORT)
            if not self.finished and time.monotonic() - self._drawn < DRAW_SECONDS:
                return
            self._drawn = time.monotonic()
            draw_curves(self.log, self.folder / CURVES, CURVE_PANELS, f"PILA, {self.total_steps} steps")
            panels = {category: [f"{category}/{name}" for name in TERMS[category]] for category in CATEGORIES}
            draw_curves(self.log, self.folder / RESIDUALS, panels, "routed residuals (0: the law holds, 1: unrelated)")

    def export(self, path: Path) -> None:
        """Writes the adapter file that ComfyUI loads, in half precision for the toy world. Raises OSError."""
        dtype = torch.float16 if self.clips.latent_space == "toy" else torch.float32
        save_adapter(path, self.adapter, self.clips.latent_space, self.recipe(), dtype)

    _saved, _drawn = 0, 0.0

    def _kept(self) -> str:
        return f"the checkpoint of step {self._saved} is safe" if self._saved else "no checkpoint was written before"

    @property
    def shards(self) -> int:
        """In how many shards DeepSpeed keeps the optimiser's state; 0 without it."""
        return self.processes if self.sharded else 0

    def _resume(self) -> None:
        """Goes on from the checkpoint in the folder, or begins where there is none."""
        path = self.folder / CHECKPOINT if self.folder else None
        if path is None or not path.exists():
            self._begin_stage()
            return
        states, progress, info = load_checkpoint(path, kind=KIND)
        changed = differing(info.config, self.settings(), FREE_TO_CHANGE)
        if changed:
            raise RunError(f"{self.folder} holds a run with other settings ({changed}): use another folder, or --fresh.")
        shards = progress.get("shards", 0)
        if shards is not None and shards != self.shards:
            found, here = optimiser_in(shards), optimiser_in(self.shards)
            raise RunError(f"{self.folder} holds {found} and this launch has {here}: launch it as before, or use another folder.")
        self.adapter.load_state_dict(states["adapter"])
        self.weights.load_state_dict(states["weights"])
        self.stage, self.step = progress["stage"], progress["step"]
        self.seconds, self.val_gain = progress["seconds"], progress["val_gain"]
        if self.finished and self.stages[-1].steps > info.config["coupling_steps"]:
            self.stage, self.step = len(self.stages) - 1, info.config["coupling_steps"]  # a longer coupling stage goes on
        self._begin_stage()  # DeepSpeed copies the weights into its shards here, so they are loaded before
        if not self.finished and shards is not None:
            if self.sharded:
                processes.load_shards(self.accelerator, self.folder / SHARDS, self.total_steps)
            else:
                load_checkpoint(path, kind=KIND, optimizer=self.optimizer)
        self._saved = self.total_steps


def optimiser_in(shards: int) -> str:
    """Words for where an optimiser's state is."""
    return f"an optimiser in {shards} DeepSpeed shard{'s' * (shards > 1)}" if shards else "an optimiser in one piece"


@torch.no_grad()
def variation(fields: dict[str, Tensor]) -> dict[str, float]:
    """Standard deviation of each field over space and time, in its units; mean over channels and clips: columns of the log."""
    return {f"std {name}": value.flatten(2).std(dim=2).mean().item() for name, value in fields.items()}


def check(config: PilaTraining) -> None:
    """Raises RunError, in one sentence, for a setting out of range."""
    for name in ("observable_steps", "recovery_steps", "coupling_steps", "batch", "every"):
        if getattr(config, name) < 1:
            raise RunError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    for name in ("lr", "clip", "shift"):
        if not getattr(config, name) > 0:
            raise RunError(f"{name} is {getattr(config, name)}; it must be greater than 0.")
    if not 0 <= config.alpha_start <= config.impulse_start <= config.wave_start:
        starts = (config.alpha_start, config.impulse_start, config.wave_start)
        raise RunError(f"the recovery phases start at {starts}; each must start at or after the one before.")


# --- command line ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class PilaCommand:
    """Train a PILA adapter on a frozen backbone."""

    out: Path
    """Folder of this run: checkpoint, log.csv, curves, pila_adapter.safetensors. A run found there goes on."""
    cache: Path | None = None
    """Folder that `latent-physics cache --tokens` filled."""
    toy_clips: int = 0
    """Instead of a cache: draw so many clips from the toy worlds."""
    recipe: Literal["wan", "toy"] = "wan"
    """Defaults of the settings below. wan: the paper's numbers. toy: a small adapter, for two cores."""
    backbone: Literal["wan", "toy"] | None = None
    """Whose frozen transformer to correct; left out, the recipe's."""
    source: str | None = None
    """Diffusers folder or hub id of the backbone; left out, the family's smallest model."""
    dit: Path | None = None
    """A transformer file as ComfyUI's models/diffusion_models holds it, instead of `source`."""
    vae: Path | None = None
    """A VAE file, needed beside `dit` where flow is "pixels" or "raft"."""
    flow: FlowSource = "latent"
    """Where the velocity target comes from: "latent" (no VAE needed), "pixels" (decoded frames), "raft" (torchvision). Toy clips
    always use their rendered frames."""
    raft: str = "raft_large"
    """RAFT's name or a safetensors file."""
    labels: Path | None = None
    """JSON lines of {"prompt": ..., "labels": [...]}; captions that are not in it are labelled by the offline rules."""
    ablation: str = "full"
    """One row of the ablation tables: full, plain_adapter, no_afe, no_routing, no_pde, proxy_only, ..."""
    export: Path | None = None
    """Also write the adapter here, for example ComfyUI/models/latent_physics/my_pila.safetensors."""
    fresh: bool = False
    """Start over: delete the run in `out` first."""
    config: PilaTraining = field(default_factory=PilaTraining)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where the run is finished, 1 on an error, 130 where stopped by the user."""
    from .backbones import BackboneError
    from .teachers import TeacherError

    return cli.run_command(lambda: _command(argv), DatasetError, RunError, WeightsError, BackboneError, TeacherError, ValueError)


def _command(argv: list[str]) -> int:
    command = _parse(argv)
    adapter = RECIPES[command.recipe][1].with_ablation(command.ablation)
    check(command.config)
    if (command.cache is None) == (command.toy_clips == 0):
        raise RunError("give either --cache (a folder of cached clips) or --toy-clips (how many to draw), not both or neither.")
    accelerator = make_accelerator(command.config)
    if command.fresh and accelerator.is_main_process:
        for name in (CHECKPOINT, EXPORT, LOG, CURVES, RESIDUALS):
            (command.out / name).unlink(missing_ok=True)
        shutil.rmtree(command.out / SHARDS, ignore_errors=True)
    command.config.device = str(accelerator.device)
    backbone = _backbone(command)
    with accelerator.main_process_first():  # the others read what it made
        clips = _clips(command, backbone)
    run = PilaRun(backbone, clips, command.config, adapter, command.out, accelerator)
    with StopRequest() as stop:
        train(run, stop)
    if command.export and run.main:
        run.export(command.export)
    if run.finished:
        removed = "" if run.val_gain is None else f" It removes {run.val_gain:.2%} of the frozen model's error on held-out clips."
        accelerator.print(f"Adapter: {command.export or command.out / EXPORT}.{removed}")
        return 0
    accelerator.print(f"Stopped at step {run.total_steps} of {run.planned_steps}; the same command goes on from there.")
    return 130


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


def _parse(argv: list[str]) -> PilaCommand:
    """Reads the command line; the recipe is looked at first, because it decides the other defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default="wan")
    try:
        name = first.parse_known_args(argv)[0].recipe
    except argparse.ArgumentError:
        name = "wan"
    config = RECIPES.get(name, RECIPES["wan"])[0]
    return cli.parse(
        PilaCommand,
        argv,
        prog="latent-physics pila",
        description="Train a PILA adapter on a frozen backbone.",
        defaults={"config": replace(config)},
    )


def _backbone(command: PilaCommand) -> Any:
    """The frozen backbone with the parts that this run needs."""
    from .backbones import load_backbone

    family = command.backbone or command.recipe
    decodes = command.cache is not None and command.flow != "latent"
    parts = ["dit", *(["vae", "text"] if command.toy_clips else []), *(["vae"] if decodes else [])]
    source: Any = command.source
    if command.dit is not None:
        source = {"dit": command.dit} | ({"vae": command.vae} if command.vae else {})
    dtype = torch.bfloat16 if command.config.bf16 else torch.float32
    return load_backbone(family, source, parts=parts, device=command.config.device, dtype=dtype)


def _clips(command: PilaCommand, backbone: Any) -> PilaClips:
    if command.toy_clips:
        if backbone.latent_space != "toy":
            raise RunError("--toy-clips needs the toy backbone: add --recipe toy.")
        progress = ProgressLine("toy clips")
        clips = toy_clips(
            command.toy_clips,
            command.config.seed,
            command.out / "toy_clips",
            backbone,
            lambda done: progress.show(done / command.toy_clips, f"{done} of {command.toy_clips}"),
        )
        progress.close()
        backbone.drop("vae", "text")
        return clips
    raft = None
    if command.flow == "raft":
        from .teachers import load_raft

        raft = load_raft(command.raft, command.config.device)
    return cached_clips(command.cache, command.out / "flow", command.flow, backbone, command.labels, raft)


def _show(progress: ProgressLine, run: PilaRun, row: dict[str, float]) -> None:
    stage = run.stages[min(run.stage, len(run.stages) - 1)].name
    words = [f"stage {stage} {run.total_steps}/{run.planned_steps}", f"loss {row['loss']:.4f}"]
    if "gain" in row:
        words.append(f"physics {row['physics']:.3f}")
    if run.val_gain is not None:
        words.append(f"held-out gain {run.val_gain:+.2%}")
    progress.show(run.total_steps / run.planned_steps, " ".join(words))

