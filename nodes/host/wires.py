"""Readers of a LATENT wire."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def video_in(latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT; of one that nests several (a video and its sound), the first with five
    dimensions."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        samples = next((part for part in samples.unbind() if part.ndim == 5), samples.unbind()[0])
    return samples


def finite_video(latent: dict[str, Any], has: str) -> Tensor:
    """The same in float32. Raises ValueError for NaN and infinity; `has` says what is not there then ("no
    motion to show")."""
    samples = video_in(latent)
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"the latent holds NaN or infinite values, so it has {has}: look at the sampler that made it."
        )
    return samples.float()
