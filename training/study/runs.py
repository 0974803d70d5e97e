"""Trainings of a study: their clips, their settings, and `finetune` on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...methods.weights import WeightsInfo, save_weights
from ..backbones import Backbone
from ..backbones.keys import to_native
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.toy import make_toy_clips, toy_paths
from ..loop.checkpoint import CHECKPOINT, LOG
from ..recipes import load_recipe
from ..tasks.finetune import FinetuneConfig, finetune
from ..tasks.motion_head import MotionHeadConfig, train_motion_head
from .kept import exported, keep, kept
from .plan import ArmPlan, Regime

HEAD = "motion_head.safetensors"
"""File of a first stage."""
FIRST_CLIPS = 1
"""Seed of the first training's clips; later ones follow."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of an arm in a regime."""

    regime: Regime
    arm: ArmPlan
    seed: int
    data: Path
    objectives: list[str]
    out: Path

    @property
    def log(self) -> Path:
        """The run's log."""
        return self.out / LOG

    @property
    def settings(self) -> FinetuneConfig:
        """The fine-tune: the recipe's, on the regime's clips and steps. Nothing is held out where nothing
        reads it."""
        settings, speed = load_recipe(self.arm.recipe, FinetuneConfig), "speed" in self.regime.readouts
        every = self.regime.validate_every
        trainer = replace(
            settings.trainer, seed=self.seed, steps=self.regime.steps, tensorboard=False,
            validate_every=every if speed else self.regime.steps, save_every=every,
            held_out=settings.trainer.held_out if speed else 0.0,
        )  # fmt: skip
        return replace(
            settings, data=self.data, objectives=self.objectives, out=self.out, trainer=trainer,
            export_dtype="float32", dit=self.fresh if self.regime.scratch else None,
        )  # fmt: skip

    @property
    def fresh(self) -> Path:
        """File of the fresh weights that a training from scratch starts from."""
        return self.out.parents[1] / f"fresh-seed{self.seed}.safetensors"

    @property
    def basis(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        trainer = vars(self.settings.trainer)
        return {
            "objectives": self.objectives,
            "data": self.data.name,
            "scratch": self.regime.scratch,
            **trainer,
        }


def make_data(
    folder: Path,
    backbone: Callable[[], Backbone],
    count: int,
    seed: int,
    wrong: float,
    progress: ProgressLine,
) -> Path:
    """Draws a training's clips into `folder`, which it returns; those that are there stay."""
    of_clips = seed + FIRST_CLIPS
    if not all(path.is_file() for path in toy_paths(folder, of_clips, range(count))):
        make_toy_clips(folder, backbone(), count, of_clips, wrong, progress)
    return folder


def train_arm(run: Training, backbone: Backbone, stop: StopRequest, progress: ProgressLine) -> bool:
    """Trains until the exported file is there; returns whether it is. Of a finished run the checkpoint is
    deleted.

    Raises TrainingError where the folder holds a run of other settings, and what `finetune` raises.
    """
    path = run.out / "training.json"
    if kept(path, run.basis) is None:
        if path.is_file() or exported(run.out) is not None:
            raise TrainingError(
                f"{run.out} holds a training of other settings; give another --out, or delete the folder."
            )
        keep(path, {}, run.basis)
    if exported(run.out) is not None:
        return True
    if run.regime.scratch and not run.fresh.is_file():
        write_fresh(backbone, run.fresh, run.seed)
    outcome, _ = finetune(run.settings, stop, progress)
    if outcome.stopped:
        return False
    (run.out / CHECKPOINT).unlink(missing_ok=True)
    return True


def write_fresh(backbone: Backbone, path: Path, seed: int) -> None:
    """A transformer of the backbone's sizes as it is before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(backbone.dit).from_config(backbone.dit.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = to_native(fresh.state_dict(), backbone.dit_keys)
    save_weights(
        path, state, WeightsInfo(kind="toy_dit", latent_space="toy", config={}, recipe={"seed": seed})
    )


def first_stage(
    arm: ArmPlan, out: Path, data: Path, seed: int, stop: StopRequest, progress: ProgressLine
) -> Path | None:
    """The motion head of an arm's first stage, trained where it is missing; None where it was stopped."""
    path = out / HEAD
    if path.is_file():
        return path
    if arm.stage1 is None:
        raise TrainingError(f"the arm {arm.name!r} asks for a first stage and names none: give stage1.")
    settings = load_recipe(arm.stage1, MotionHeadConfig, "motion-head")
    trainer = replace(settings.trainer, seed=seed, tensorboard=False)
    outcome, made = train_motion_head(replace(settings, data=data, out=out, trainer=trainer), stop, progress)
    return None if outcome.stopped else made
