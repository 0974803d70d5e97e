"""Wan 2.2 14B's two experts in one command: a fine-tune for each, on its own range of the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..console import ProgressLine, StopRequest, TrainingError
from ..loop.task import Outcome
from .companions import FILE as PROMPTS
from .finetune import FinetuneConfig, finetune


def finetune_experts(
    config: FinetuneConfig, stop: StopRequest | None = None, progress: ProgressLine | None = None
) -> tuple[Outcome, Path | None]:
    """Fine-tunes the high-noise expert, then the low-noise one, on the same cached clips; returns what
    `finetune` does for the one that came last. Raises what it does."""
    check_experts(config)
    name = Path(config.recipe).stem.removesuffix("-high") or "wan22"
    data = config.data
    for end, dit in (("high", config.dit), ("low", config.dit_low)):
        preset = config.noise.noise_preset.removesuffix("high") + end
        noise, out = replace(config.noise, noise_preset=preset), config.out / end
        expert = replace(
            config, dit=dit, dit_low=None, data=data, out=out, recipe=f"{name}-{end}", noise=noise
        )
        outcome, path = finetune(expert, stop, progress, kept=config.out / PROMPTS)
        if outcome.stopped:
            break
        data = data or out / "cache"
    return outcome, path


def check_experts(config: FinetuneConfig) -> None:
    """Raises TrainingError where two experts are asked for and one of them, or their boundary, is missing."""
    if not config.dit or config.backbone != "wan":
        raise TrainingError(f"dit_low is {config.dit_low}; it goes with --dit, Wan 2.2's high-noise expert.")
    if not (config.noise.noise_preset.startswith("wan2.2") and config.noise.noise_preset.endswith("high")):
        raise TrainingError(
            f"noise_preset is {config.noise.noise_preset}; for two experts it must be wan2.2-t2v-high or "
            f"wan2.2-i2v-high, which names their boundary."
        )
