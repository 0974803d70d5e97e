"""Distance that tracked things travel: motion that flicker is no part of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .canvas import COLUMNS, ROWS, moments
from .scores import _pairs

WINDOW = 4
"""Frames whose mean is one place: one latent frame of the toy VAE, whose flicker inside of it averages
out."""


def travel(clips: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Mean way of the things between one window of four frames and the next, px, `B` float32.

    A thing is everything of one palette colour; its state is centroid and radius (root of the mean squared
    distance from the centroid), so that growing puffs and rings travel too. Unlike `dynamic_degree`, unrest
    that leaves a thing where it is counts nothing. 0 where nothing is there. Raises as `score` does.
    """
    return torch.tensor(
        [way(world.unmix(frames)) for frames, world in _pairs(clips, worlds)], dtype=torch.float32
    )


def way(alphas: np.ndarray) -> float:
    """The same of opacities (T, colours, H, W)."""
    mass, x, y = moments(alphas)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (alphas * ((COLUMNS - x[..., None, None]) ** 2 + (ROWS - y[..., None, None]) ** 2)).sum(
            (-2, -1)
        ) / mass
    states = np.stack([x, y, np.sqrt(spread)], axis=-1)
    there = mass > 0.25 * np.maximum(mass.max(0), 1e-6)
    strong = mass.mean(0) > 0.25 * max(mass.mean(0).max(), 1e-6)
    windows = len(mass) // WINDOW
    ways = []
    for colour in np.flatnonzero(strong):
        parts = np.where(there[:, colour, None], states[:, colour], np.nan)[: windows * WINDOW].reshape(
            windows, WINDOW, 3
        )
        seen = np.isfinite(parts).all(-1).sum(1) >= WINDOW // 2
        means = np.array([np.nanmean(part, axis=0) if ok else [np.nan] * 3 for part, ok in zip(parts, seen)])
        ways.append(np.linalg.norm(np.diff(means, axis=0), axis=1))
    steps = np.concatenate(ways) if ways else np.zeros(0)
    steps = steps[np.isfinite(steps)]
    return float(steps.mean()) if len(steps) else 0.0
