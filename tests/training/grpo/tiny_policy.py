"""A policy at its smallest: the toy backbone, a LoRA, short clips, groups of four."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import ProgressLine
from latent_physics.training.tasks.grpo.run import grpo
from latent_physics.training.tasks.grpo.settings import GrpoConfig, PolicyTrainerConfig


def make_config(out: Path, steps: int = 2, **more: Any) -> GrpoConfig:
    """Nine frames of the toy world, two groups of four clips an iteration, a window of two of four steps."""
    trainer = {"batch": 4, "learning_rate": 1e-3, "save_every": 1, "validate_every": 100, "weight_decay": 0.0}
    trainer |= {key: more.pop(key) for key in list(more) if key in PolicyTrainerConfig.__dataclass_fields__}
    settings = {
        "out": out, "backbone": "toy", "toy_prompts": 8, "eval_count": 2, "frames": 13, "group_size": 4,
        "unique_sample_num_per_epoch": 2, "num_inference_steps": 4, "eval_num_inference_steps": 2,
        "rewards": ["motion source=toy_predictor_order1"], "watch": [], "samples": 0, "export": False,
        "tune": TuneConfig(rank=2),
    }  # fmt: skip
    return GrpoConfig(
        **settings | more, trainer=PolicyTrainerConfig(steps=steps, tensorboard=False, **trainer)
    )


def run(config: GrpoConfig) -> Any:
    """The outcome, without a word on the screen."""
    torch.set_num_threads(1)
    return grpo(config, progress=ProgressLine("grpo", stream=io.StringIO()))[0]
