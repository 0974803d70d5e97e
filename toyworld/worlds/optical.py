"""Optical: a ring of light that leaves a lamp at a fixed speed."""

from __future__ import annotations

import numpy as np

from ..canvas import COLUMNS, PIXEL_COLUMNS, PIXEL_ROWS, ROWS, band, blend, fill, moments, resample
from .base import Scene, World, balance, bounded_mean, pick, pick_colours

THICKNESS = {"thin": 2.0, "thick": 2.8}
PLACES = {"left": 27.0, "right": 36.0}
LAG = 4


class Optical(World):
    name = "optical"
    law = "a wavefront of light whose radius grows 0.7 px/frame, intensity falling as 1/sqrt(radius)"
    constants = {"speed": 0.7}
    phrasings = (
        "{things} of light spreading from a lamp on the {place}",
        "a lamp on the {place} sends out {things} of light",
        "{things} of bright light expands as a wave from the {place}",
    )
    mass_range = (80.0, 360.0)
    mistaken = (0.4, 0.65)
    pieces = (1, 4)  # the arcs of a ring that has reached the picture's edges

    def __init__(self) -> None:
        self.background = fill((0.04, 0.04, 0.07))
        for row in (8, 55):
            band(self.background, (0.13, 0.13, 0.18), rows=slice(row, row + 1))
            band(self.background, (0.13, 0.13, 0.18), columns=slice(row, row + 1))

    def draw(self, rng: np.random.Generator) -> Scene:
        size, place = pick(rng, tuple(THICKNESS)), pick(rng, tuple(PLACES))
        values = {
            "thickness": THICKNESS[size],
            "x": PLACES[place] + rng.uniform(-2, 2),
            "y": rng.uniform(28, 35),
            "radius": rng.uniform(4, 6),
        }
        return Scene(
            colours=pick_colours(rng, 1), words={"size": size, "place": place, "count": "1"}, values=values
        )

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        value = scene.values
        radius = value["radius"] + constants["speed"] * time
        distance = np.hypot(PIXEL_COLUMNS - value["x"], PIXEL_ROWS - value["y"])
        light = np.sqrt(value["radius"] / radius) * np.exp(
            -((distance - radius) ** 2) / (2 * value["thickness"] ** 2)
        )
        return blend(self.background, light, scene.colours[0])

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        present = self.present(alphas)
        if not present:
            return 1.0
        light = alphas[:, present].sum(1)
        _, x, y = moments(light.mean(0))
        dx, dy = COLUMNS - x, ROWS - y
        distance = np.maximum(np.hypot(dx, dy), 1e-3)
        inner = np.maximum(distance - self.constants["speed"] * LAG, 0)
        fade = np.sqrt(inner / distance)
        predicted = resample(light[:-LAG], x + dx * inner / distance, y + dy * inner / distance) * fade
        return bounded_mean(balance(light[LAG:], predicted, light[:-LAG], floor=4.0))
