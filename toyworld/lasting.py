"""Do things stay what they are? Number, mass and colour of a clip's things over time, apart from how they
move.

The order of the frames does not count: a clip and its frames shuffled have one permanence, and so has a
still. Read it beside the law score, which things that split or change colour lose too.
"""

from __future__ import annotations

import numpy as np

from .worlds import World

USUAL_CHANGE: dict[str, float] = {
    "rigid_body": 0.001,
    "elastic": 0.003,
    "fluid": 0.002,
    "compressible_flow": 0.067,
    "collision": 0.001,
    "phase_change": 0.001,
    "thermal": 0.045,
    "optical": 0.169,
}
"""`mass_change` of real clips, per world: what the law itself and the renderer's rims make of mass."""
PART = 0.12
"""Share of a thing's mass in a frame from which a piece of it counts."""
FAINT = 0.1
"""Opacity below which nothing belongs to a piece."""


def permanence(alphas: np.ndarray, world: World) -> float:
    """Product of how well number, mass and colour of the things stay, in [0, 1]; 0 where nothing is there.

    alphas: opacities (T, colours, H, W) of `World.unmix`.
    """
    mass = alphas.sum((-2, -1))
    cast = world.present(alphas)
    if not cast:
        return 0.0
    usual = USUAL_CHANGE[world.name]
    steady = np.clip((1 - mass_change(mass[:, cast])) / (1 - usual), 0, 1)
    return float(number_kept(alphas[:, cast], world) * steady * colour_kept(mass, cast))


def mass_change(mass: np.ndarray) -> float:
    """Mean over frames and things of |mass / its median - 1|, at most 1 each; mass (T, things)."""
    middle = np.maximum(np.median(mass, axis=0), 1e-6)
    return float(np.minimum(np.abs(mass / middle - 1), 1).mean())


def colour_kept(mass: np.ndarray, cast: list[int]) -> float:
    """Mean over frames of the share of all mass (T, colours) that is of the clip's own colours, times the
    share of these that are there (a quarter of their median mass or more)."""
    own = mass[:, cast]
    share = own.sum(1) / np.maximum(mass.sum(1), 1e-6)
    there = own >= 0.25 * np.maximum(np.median(own, axis=0), 1e-6)
    return float((share * there.mean(1)).mean())


def number_kept(alphas: np.ndarray, world: World) -> float:
    """Share of frames in which a thing is in as many pieces as it may be in this world, of those in which it
    is there; alphas (T, things, H, W)."""
    fewest, most = world.pieces
    kept = [
        fewest <= pieces(frame) <= most
        for thing in alphas.swapaxes(0, 1)
        for frame in thing
        if frame.sum() >= 0.25 * world.mass_range[0]
    ]
    return float(np.mean(kept)) if kept else 0.0


def pieces(alpha: np.ndarray) -> int:
    """Number of connected pieces (sides and corners touch) of an opacity (H, W) that hold `PART` of its
    mass."""
    inside = alpha > FAINT
    labels = np.where(inside, np.arange(1, alpha.size + 1).reshape(alpha.shape), 0)
    while True:  # the largest label of a piece floods it
        padded = np.pad(labels, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        flooded = np.where(inside, np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]), 0)
        if np.array_equal(flooded, labels):
            break
        labels = flooded
    held = np.bincount(labels.ravel(), weights=alpha.ravel())[1:]
    return int((held > PART * alpha.sum()).sum())
