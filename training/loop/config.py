"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class TrainerConfig:
    """How to train; what to train with is in `FinetuneConfig`."""

    steps: int = 2000
    """Optimiser steps."""
    batch: int = 1
    """Clips per micro-batch and process."""
    accumulate: int = 1
    """Micro-batches per step."""
    rate: float = 2e-6
    """Learning rate."""
    projector_rate: float = 0.0
    """Learning rate of the objectives' projectors; 0 takes `rate`."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up; "cosine" falls to a tenth."""
    weight_decay: float = 1e-2
    """AdamW's."""
    beta1: float = 0.9
    """AdamW's."""
    beta2: float = 0.95
    """AdamW's."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay of an exponential moving average of what is trained; 0 keeps none. The average is what gets exported."""
    drop_prompt: float = 0.0
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision: bf16 or fp16 arithmetic over float32 weights that are trained."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for one more forward pass."""
    seed: int = 0
    """Seeds every random draw."""
    held_out: float = 0.05
    """Share of the films kept for validation; 0 for none."""
    validate_every: int = 100
    """Steps between validations, always on the same noise and times."""
    validation_clips: int = 16
    """At most so many clips per validation."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_every: int = 0
    """Also keep the checkpoint of every so many steps under a name of its own; 0 keeps the last only."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""
