"""Collision: two pucks meet head-on on a table and exchange momentum elastically."""

from __future__ import annotations

import numpy as np

from ..canvas import band, blend, disc, fill, moments
from .base import Scene, World, bounded_mean, pick, pick_colours

RADII = {"small": 6.0, "large": 8.5}
LAG = 4


class Collision(World):
    name = "collision"
    law = (
        "two pucks close at 1.5 px/frame, part at the same speed (elastic), "
        "and their centre of mass moves uniformly"
    )
    constants = {"closing": 1.5, "restitution": 1.0}
    phrasings = (
        "{things} colliding on a table",
        "{things} slide towards each other, crash and rebound",
        "on a smooth table {things} hit and bounce apart",
    )
    mass_range = (105.0, 240.0)
    mistaken = (0.6, 0.8)

    def __init__(self) -> None:
        self.background = fill((0.46, 0.43, 0.40))
        for rows, columns in ((slice(0, 4), slice(None)), (slice(60, None), slice(None))):
            band(self.background, (0.24, 0.17, 0.12), rows=rows, columns=columns)
        band(self.background, (0.24, 0.17, 0.12), columns=slice(0, 2))
        band(self.background, (0.24, 0.17, 0.12), columns=slice(62, None))

    def draw(self, rng: np.random.Generator) -> Scene:
        sizes = (pick(rng, tuple(RADII)), pick(rng, tuple(RADII)))
        radii = [RADII[size] for size in sizes]
        masses = [radius**2 for radius in radii]
        # the share of the closing speed the left puck has; its centre of mass may drift a little
        drift = rng.uniform(-0.1, 0.1)
        meet = rng.uniform(11, 16)
        left = drift + self.constants["closing"] * masses[1] / sum(masses)
        right = drift - self.constants["closing"] * masses[0] / sum(masses)
        touch = rng.uniform(30, 34) - (radii[1] - radii[0]) / 2
        values = {"r0": radii[0], "r1": radii[1], "v0": left, "v1": right, "meet": meet}
        values |= {"x0": touch - radii[0], "x1": touch + radii[1], "y": rng.uniform(26, 38)}
        return Scene(
            colours=pick_colours(rng, 2),
            words={"size0": sizes[0], "size1": sizes[1], "count": "2"},
            values=values,
        )

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        value, picture = scene.values, self.background
        masses = (value["r0"] ** 2, value["r1"] ** 2)
        scale = constants["closing"] / self.constants["closing"]
        mean = (masses[0] * value["v0"] + masses[1] * value["v1"]) / sum(masses)
        for index, colour in enumerate(scene.colours):
            relative = (value[f"v{index}"] - mean) * scale
            after = time > value["meet"]
            speed = mean - constants["restitution"] * relative if after else mean + relative
            x = value[f"x{index}"] + speed * (time - value["meet"])
            picture = blend(picture, disc(x, value["y"], value[f"r{index}"]), colour)
        return picture

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        present = self.present(alphas)
        if len(present) != 2:
            return 1.0
        mass, x, _ = moments(np.where(alphas[:, present] > 0.2, alphas[:, present], 0))
        size = np.median(mass, axis=0)
        x = np.where(mass > 0.3 * size, x, np.nan)
        gap = np.abs(x[:, 0] - x[:, 1]) - np.sqrt(size / np.pi).sum()
        time, speed = np.arange(len(gap)), self.constants["closing"]
        # elastic: the gap is |c (t - t*)| for one instant t* inside the clip; the scale is what the gap
        # travels in half the clip
        meets = np.arange(4, len(gap) - 4, 0.5)
        error = np.abs(gap[None] - speed * np.abs(time[None] - meets[:, None])) / 4.0
        bounce = min(bounded_mean(row) for row in error)
        centre = (x * size).sum(1) / size.sum()
        drift = np.abs(centre[2 * LAG :] - 2 * centre[LAG:-LAG] + centre[: -2 * LAG]) / 2.0
        shape = np.abs(mass / np.maximum(size, 1e-6) - 1) / 0.5
        return 0.6 * bounce + 0.25 * bounded_mean(drift) + 0.15 * bounded_mean(shape)
