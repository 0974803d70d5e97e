"""Trained weights: a LoRA or the whole transformer; and the running average of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..console import TrainingError
from ..loop.optim import trainable
from ..settings import Count, Decay, Positive, check
from . import Backbone


@dataclass(kw_only=True)
class TuneConfig:
    """Weights that are trained."""

    mode: Literal["lora", "full"] = "lora"
    """A low-rank adapter, or every weight of the transformer."""
    rank: Count = 64
    """Rank of the adapter."""
    alpha: Positive = 64.0
    """The adapter is scaled by alpha / rank (alpha / sqrt(rank) with `rslora`)."""
    dropout: Decay = 0.0
    """Dropout in the adapter."""
    rslora: bool = False
    """Rank-stabilised scaling. The exported file carries an alpha that gives the same scale."""
    targets: str = ""
    """Names or endings of the transformer's linear layers (diffusers' names), separated by commas; empty for
    the family's usual ones."""


def attach(backbone: Backbone, config: TuneConfig, seed: int = 0) -> None:
    """Makes what `config` names trainable, in float32. Raises TrainingError where the rank is bad or a target
    names no layer."""
    dit = backbone.dit
    dit.requires_grad_(False)
    if config.mode == "full":
        dit.requires_grad_(True).float()
        backbone.dtype = torch.float32
        return
    from peft import LoraConfig

    check(config)
    targets = check_targets(
        dit,
        [word.strip() for word in config.targets.split(",") if word.strip()] or list(backbone.lora_targets),
    )
    torch.manual_seed(seed)
    dit.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            target_modules=targets,
            init_lora_weights=True,
        )
    )
    for value in trainable(dit).values():
        value.data = value.data.float()


def check_targets(dit: nn.Module, targets: Sequence[str]) -> list[str]:
    """Raises TrainingError for a target that ends no linear layer's name."""
    linear = [name for name, module in dit.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            example = next((name for name in linear if "attn1" in name), linear[0])
            raise TrainingError(
                f"no linear layer of this model ends in {target!r}; its layers are named like {example!r}."
            )
    return list(targets)


def scaling(config: TuneConfig) -> float:
    """Factor of the adapter's product."""
    return config.alpha / (config.rank**0.5 if config.rslora else config.rank)
