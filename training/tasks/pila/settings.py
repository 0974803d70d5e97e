"""Settings of a PILA adapter's training: each with the paper's number, and the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....methods.pila import TOY, PilaConfig
from ... import settings
from ...console import TrainingError
from ...settings import Count, Decay, NotNegative, Number, Positive, Share


@dataclass(kw_only=True)
class PilaTraining:
    """Settings of an adapter's training. The defaults are the paper's numbers for Wan 2.1 1.3B."""

    observable_steps: Count = 3000
    """Steps of each of stage A's three phases (index ranges 0.90-1, 0.75-1, 0.50-1)."""
    recovery_steps: Count = 2600
    """Steps of stage B."""
    alpha_start: Number = 800
    """Step of stage B at which the phase and temperature fields join."""
    impulse_start: Number = 1500
    """Step of stage B at which impulses join."""
    wave_start: Number = 2100
    """Step of stage B at which waves join."""
    coupling_steps: Count = 18000
    """Steps of stage C. The source trains 3 epochs and evaluates step 18000."""
    freeze_steps: Number = 1000
    """Steps of stage C in which encoder and velocity path stay frozen."""
    slow: NotNegative = 0.3
    """Learning rate of encoder and scaffold after that, relative to the rest."""
    physics_weight: NotNegative = 0.30
    """Weight of the routed residuals (lambda of Eq 11)."""
    physics_warmup: Number = 2000
    """Steps over which that weight, and the noise up to which physics is judged, rise."""
    condition_warmup: Number = 1000
    """Steps over which the prompt is faded in."""
    observable_anchor: NotNegative = 0.1
    """Weight of the flow target in stage B."""
    coupling_anchor: NotNegative = 0.0
    """Weight of the flow target in stage C. The paper's Eq 11 has none; without it the velocity slot can
    forget the flow."""
    coupling_spread: NotNegative = 0.0
    """Weight, in stage C, of the guards against pressure, density, phase, temperature, impulse and wave
    fields that collapse to a constant."""
    prompt_dropout: Share = 0.1
    """Share of samples trained without a prompt."""
    shift: Positive = 5.0
    """Noise schedule: sigma = shift s / (1 + (shift - 1) s) for s = 1 - index."""
    batch: Count = 1
    """Clips per step and process."""
    learning_rate: Positive = 1e-5
    """Learning rate of AdamW, constant until the cooldown."""
    cooldown: Share = 0.1
    """Share of stage C over which the learning rate falls to 0 along a cosine, at its end. The paper's rate
    is constant: 0."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 0.5
    """Clip gradients to this norm."""
    ema: Decay = 0.0
    """Decay of an exponential moving average of the adapter; 0 keeps none. The average is validated and
    exported."""
    keep: Literal["best", "last"] = "last"
    """Weights that are exported: those with the largest gain on held-out clips, or the last ones."""
    read_ahead: Number | None = None
    """Batches read ahead of their step, in a thread; 0 reads each when it is needed. Left out, 1 beside a
    GPU, and 0 on a processor."""
    adaptive: bool = True
    """Weigh the terms of a category by their running means; off, every term has weight 1."""
    held_out_clips: Number = 16
    """Clips held out to measure the coupled flow-matching error; 0 for none."""
    every: Count = 250
    """Steps between validations, checkpoints and drawn curves."""
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
            coupling_anchor=0.1,
            coupling_spread=0.3,
            shift=3.0,
            batch=16,
            learning_rate=1e-3,
            cooldown=0.25,
            every=100,
            held_out_clips=32,
        ),
        TOY,
    ),
}
"""wan: the source's numbers, for GPUs. toy: a small adapter on the toy world, for two cores."""


def check(config: PilaTraining) -> None:
    """Raises TrainingError, in one sentence, for a setting out of range."""
    settings.check(config)
    if not config.alpha_start <= config.impulse_start <= config.wave_start:
        starts = (config.alpha_start, config.impulse_start, config.wave_start)
        raise TrainingError(
            f"the recovery phases start at {starts}; each must start at or after the one before."
        )
