"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ..settings import Count, Decay, NotNegative, Number, Positive, Share


@dataclass(kw_only=True)
class LoopConfig:
    """Settings of any training."""

    steps: Count = 2000
    """Optimiser steps."""
    minutes: Positive | None = None
    """Stop cleanly after this many minutes, if that comes before `steps`; the learning rate then falls with
    the clock."""
    batch: Count = 1
    """Clips per micro-batch and process."""
    accumulate: Count = 1
    """Micro-batches per step."""
    learning_rate: Positive = 2e-6
    """Learning rate."""
    warmup: Number = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; "cosine" falls to `final_share` of it."""
    final_share: Share = 0.1
    """Share of the learning rate at the end of a cosine."""
    tail: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of each phase over which a cosine falls, at its end; 1 falls from the first step on."""
    optimizer: str = "torch.optim.AdamW"
    """Optimiser's class: of torch.optim, or of bitsandbytes.optim, torchao.optim or prodigyopt where
    installed."""
    optimizer_args: list[str] = field(default_factory=list)
    """Further arguments of that class, each "key=value", for example "momentum=0.9"."""
    weight_decay: NotNegative = 1e-2
    """Weight decay."""
    beta1: Decay = 0.9
    """Decay of the first moment, in optimisers with betas."""
    beta2: Decay = 0.95
    """Decay of the second moment, in optimisers with betas."""
    max_grad_norm: NotNegative = 1.0
    """Clip gradients to this norm; 0 disables."""
    ema: Decay = 0.0
    """Decay of an exponential moving average of what is trained; 0 keeps none. The average is validated and
    exported."""
    keep: Literal["best", "last"] = "last"
    """Weights that are exported: those of the best validation, or the last ones."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision: bf16 or fp16 arithmetic over float32 weights that are trained."""
    seed: int = 0
    """Seed of every random draw."""
    validate_every: Count = 100
    """Steps between validations, always on the same noise and times."""
    validation_clips: Number = 16
    """Maximum number of clips per validation."""
    validate_first: bool = False
    """Also validate before the first step."""
    save_every: Count = 200
    """Steps between checkpoints."""
    keep_every: Number = 0
    """Steps between checkpoints that are kept under a name of their own; 0 keeps the last only."""
    read_ahead: Number | None = None
    """Micro-batches read ahead of their step, in a thread; 0 reads each when it is needed. Left out, 1 beside
    a GPU, and 0 on a processor, whose cores the step itself uses."""
    gradient_norms: Number = 0
    """Steps between measurements of each loss's own gradient (one more backward pass a loss); 0 measures
    none."""
    tensorboard: bool = False
    """Also write TensorBoard events, where tensorboard is installed."""
    log_with: list[Literal["wandb", "trackio"]] = field(default_factory=list)
    """Also show the log in these trackers (accelerate's), where installed."""


@dataclass(kw_only=True)
class TrainerConfig(LoopConfig):
    """Settings of a fine-tune's, or another run's, training on cached clips; the model is in its command's
    own settings."""

    projector_learning_rate: NotNegative = 0.0
    """Learning rate of the objectives' projectors; 0 takes `learning_rate`."""
    projector_max_grad_norm: NotNegative = 0.0
    """Clip the projectors' gradients to this norm by themselves; 0 clips them together with the model's."""
    prompt_dropout: Decay = 0.0
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for one more forward pass."""
    held_out: Decay = 0.05
    """Share of the source videos kept for validation; 0 for none."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""
