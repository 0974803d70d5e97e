"""From settings to a reinforced model: prompts are embedded, then the transformer is loaded and trained."""

from __future__ import annotations

import gc
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ....encoders import TeacherError
from ....methods.weights import WeightsError
from ...backbones import Backbone
from ...backbones.load import load_backbone
from ...console import ProgressLine, StopRequest, TrainingError
from ...loop.loop import train
from ...loop.processes import make_accelerator
from ...loop.task import Outcome, Run
from ..export import ExportConfig, export
from ..model import about_model, companions, load_dit, make_trainable
from . import rewards
from .prompts import EVAL_SEED, Prompts, embed, prompt_files, toy_prompts
from .rollouts import Collector, Judges, refuse_sharding
from .sampler import Sampler
from .settings import GrpoConfig, accumulation, check, form
from .task import PolicyTask

ERRORS = (TeacherError, TrainingError, WeightsError)


def grpo(
    config: GrpoConfig, stop: StopRequest | None = None, progress: ProgressLine | None = None
) -> tuple[Outcome, Path | None]:
    """Runs the reinforcement; returns the outcome and the exported file. Raises one of ERRORS."""
    check(config)
    accelerator = make_accelerator(config.trainer)
    refuse_sharding(accelerator)
    accumulate = accumulation(config, accelerator.num_processes)
    config = replace(config, trainer=replace(config.trainer, accumulate=accumulate))
    accelerator.gradient_accumulation_steps = accumulate
    progress = progress or ProgressLine(config.algorithm)
    words, held_out = prompts_of(config)
    found = embedded(config, words, held_out, accelerator.device, progress)
    task = make_task(config, *found, accelerator, progress)
    run = Run(
        config=config.trainer,
        settings=settings_of(config),
        task=task,
        out=config.out,
        accelerator=accelerator,
    )
    outcome = train(run, stop, progress)
    path = None
    if config.export and not outcome.stopped and accelerator.is_main_process:
        path = export(
            ExportConfig(run=config.out, dtype=config.export_dtype, format=config.export_format)
        )
    return outcome, path


def prompts_of(config: GrpoConfig) -> tuple[list[str], list[str]]:
    """(prompts to learn from, held-out prompts). Raises TrainingError."""
    if config.toy_prompts:
        seed = config.trainer.seed
        return toy_prompts(config.toy_prompts, seed), toy_prompts(config.eval_count, EVAL_SEED)
    words, held_out = prompt_files(config.prompts, config.eval_prompts)
    return words, held_out[: config.eval_count]


def embedded(
    config: GrpoConfig, words: list[str], held_out: list[str], device: torch.device, progress: ProgressLine
) -> tuple[Prompts, Prompts | None, tuple[Any, Any] | None]:
    """All prompts of the run in one pass over the text encoder, which is freed afterwards: (to learn from,
    held out, the empty prompt's tokens and mask for guidance)."""
    backbone = load_backbone(config.backbone, companions(config), parts=("text",), device=device)
    everything = embed(backbone, [*words, *held_out, ""], progress)
    del backbone
    gc.collect()
    count = len(words)
    null = Prompts(words=[""], tokens=everything.tokens[-1:]).batch([0])
    later = Prompts(words=held_out, tokens=everything.tokens[count:-1]) if held_out else None
    return Prompts(words=words, tokens=everything.tokens[:count]), later, null


def make_task(
    config: GrpoConfig,
    words: Prompts,
    held_out: Prompts | None,
    null: tuple[Any, Any],
    accelerator: Any,
    progress: ProgressLine,
) -> PolicyTask:
    """The task with its transformer, VAE and judges."""
    judging = rewards.build(config.rewards, accelerator.device)
    watched = rewards.build(config.watch, accelerator.device)
    vae = load_backbone(config.backbone, companions(config), parts=("vae",)).vae.eval().requires_grad_(False)
    backbone = load_dit(config)
    make_trainable(config, backbone, config.trainer.seed, config.trainer.checkpointing)
    clip = form(config)
    judges = Judges(backbone, vae, judging, watched, clip.fps)
    collector = Collector(
        config, sampler_of(config, backbone, null), judges, words, latent_shape(config, backbone)
    )
    if accelerator.is_main_process:
        collector.say = progress.say
    evaluator = sampler_of(config, backbone, null, evaluating=True)
    about = about_model(config, backbone) | {"objectives": []}
    return PolicyTask(config, collector, held_out, evaluator, about)


def sampler_of(
    config: GrpoConfig, backbone: Backbone, null: tuple[Any, Any], evaluating: bool = False
) -> Sampler:
    """The policy's sampler, or that of held-out prompts."""
    if evaluating:
        return Sampler(
            backbone=backbone,
            steps=config.eval_num_inference_steps,
            guidance=config.guidance_scale,
            null=null,
        )
    usual = "Flow-SDE" if backbone.prediction == "flow" else "DDIM-eta"
    kind = usual if config.dynamics_type == "auto" else config.dynamics_type
    return Sampler(
        backbone=backbone, steps=config.num_inference_steps, kind=kind, noise_level=config.noise_level,
        guidance=config.guidance_scale if config.train_cfg else 1.0, null=null,
    )  # fmt: skip


def latent_shape(config: GrpoConfig, backbone: Backbone) -> tuple[int, int, int, int]:
    """`C T H W` of a clip's latent."""
    clip = form(config)
    frames = 1 + (clip.frames - 1) // backbone.temporal_stride
    side = backbone.spatial_stride
    return backbone.latent_channels, frames, clip.height // side, clip.width // side


def settings_of(config: GrpoConfig) -> dict[str, Any]:
    """What a resumed run must share, as plain values."""
    left_out = (
        "out",
        "export",
        "export_dtype",
        "samples",
        "about",
        "recipe",
        "tune",
        "offload_samples_to_cpu",
    )
    values = {key: value for key, value in asdict(config).items() if key not in left_out}
    trainer = values.pop("trainer")
    return trainer | {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
