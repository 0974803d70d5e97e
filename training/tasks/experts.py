"""Wan 2.2 14B's two experts in one command: a fine-tune for each, on its own range of the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..console import ProgressLine, StopRequest, TrainingError
from ..loop.task import Outcome
from .companions import FILE as PROMPTS
from .finetune import FinetuneConfig, check, finetune


def finetune_experts(
    config: FinetuneConfig, stop: StopRequest | None = None, progress: ProgressLine | None = None
) -> tuple[Outcome, Path | None]:
    """Fine-tunes the high-noise expert, then the low-noise one, on the same cached clips; returns what
    `finetune` does for the one that came last. Raises what it does."""
    check_experts(config)
    experts = [expert_of(config, end) for end in ("high", "low")]
    for expert in experts:  # both, before the first of two long runs
        check(expert)
    for expert in experts:
        outcome, path = finetune(expert, stop, progress, kept=config.out / PROMPTS)
        if outcome.stopped:
            break
    return outcome, path


def expert_of(config: FinetuneConfig, end: Literal["high", "low"]) -> FinetuneConfig:
    """The fine-tune of one expert; the low-noise one reads the clips that the other has cached."""
    name = Path(config.recipe).stem.removesuffix("-high") or "wan22"
    preset = config.noise.noise_preset.removesuffix("high") + end
    expert = replace(
        config, dit=config.dit if end == "high" else config.dit_low, dit_low=None, out=config.out / end,
        recipe=f"{name}-{end}", noise=replace(config.noise, noise_preset=preset),
    )  # fmt: skip
    if end == "high" or config.data is not None:
        return expert
    return replace(expert, data=config.out / "high" / "cache", masks=None)


def check_experts(config: FinetuneConfig) -> None:
    """Raises TrainingError where two experts are asked for and one of them, or their boundary, is missing."""
    if not config.dit or config.backbone != "wan":
        raise TrainingError(f"dit_low is {config.dit_low}; it goes with --dit, Wan 2.2's high-noise expert.")
    if not (config.noise.noise_preset.startswith("wan2.2") and config.noise.noise_preset.endswith("high")):
        raise TrainingError(
            f"noise_preset is {config.noise.noise_preset}; for two experts it must be wan2.2-t2v-high or "
            f"wan2.2-i2v-high, which names their boundary."
        )
