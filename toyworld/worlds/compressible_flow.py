"""Compressible flow: a puff of gas that expands, thins out and drifts with the wind."""

from __future__ import annotations

import numpy as np

from ..canvas import COLUMNS, ROWS, band, blend, fill, gaussian, moments, resample
from .base import Scene, World, balance, bounded_mean, pick, pick_colours

WIDTHS = {"small": 5.5, "large": 7.0}
HEADINGS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0)}
LAG = 4


class CompressibleFlow(World):
    name = "compressible_flow"
    law = (
        "a puff whose width grows 0.16 px/frame while it drifts 0.6 px/frame, "
        "density falling as 1/width^2 (mass conserved)"
    )
    constants = {"growth": 0.16, "drift": 0.6}
    phrasings = (
        "{things} of smoke expanding and drifting {direction}",
        "{things} of gas spreads, thins out and moves {direction}",
        "a burst releases {things} of smoke which swells as it travels {direction}",
    )
    mass_range = (120.0, 275.0)
    mistaken = (0.35, 0.5)

    def __init__(self) -> None:
        self.background = fill((0.15, 0.17, 0.21))
        band(self.background, (0.28, 0.25, 0.22), rows=slice(60, None))

    def draw(self, rng: np.random.Generator) -> Scene:
        size, direction = pick(rng, tuple(WIDTHS)), pick(rng, tuple(HEADINGS))
        start = {"left": (44, 30), "right": (19, 30), "up": (32, 42)}[direction]
        values = {
            "width": WIDTHS[size],
            "x": start[0] + rng.uniform(-4, 4),
            "y": start[1] + rng.uniform(-4, 4),
        }
        return Scene(
            colours=pick_colours(rng, 1),
            words={"size": size, "direction": direction, "count": "1"},
            values=values,
        )

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        start = scene.values["width"]
        width = start + constants["growth"] * time
        dx, dy = HEADINGS[scene.words["direction"]]
        x, y = (
            scene.values["x"] + constants["drift"] * dx * time,
            scene.values["y"] + constants["drift"] * dy * time,
        )
        return blend(self.background, gaussian(x, y, width**2, 0.95 * (start / width) ** 2), scene.colours[0])

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        present = self.present(alphas)
        if not present:
            return 1.0
        gas = alphas[:, present].sum(1)
        mass, x, y = moments(gas)
        if np.isnan(x).any():
            return 1.0
        spread = ((COLUMNS - x[:, None, None]) ** 2 + (ROWS - y[:, None, None]) ** 2) * gas
        width = np.sqrt(spread.sum((1, 2)) / (2 * mass + 1e-6))
        found = [bounded_mean(self._errors(gas, x, y, width, heading)) for heading in HEADINGS.values()]
        leak = np.abs(mass[LAG:] - mass[:-LAG]) / (0.5 * max(mass.mean(), 1e-6))
        step = self.constants["growth"] * LAG
        swell = width[LAG:] - width[:-LAG]
        expand = np.abs(swell - step) / (np.abs(swell) + step)
        return 0.5 * min(found) + 0.4 * bounded_mean(expand) + 0.1 * bounded_mean(leak)

    def _errors(
        self, gas: np.ndarray, x: np.ndarray, y: np.ndarray, width: np.ndarray, heading: tuple[float, float]
    ) -> np.ndarray:
        errors = []
        for t in range(len(gas) - LAG):
            scale = 1 + self.constants["growth"] * LAG / max(float(width[t]), 2.0)
            shift = self.constants["drift"] * LAG
            read_x = x[t] + (COLUMNS - x[t] - shift * heading[0]) / scale
            read_y = y[t] + (ROWS - y[t] - shift * heading[1]) / scale
            predicted = resample(gas[t], read_x, read_y) / scale**2
            errors.append(balance(gas[None, t + LAG], predicted[None], gas[None, t], floor=4.0))
        return np.concatenate(errors)
