"""Elastic: blocks that hang on springs and oscillate."""

from __future__ import annotations

import numpy as np

from ..canvas import band, blend, box, fill, moments
from .base import Scene, World, bounded_mean, pick, pick_colours

CEILING = 6.0
HALF_SIDES = {"small": 5.0, "large": 7.0}
STRAP = 1.5
"""Half the width of the strap that a block hangs on, px."""
RUBBER = np.asarray((0.35, 0.33, 0.30), np.float32)[:, None, None]


class Elastic(World):
    name = "elastic"
    law = "harmonic oscillation about y = 36 px with a period of 16 frames"
    constants = {"period": 16.0, "rest": 36.0}
    phrasings = (
        "{things} oscillating on a spring, released {direction}",
        "a spring holds {things} that bobs up and down, starting {direction}",
        "{things} hangs from a stretchy spring and swings vertically from {direction}",
    )
    mass_range = (90.0, 210.0)
    mistaken = (0.6, 0.75)

    def __init__(self) -> None:
        self.background = fill((0.88, 0.84, 0.76))
        band(self.background, (0.32, 0.26, 0.22), rows=slice(0, int(CEILING)))

    def draw(self, rng: np.random.Generator) -> Scene:
        count = 1 + int(rng.random() < 0.3)
        size, direction = pick(rng, tuple(HALF_SIDES)), pick(rng, ("above", "below"))
        values = {"half": HALF_SIDES[size]}
        for index in range(count):
            values[f"x{index}"] = rng.uniform(22, 42) if count == 1 else rng.uniform(15, 20) + 28 * index
            values[f"amplitude{index}"] = rng.uniform(9, 14) * (1 if direction == "below" else -1)
        words = {"size": size, "direction": direction, "count": str(count)}
        return Scene(colours=pick_colours(rng, count), words=words, values=values)

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        picture, half = self.background, scene.values["half"]
        for index, colour in enumerate(scene.colours):
            x = scene.values[f"x{index}"]
            y = constants["rest"] + scene.values[f"amplitude{index}"] * np.cos(
                2 * np.pi * time / constants["period"]
            )
            strap = box(x - STRAP, CEILING, x + STRAP, y)
            picture = picture * (1 - strap) + RUBBER * strap
            picture = blend(picture, box(x - half, y - half, x + half, y + half), colour)
        return picture

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        tracks = [self._track(alphas[:, index]) for index in self.present(alphas)]
        return float(np.mean(tracks)) if tracks else 1.0

    def _track(self, alpha: np.ndarray) -> float:
        mass, x, y = moments(np.where(alpha > 0.3, alpha, 0))
        y = np.where(mass > 0.3 * np.median(mass), y - self.constants["rest"], np.nan)
        still = np.clip(1 - np.nanstd(y) / 4.0, 0, 1) if np.isfinite(y).any() else 1.0
        errors = []
        for lag in (2, 4):
            # x(t+l) + x(t-l) = 2 cos(omega l) x(t) for any harmonic motion of this period
            both, middle = (
                y[2 * lag :] + y[: -2 * lag],
                2 * np.cos(2 * np.pi * lag / self.constants["period"]) * y[lag:-lag],
            )
            size = np.abs(y[2 * lag :]) + np.abs(y[: -2 * lag]) + np.abs(middle) + 3.0
            errors.append(np.clip(2 * np.abs(both - middle) / size, 0, 1))
        sway = np.abs(np.diff(x)) / 1.0
        return float(max(still, 0.85 * bounded_mean(np.concatenate(errors)) + 0.15 * bounded_mean(sway)))
