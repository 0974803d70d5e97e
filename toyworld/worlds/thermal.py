"""Thermal: glowing spots on a plate whose heat spreads by conduction."""

from __future__ import annotations

import numpy as np

from ..canvas import UNITS, band, blend, fill, gaussian, moments
from .base import Scene, World, balance, bounded_mean, pick, pick_colours

VARIANCES = {"small": 28.0, "large": 42.0}
PLACES = {"left": 21.0, "middle": 31.5, "right": 42.0}
LAG = 4


class Thermal(World):
    name = "thermal"
    law = "heat equation with kappa = 0.8 px^2/frame: variance grows 1.6 px^2/frame per axis, heat conserved"
    constants = {"kappa": 0.8}
    phrasings = (
        "{things} of heat spreading on a metal plate from the {place}",
        "a metal plate heated at the {place}: {things} of glow fades and widens",
        "{things} of glowing heat conducts through the plate from the {place}",
    )
    mass_range = (120.0, 235.0)

    def __init__(self) -> None:
        self.background = fill((0.22, 0.22, 0.24))
        for edge in (slice(0, 3), slice(UNITS - 3, None)):
            band(self.background, (0.60, 0.60, 0.62), rows=edge)
            band(self.background, (0.60, 0.60, 0.62), columns=edge)

    def draw(self, rng: np.random.Generator) -> Scene:
        size, place = pick(rng, tuple(VARIANCES)), pick(rng, tuple(PLACES))
        values = {
            "variance": VARIANCES[size],
            "x": PLACES[place] + rng.uniform(-2, 2),
            "y": rng.uniform(24, 40),
        }
        return Scene(
            colours=pick_colours(rng, 1), words={"size": size, "place": place, "count": "1"}, values=values
        )

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        start = scene.values["variance"]
        variance = start + 2 * constants["kappa"] * time
        heat = gaussian(scene.values["x"], scene.values["y"], variance, 0.95 * start / variance)
        return blend(self.background, heat, scene.colours[0])

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        present = self.present(alphas)
        if not present:
            return 1.0
        heat = alphas[:, present].sum(1)
        errors = balance(
            heat[LAG:], blur(heat[:-LAG], 2 * self.constants["kappa"] * LAG), heat[:-LAG], floor=3.0
        )
        mass, x, y = moments(heat)
        leak = np.abs(mass[LAG:] - mass[:-LAG]) / (0.5 * max(mass.mean(), 1e-6))
        # the second moment weighs the faint rim, where measuring is poor; the peak's fall says the same: peak
        # ~ 1 / variance
        peak = np.sort(heat.reshape(len(heat), -1), axis=1)[:, -9:].mean(1)
        inverse = mass / (2 * np.pi * np.maximum(peak, 1e-3))
        step = 2 * self.constants["kappa"] * LAG
        spread = inverse[LAG:] - inverse[:-LAG]
        widen = np.abs(spread - step) / (np.abs(spread) + step)
        wander = np.hypot(x[LAG:] - x[:-LAG], y[LAG:] - y[:-LAG]) / 3.0
        return (
            0.45 * bounded_mean(errors)
            + 0.35 * bounded_mean(widen)
            + 0.1 * bounded_mean(leak)
            + 0.1 * bounded_mean(wander)
        )


def blur(field: np.ndarray, variance: float) -> np.ndarray:
    """Convolves (..., H, W) with a Gaussian of `variance` (px^2) per axis: the heat equation's exact
    propagator.
    """
    offsets = np.arange(UNITS)
    kernel = np.exp(-((offsets[:, None] - offsets[None]) ** 2) / (2 * variance)).astype(np.float32)
    kernel /= np.sqrt(2 * np.pi * variance)
    return kernel @ field @ kernel
