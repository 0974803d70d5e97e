"""Clips and prompts drawn from the worlds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .corruption import corrupted
from .prompts import describe
from .worlds import WORLDS, World


def world_named(name: str) -> World:
    """The world of that name. Raises ValueError naming the eight."""
    if name not in WORLDS:
        raise ValueError(f"there is no toy world {name!r}; choose one of {', '.join(WORLDS)}.")
    return WORLDS[name]


def draw_clip(world: World, rng: np.random.Generator, wrong: float = 0.0) -> tuple[np.ndarray, str]:
    """One clip (T,3,H,W) in [0,1] and its prompt; with probability `wrong` its dynamics are corrupted (the
    prompt is not told)."""
    scene = world.draw(rng)
    frames = corrupted(world, scene, rng) if rng.random() < wrong else world.render(scene)
    return frames, describe(world, scene, rng)


def sample(world: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """`count` real clips of one world: (B,3,T,H,W) float32 in [0,1], and their prompts. The same seed gives
    the same clips.

    Raises ValueError for an unknown world.
    """
    rng = np.random.default_rng(seed)
    drawn = [draw_clip(world_named(world), rng) for _ in range(count)]
    clips = torch.from_numpy(np.stack([frames for frames, _ in drawn])).movedim(1, 2)
    return clips.contiguous(), [prompt for _, prompt in drawn]


def mixture(
    count: int, seed: int, wrong: float, first: int = 0, worlds: Sequence[str] = ()
) -> tuple[Tensor, list[str], list[str]]:
    """`count` clips over `worlds` (all of them where none is named) in turn, from world number `first`
    (modulo their number) on, a share `wrong` of them with corrupted dynamics: clips (B,3,T,H,W), prompts,
    world names. Raises ValueError for an unknown world."""
    rng, turn = np.random.default_rng(seed), list(worlds) or list(WORLDS)
    names = [turn[index % len(turn)] for index in range(first, first + count)]
    drawn = [draw_clip(world_named(name), rng, wrong) for name in names]
    clips = torch.from_numpy(np.stack([frames for frames, _ in drawn])).movedim(1, 2)
    return clips.contiguous(), [prompt for _, prompt in drawn], names
