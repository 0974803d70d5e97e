"""Dynamics that look right and move wrong: a world's own frames at the wrong times, or under the wrong
constants.

Web video teaches a generator appearance from every clip and physics from few. The toy base model is trained
on a mixture with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .canvas import COLOURS, FRAMES, SIZE
from .worlds import Scene, World

LAST = FRAMES - 1.0


def shuffled(rng: np.random.Generator) -> np.ndarray:
    """All frames, in random order."""
    return rng.permutation(FRAMES).astype(float)


def frozen(rng: np.random.Generator) -> np.ndarray:
    """One frame, held."""
    return np.full(FRAMES, float(rng.integers(FRAMES)))


def warped(rng: np.random.Generator) -> np.ndarray:
    """Time that runs unevenly: a random monotone map of the clip onto itself."""
    pace = np.exp(
        rng.uniform(0.9, 1.4)
        * np.sin(2 * np.pi * (np.arange(FRAMES - 1) / LAST * rng.uniform(0.8, 1.6) + rng.random()))
    )
    times = np.concatenate([[0.0], np.cumsum(pace)])
    return times / times[-1] * LAST


def jumping(rng: np.random.Generator) -> np.ndarray:
    """Time that skips back or forth at one to three moments."""
    times = np.arange(FRAMES, dtype=float)
    for moment in rng.integers(4, FRAMES - 2, size=rng.integers(1, 4)):
        times[moment:] += rng.uniform(5, 14) * rng.choice((-1.0, 1.0))
    return np.clip(times, 0, LAST + 6)


def stalling(rng: np.random.Generator) -> np.ndarray:
    """Time that stands still for a while, then goes on."""
    start, length = rng.integers(4, 20), rng.integers(6, 14)
    times = np.arange(FRAMES, dtype=float)
    times[start:] = np.maximum(times[start:] - length, start)
    return times


def backwards(rng: np.random.Generator) -> np.ndarray:
    """The clip from its end to its beginning. The laws of some worlds hold either way."""
    return np.arange(FRAMES, dtype=float)[::-1]


def gathering(rng: np.random.Generator) -> np.ndarray:
    """Time whose pace grows from nearly nothing to nearly twice what it should be."""
    pace = np.linspace(rng.uniform(0.02, 0.15), rng.uniform(1.4, 1.8), FRAMES - 1)
    return np.concatenate([[0.0], np.cumsum(pace)])


def losing(rng: np.random.Generator) -> np.ndarray:
    """Time whose pace falls to nearly nothing, as if all motion wore out."""
    pace = np.linspace(rng.uniform(1.4, 1.8), rng.uniform(0.02, 0.15), FRAMES - 1)
    return np.concatenate([[0.0], np.cumsum(pace)])


def halting(rng: np.random.Generator) -> np.ndarray:
    """Time at a third to half of its pace: all is slow."""
    return np.arange(FRAMES) * rng.uniform(0.33, 0.5)


PACES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "gathering": gathering,
    "losing": losing,
    "halting": halting,
}
"""Paces of the training mixture. Each lasts from the first frame to the last and none jumps, stops or turns
round: what a model learns from a clip is then one wrong motion, not things that appear and vanish."""
WRONG_PACE = 0.5
"""Share of the mixture's mistakes that are a wrong pace; the others are a wrong constant."""


def wrong_constants(world: World, rng: np.random.Generator) -> dict[str, float]:
    """The world's first constant multiplied by one of its `mistaken` factors or its inverse."""
    name = next(iter(world.constants))
    factor = rng.uniform(*world.mistaken)
    return {name: world.constants[name] * (factor if rng.random() < 0.5 else 1 / factor)}


def corrupted(world: World, scene: Scene, rng: np.random.Generator, part: slice = slice(None)) -> np.ndarray:
    """The scene rendered with one mistake that lasts the clip: frames (T,3,H,W), or those of `part` alone."""
    if rng.random() < WRONG_PACE:
        return world.render(scene, PACES[list(PACES)[rng.integers(len(PACES))]](rng)[part])
    return world.render(scene, np.arange(FRAMES)[part], **wrong_constants(world, rng))


def scaled(world: World, scene: Scene, factor: float) -> np.ndarray:
    """The scene under the law with its first constant multiplied."""
    name = next(iter(world.constants))
    return world.render(scene, **{name: world.constants[name] * factor})


def teleporting(world: World, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """From one moment on everything that is not background stands elsewhere, 14 to 25 px to a side (round the
    edge).
    """
    frames = world.render(scene)
    things = frames - world.background
    moment, away = rng.integers(8, 25), int(rng.choice((-1, 1)) * rng.integers(14, 26))
    things[moment:] = np.roll(things[moment:], away, axis=3)
    return (world.background + things).clip(0, 1).astype(np.float32)


def vanishing(world: World, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """For 6 to 13 frames nothing but background is there; then the scene goes on."""
    frames = world.render(scene)
    start, length = rng.integers(6, 18), rng.integers(6, 14)
    frames[start : start + length] = world.background
    return frames


def recoloured(world: World, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """From one moment on every thing has another colour."""
    others = {name: COLOURS[(index + 1) % len(COLOURS)] for index, name in enumerate(COLOURS)}
    after = replace(scene, colours=tuple(others[name] for name in scene.colours))
    moment = rng.integers(8, FRAMES - 8)
    return np.concatenate([world.render(scene)[:moment], world.render(after)[moment:]])


def doubled(world: World, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """From one moment on a twin stands a third of the picture beside everything that is not background."""
    frames = world.render(scene)
    things, moment = frames - world.background, rng.integers(8, FRAMES - 8)
    twin = np.roll(things, SIZE // 3, axis=3)
    things[moment:] = np.where(np.abs(twin) > np.abs(things), twin, things)[moment:]
    return (world.background + things).clip(0, 1).astype(np.float32)


VIOLATIONS: dict[str, Callable[[World, Scene, np.random.Generator], np.ndarray]] = {
    "constant x 1/2": lambda world, scene, rng: scaled(world, scene, 0.5),
    "constant x 2": lambda world, scene, rng: scaled(world, scene, 2.0),
    "jump": lambda world, scene, rng: world.render(scene, jumping(rng)),
    "stall": lambda world, scene, rng: world.render(scene, stalling(rng)),
    "time-warp": lambda world, scene, rng: world.render(scene, warped(rng)),
    "reversed": lambda world, scene, rng: world.render(scene, backwards(rng)),
    "teleport": teleporting,
    "vanish": vanishing,
    "shuffled": lambda world, scene, rng: world.render(scene, shuffled(rng)),
    "frozen": lambda world, scene, rng: world.render(scene, frozen(rng)),
}
"""Ways to break a scene's dynamics, each (world, scene, generator) -> frames (T,3,H,W): what critics are
tested on."""
