"""Settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..console import TrainingError


@dataclass(kw_only=True)
class LoopConfig:
    """How a run trains, whatever it trains."""

    steps: int = 2000
    """Optimiser steps."""
    minutes: float | None = None
    """Stop cleanly after this many minutes, if that comes before `steps`; the learning rate then falls with the clock."""
    batch: int = 1
    """Clips per micro-batch and process."""
    accumulate: int = 1
    """Micro-batches per step."""
    rate: float = 2e-6
    """Learning rate."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; "cosine" falls to `final_rate` of it."""
    final_rate: float = 0.1
    """Share of the learning rate at the end of a cosine."""
    tail: float = 1.0
    """Share of each phase over which a cosine falls, at its end; 1 falls from the first step on."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    ema: float = 0.0
    """Decay of an exponential moving average of what is trained; 0 keeps none. The average is validated and exported."""
    keep: Literal["best", "last"] = "last"
    """Which weights are exported: those of the best validation, or the last ones."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision: bf16 or fp16 arithmetic over float32 weights that are trained."""
    seed: int = 0
    """Seed of every random draw."""
    validate_every: int = 100
    """Steps between validations, always on the same noise and times."""
    validation_clips: int = 16
    """Maximum number of clips per validation."""
    validate_first: bool = False
    """Also validate before the first step."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_every: int = 0
    """Steps between checkpoints that are kept under a name of their own; 0 keeps the last only."""
    read_ahead: int = 1
    """Micro-batches read ahead of their step, in a thread; 0 reads each when it is needed."""
    gradient_norms: int = 0
    """Steps between measurements of each loss's own gradient (one more backward pass a loss); 0 measures none."""
    tensorboard: bool = False
    """Also write TensorBoard events, where tensorboard is installed."""


@dataclass(kw_only=True)
class TrainerConfig(LoopConfig):
    """How a fine-tune, or another run on cached clips, trains; what it trains with is in its command's own settings."""

    projector_rate: float = 0.0
    """Learning rate of the objectives' projectors; 0 takes `rate`."""
    drop_prompt: float = 0.0
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for one more forward pass."""
    held_out: float = 0.05
    """Share of the source videos kept for validation; 0 for none."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""


def check_config(config: LoopConfig) -> None:
    """Raises TrainingError for settings that do not make sense, before anything is loaded or written."""
    for name in ("steps", "batch", "accumulate", "validate_every", "save_every"):
        if getattr(config, name) < 1:
            raise TrainingError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if not config.rate > 0 or not math.isfinite(config.rate):
        raise TrainingError(f"rate is {config.rate}; it must be above 0.")
    for name in ("ema", "drop_prompt", "held_out", "beta1", "beta2"):
        if not 0 <= getattr(config, name, 0) < 1:
            raise TrainingError(f"{name} is {getattr(config, name)}; it must be at least 0 and below 1.")
    for name in ("warmup", "weight_decay", "clip", "projector_rate", "validation_clips", "keep_every", "read_ahead"):
        if not 0 <= getattr(config, name, 0) < math.inf:
            raise TrainingError(f"{name} is {getattr(config, name)}; it must be at least 0.")
    if not 0 <= config.final_rate <= 1 or not 0 < config.tail <= 1:
        raise TrainingError(
            f"final_rate is {config.final_rate} and tail is {config.tail}; both are shares, at most 1, and tail is above 0."
        )
    if config.minutes is not None and not config.minutes > 0:
        raise TrainingError(f"minutes is {config.minutes}; it must be greater than 0.")
