"""From settings to a reinforced model: prompts are embedded, then the transformer is loaded and trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ....encoders import TeacherError
from ....methods.weights import WeightsError
from ...backbones import Backbone
from ...backbones.families import KINDS
from ...console import ProgressLine, StopRequest, TrainingError
from ...data.format import CacheConfig
from ...data.loaders import BOTH
from ...data.toy_prompts import toy_prompts
from ...loop.loop import train
from ...loop.processes import make_accelerator
from ...loop.task import Outcome, Run
from ..companions import FILE as PROMPTS
from ..companions import Companions
from ..export import ExportConfig, export
from ..model import about_model, encoder_files, load_dit, make_trainable
from . import rewards
from .prompts import EVAL_SEED, prompt_files
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
    progress = progress or ProgressLine(config.algorithm)
    run = make_run(config, progress)
    outcome = train(run, stop, progress)
    path = None
    if config.export and not outcome.stopped and run.accelerator.is_main_process:
        path = export(ExportConfig(run=config.out, dtype=config.export_dtype, format=config.export_format))
    return outcome, path


def make_run(config: GrpoConfig, progress: ProgressLine) -> Run:
    """The run of checked settings, everything loaded. Raises one of ERRORS."""
    accelerator = make_accelerator(config.trainer, KINDS[config.backbone].backbone.leaves_unused)
    refuse_sharding(accelerator)
    accumulate = accumulation(config, accelerator.num_processes)
    config = replace(config, trainer=replace(config.trainer, accumulate=accumulate))
    accelerator.gradient_accumulation_steps = accumulate
    words = prompts_of(config)
    companions = make_companions(config, words, progress)
    companions.gather(accelerator)
    task = make_task(config, words, companions, accelerator, progress)
    return Run(
        config=config.trainer,
        settings=settings_of(config),
        task=task,
        out=config.out,
        accelerator=accelerator,
    )


def prompts_of(config: GrpoConfig) -> tuple[list[str], list[str]]:
    """(prompts to learn from, held-out prompts). Raises TrainingError."""
    if config.toy_prompts:
        words, _ = toy_prompts(config.toy_prompts, config.trainer.seed, config.toy_worlds)
        held_out, _ = toy_prompts(config.eval_count, EVAL_SEED, config.toy_worlds)
        return words, held_out
    words, held_out = prompt_files(config.prompts, config.eval_prompts)
    return words, held_out[: config.eval_count]


def make_companions(
    config: GrpoConfig, words: tuple[list[str], list[str]], progress: ProgressLine
) -> Companions:
    """Text encoder and VAE. Raises TrainingError where files do not go together."""
    encoders = CacheConfig(out=config.out, **encoder_files(config, BOTH))
    return Companions(encoders, [*words[0], *words[1], ""], config.out / PROMPTS, progress)


def make_task(
    config: GrpoConfig,
    words: tuple[list[str], list[str]],
    companions: Companions,
    accelerator: Any,
    progress: ProgressLine,
) -> PolicyTask:
    """The task with its transformer, VAE and judges. words: those of `prompts_of`, embedded."""
    learned, held_out = companions.take(words[0]), companions.take(words[1]) if words[1] else None
    null = companions.take([""]).batch([0])
    judging = rewards.build(config.rewards, accelerator.device)
    watched = rewards.build(config.watch, accelerator.device)
    vae = companions.vae
    backbone = load_dit(config)
    make_trainable(config, backbone, config.trainer.seed, config.trainer.checkpointing)
    clip = form(config)
    judges = Judges(backbone, vae, judging, watched, clip.fps)
    collector = Collector(
        config, sampler_of(config, backbone, null), judges, learned, latent_shape(config, backbone)
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
    """Settings that a resumed run must share, as plain values."""
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
