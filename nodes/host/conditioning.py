"""A conditioning as a correction reads it: its tokens, pooled over what acts at a noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...methods.lamo import pool_tokens


def pooled_condition(
    conds: list[dict[str, Any]] | None, sigma: float, shape: Sequence[int], device: torch.device
) -> Tensor | None:
    """The pooled prompt embedding `B D` of the positive conditioning for a latent of `shape`, None where it
    has no tokens.

    The mean over the tokens (see pool_tokens). Several prompts that act at this sigma are averaged as ComfyUI
    mixes their estimates: by strength and by the share of the latent that their mask or area covers.
    """
    pooled, weights = [], []
    acting = [
        cond
        for cond in conds or []
        if cond.get("timestep_end", sigma) <= sigma <= cond.get("timestep_start", sigma)
    ]
    for cond in acting:
        tokens, mask = cond.get("cross_attn"), cond.get("attention_mask")
        weight = cond_weight(cond, shape)
        if tokens is None or tokens.ndim != 3 or weight <= 0:
            continue
        if mask is not None and (mask.ndim != 2 or mask.shape[-1] != tokens.shape[1]):
            mask = None
        pooled.append(comfy.utils.repeat_to_batch_size(pool_tokens(tokens, mask), shape[0]).to(device))
        weights.append(weight)
    if not pooled or len({embedding.shape for embedding in pooled}) > 1:
        return pooled[0] if pooled else None
    return sum(weight * embedding for weight, embedding in zip(weights, pooled)) / sum(weights)


def cond_weight(cond: dict[str, Any], shape: Sequence[int]) -> float:
    """Weight of a conditioning entry for a latent of `shape`: strength x the share its mask and area
    cover."""
    weight = float(cond.get("strength", 1.0))
    if cond.get("mask") is not None:
        weight *= float(cond.get("mask_strength", 1.0)) * float(cond["mask"].float().mean())
    area = list(cond.get("area") or ())
    if area and area[0] == "percentage":
        sides = area[1 : 1 + (len(area) - 1) // 2]
    else:
        sides = [size / side for size, side in zip(reversed(area[: len(area) // 2]), reversed(shape))]
    return weight * math.prod(min(1.0, float(side)) for side in sides)


def prompts(conds: list[dict[str, Any]] | None) -> list[Tensor]:
    """Token tensors `B L D` of a conditioning's entries that have them."""
    tokens = [cond.get("cross_attn") for cond in conds or []]
    return [found for found in tokens if found is not None and found.ndim == 3]
