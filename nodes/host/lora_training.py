"""A fine-tune inside the graph: the task and the loop of `latent-physics finetune` around a MODEL's own
network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
from torch import Tensor

from . import native
from .latents import content_key

if TYPE_CHECKING:
    from ...training.loop.loop import Loop
    from ...training.loop.task import Report

NOISE = ("none", "wan2.1-480p", "wan2.1-720p", "wan2.2-t2v-high", "wan2.2-t2v-low", "wan2.2-5b")
"""The presets of `NoiseConfig` for the models that are trained here."""
HELD_OUT = 0.05
"""Share of the source videos that is held out, where that is a whole one."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Settings of a LoRA's training."""

    steps: int
    learning_rate: float
    rank: int
    drift: float
    """Weight of LaMo's drift loss; 0: denoising alone."""
    noise: str
    """One of NOISE."""
    seed: int
    batch: int
    minutes: float
    """0 sets no limit."""
    checkpointing: bool


def make_loop(
    copy: comfy.model_patcher.ModelPatcher,
    clips: Path,
    settings: LoraSettings,
    out: Path | None,
    on_step: Callable[[Report], None],
) -> Loop:
    """The loop over the cached clips of a folder, brought to the state of the checkpoint in `out`.

    copy: a MODEL from `native.trained_copy`. Raises ValueError, in one sentence, where clips, settings and
    checkpoint do not fit.
    """
    from ...training.loop.loop import Loop
    from ...training.loop.processes import OneProcess
    from ...training.loop.task import Run

    config = loop_config(clips, settings)
    task = make_task(copy, clips, settings, config)
    return Loop(
        Run(config=config, task=task, out=out, accelerator=OneProcess(copy.load_device), on_step=on_step)
    )


def loop_config(clips: Path, settings: LoraSettings) -> Any:
    """The loop's settings; a video is held out where `HELD_OUT` of them is at least one."""
    from ...training.data.folder import ClipFolder
    from ...training.loop.config import TrainerConfig

    films = {entry.info.source_hash for entry in ClipFolder.scan(clips, tokens=True).entries}
    return TrainerConfig(
        steps=settings.steps,
        minutes=settings.minutes or None,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        checkpointing=settings.checkpointing,
        held_out=HELD_OUT if len(films) * HELD_OUT >= 1 else 0.0,
        validate_first=True,
        save_every=50,
        tensorboard=False,
    )


def make_task(
    copy: comfy.model_patcher.ModelPatcher, clips: Path, settings: LoraSettings, config: Any
) -> Any:
    """Denoising and, with a weight, LaMo's drift, of the network with a new LoRA."""
    from ...training.data.batches import TrainingClips
    from ...training.objectives import parse
    from ...training.tasks.denoise import DenoisingTask, fitted
    from ...training.tasks.noise import NoiseConfig

    found = TrainingClips(clips, batch=config.batch, seed=config.seed, held_out=config.held_out)
    backbone = native.backbone_of(copy, settings.checkpointing)
    native.add_lora(backbone.dit, settings.rank, settings.rank, settings.seed, copy.load_device)
    objectives = [f"drift weight={settings.drift}"] if settings.drift else []
    built = parse.build(objectives, width=0, blocks=len(backbone.blocks), channels={})
    about = {
        "family": backbone.family,
        "base": content_key(*(block.modulation for block in backbone.blocks)),
        "patches": len(copy.patches),
        "rank": settings.rank,
        "objectives": objectives,
        "noise": settings.noise,
        "shift": backbone.shift,
        "calibrated": fitted(built, found),
    }
    return DenoisingTask(backbone, found, built, about=about, noise=NoiseConfig(noise_preset=settings.noise))


def lora_of(loop: Loop, settings: LoraSettings) -> dict[str, Tensor]:
    """The LORA_MODEL of a loop's weights; alpha is the rank, so that strength 1 is what was trained."""
    return native.lora_weights(loop.kept(), settings.rank)
