"""The frame of every toy world: fixed constants, scenes that vary, a renderer in closed form over time, and a
residual read from pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..canvas import COLOURS, FRAMES, unmix


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drawn situation of a world."""

    colours: tuple[str, ...]
    """Palette colours of the moving things, in order."""
    words: dict[str, str] = field(default_factory=dict)
    """Properties that the prompt may state beside colours: "size", "direction", "place", "count"."""
    values: dict[str, float] = field(default_factory=dict)
    """Numbers the renderer needs: positions (px), velocities (px/frame), radii (px)."""


class World:
    """A small physical world with one law.

    Rendering is a function of continuous time, so that any corruption of dynamics is a change of the times or
    of the constants.
    """

    name: ClassVar[str]
    """PILA's category in snake case."""
    law: ClassVar[str]
    """The law in one line, for tables and help."""
    constants: ClassVar[dict[str, float]]
    """The law's fixed constants, in pixels and frames."""
    phrasings: ClassVar[tuple[str, ...]]
    """Prompt templates over {things} and the scene's words."""
    background: np.ndarray
    """(3, H, W)"""
    mass_range: ClassVar[tuple[float, float]]
    """Smallest and largest mass (sum of opacity, px^2) one thing of this world has in a real clip."""

    mistaken: ClassVar[tuple[float, float]] = (0.3, 0.5)
    """Least and largest factor, and their inverses, of the first constant in a clip that breaks the law:
    plainly seen, yet no thing leaves the picture or the reach of four frames by it."""
    pieces: ClassVar[tuple[int, int]] = (1, 1)
    """Fewest and most pieces that one thing is in, in a real clip."""

    def draw(self, rng: np.random.Generator) -> Scene:
        """Draws a scene."""
        raise NotImplementedError

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        """The picture (3, H, W) at `time` (frames)."""
        raise NotImplementedError

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        """Distance of the clip from the law, 0 (it holds) .. 1 (unrelated), from pixels alone.

        clip (T,3,H,W); alphas (T, colours, H, W) from `canvas.unmix`.
        """
        raise NotImplementedError

    def render(self, scene: Scene, times: np.ndarray | None = None, **constants: float) -> np.ndarray:
        """Frames (T,3,H,W) float32 in [0,1] at `times` (default 0..32).

        Keyword constants replace the world's own.
        """
        times = np.arange(FRAMES) if times is None else times
        used = {**self.constants, **constants}
        return (
            np.stack([self.frame(scene, float(time), used) for time in times]).astype(np.float32).clip(0, 1)
        )

    def unmix(self, clip: np.ndarray) -> np.ndarray:
        """Opacity per palette colour, (T, colours, H, W)."""
        return unmix(clip, self.background)

    def present(self, alphas: np.ndarray) -> list[int]:
        """Indices of the palette colours that are really there: at least a quarter of this world's smallest
        mass, on average.
        """
        mean = alphas.sum((-2, -1)).mean(0)
        return [index for index in range(len(COLOURS)) if mean[index] >= 0.25 * self.mass_range[0]]


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options."""
    return str(options[rng.integers(len(options))])


def pick_colours(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """`count` different palette colours."""
    return tuple(COLOURS[index] for index in rng.permutation(len(COLOURS))[:count])


def balance(observed: np.ndarray, predicted: np.ndarray, reference: np.ndarray, floor: float) -> np.ndarray:
    """Prediction error of a law, per window, in [0, 1]: |o - p| / (|o - r| + |p - r| + floor), sums over all
    axes but the first.

    0 = the law's prediction p came true; 1 = unrelated to it, or nothing moved (o = r). `floor` is what noise
    alone may move.
    """
    axes = tuple(range(1, observed.ndim))
    error = np.abs(observed - predicted).sum(axes)
    scale = np.abs(observed - reference).sum(axes) + np.abs(predicted - reference).sum(axes)
    return error / (scale + floor)


def bounded_mean(errors: np.ndarray) -> float:
    """Mean of errors clipped to [0,1]; what could not be measured (NaN) counts as 1."""
    if errors.size == 0:
        return 1.0
    return float(np.clip(np.nan_to_num(errors, nan=1.0, posinf=1.0), 0, 1).mean())
