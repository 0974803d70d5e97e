"""Fluid: dye carried by a steady, divergence-free vortex in a round basin."""

from __future__ import annotations

import numpy as np

from ..canvas import COLUMNS, PIXEL_COLUMNS, PIXEL_ROWS, ROWS, blend, fill, inside, resample
from .base import Scene, World, balance, bounded_mean, pick, pick_colours

CENTRE = 31.5
BASIN = 29.0
RADII = {"small": 5.0, "large": 7.0}
LAG = 4


class Fluid(World):
    name = "fluid"
    law = (
        "dye carried by a vortex with angular speed 0.13 / (1 + (r / 16)^2) rad/frame, mass of dye conserved"
    )
    constants = {"speed": 0.13, "core": 16.0}
    phrasings = (
        "{things} of dye swirling {direction} in a basin of water",
        "water turns {direction} and carries {things} of ink",
        "a {direction} vortex stirs {things} of dye into a spiral",
    )
    mass_range = (70.0, 170.0)
    mistaken = (0.35, 0.6)

    def __init__(self) -> None:
        self.background = fill((0.36, 0.34, 0.33))
        basin = np.hypot(PIXEL_COLUMNS - CENTRE, PIXEL_ROWS - CENTRE) <= BASIN
        self.background[:, basin] = np.asarray((0.80, 0.88, 0.90), np.float32)[:, None]

    def draw(self, rng: np.random.Generator) -> Scene:
        count = 1 + int(rng.random() < 0.3)
        size, direction = pick(rng, tuple(RADII)), pick(rng, ("clockwise", "counterclockwise"))
        angle = rng.uniform(0, 2 * np.pi)
        values = {"radius": RADII[size], "sign": 1.0 if direction == "clockwise" else -1.0}
        for index in range(count):
            values |= {f"angle{index}": angle + np.pi * index, f"orbit{index}": rng.uniform(9, 18)}
        words = {"size": size, "direction": direction, "count": str(count)}
        return Scene(colours=pick_colours(rng, count), words=words, values=values)

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        # each pixel reads the dye where its water was at time 0
        x0, y0 = upstream(time, scene.values["sign"], constants, PIXEL_COLUMNS, PIXEL_ROWS)
        picture = self.background
        for index, colour in enumerate(scene.colours):
            angle, orbit = scene.values[f"angle{index}"], scene.values[f"orbit{index}"]
            x, y = CENTRE + orbit * np.cos(angle), CENTRE + orbit * np.sin(angle)
            dye = inside(scene.values["radius"] - np.hypot(x0 - x, y0 - y))
            picture = blend(picture, dye, colour)
        return picture

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        dye = alphas[:, self.present(alphas)]
        if not dye.shape[1]:
            return 1.0
        found = []
        for sign in (1.0, -1.0):
            predicted = resample(dye[:-LAG], *upstream(LAG, sign, self.constants, COLUMNS, ROWS))
            found.append(bounded_mean(balance(dye[LAG:], predicted, dye[:-LAG], floor=4.0)))
        mass = dye.sum((1, 2, 3))
        leak = np.abs(mass[LAG:] - mass[:-LAG]) / (0.5 * max(mass.mean(), 1e-6))
        return 0.85 * min(found) + 0.15 * bounded_mean(leak)


def upstream(
    time: float, sign: float, constants: dict[str, float], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the water at x, y (H, W) was `time` frames ago: x, y (H, W)."""
    dx, dy = x - CENTRE, y - CENTRE
    turn = -sign * constants["speed"] * time / (1 + (np.hypot(dx, dy) / constants["core"]) ** 2)
    return CENTRE + dx * np.cos(turn) - dy * np.sin(turn), CENTRE + dx * np.sin(turn) + dy * np.cos(turn)
