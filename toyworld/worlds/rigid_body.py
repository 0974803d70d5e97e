"""Rigid body: balls thrown under gravity that bounce off a floor."""

from __future__ import annotations

import numpy as np

from ..canvas import band, blend, disc, fill, moments
from .base import Scene, World, bounded_mean, pick, pick_colours

FLOOR = 56.0
RADII = {"small": 5.5, "large": 8.0}
LAG = 3


class RigidBody(World):
    name = "rigid_body"
    law = "ballistic arc with g = 0.2 px/frame^2, restitution 0.8, constant horizontal velocity"
    constants = {"gravity": 0.2, "restitution": 0.8}
    phrasings = (
        "{things} thrown to the {direction}, bouncing on the floor",
        "{things} falls to the floor and bounces to the {direction}",
        "under gravity {things} drops, hits the ground and hops {direction}",
    )
    mass_range = (85.0, 215.0)
    mistaken = (0.5, 0.7)

    def __init__(self) -> None:
        self.background = fill((0.80, 0.86, 0.92))
        band(self.background, (0.30, 0.30, 0.33), rows=slice(int(FLOOR), None))

    def draw(self, rng: np.random.Generator) -> Scene:
        count = 1 + int(rng.random() < 0.3)
        size, direction = pick(rng, tuple(RADII)), pick(rng, ("left", "right"))
        sign = 1.0 if direction == "right" else -1.0
        start = rng.uniform(9, 14 if count == 1 else 11)
        values = {"radius": RADII[size], "speed": sign * rng.uniform(0.55, 0.65 if count == 2 else 1.15)}
        for index in range(count):
            x = start + 22 * index
            values |= {
                f"x{index}": x if sign > 0 else 63 - x,
                f"y{index}": rng.uniform(10, 22),
                f"v{index}": rng.uniform(-1.2, 0.6),
            }
        words = {"size": size, "direction": direction, "count": str(count)}
        return Scene(colours=pick_colours(rng, count), words=words, values=values)

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        picture, radius = self.background, scene.values["radius"]
        for index, colour in enumerate(scene.colours):
            x = scene.values[f"x{index}"] + scene.values["speed"] * time
            y = bounce_height(
                time, scene.values[f"y{index}"], scene.values[f"v{index}"], FLOOR - 0.5 - radius, constants
            )
            picture = blend(picture, disc(x, y, radius), colour)
        return picture

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        tracks = [self._track(alphas[:, index]) for index in self.present(alphas)]
        return float(np.mean(tracks)) if tracks else 1.0

    def _track(self, alpha: np.ndarray) -> float:
        mass, x, y = moments(np.where(alpha > 0.15, alpha, 0))
        mass_ok = mass > 0.3 * np.median(mass)
        x, y = np.where(mass_ok, x, np.nan), np.where(mass_ok, y, np.nan)
        radius = np.sqrt(np.median(mass) / np.pi)
        expected = self.constants["gravity"] * LAG**2
        bend = y[2 * LAG :] - 2 * y[LAG:-LAG] + y[: -2 * LAG]
        seen = np.where(np.isnan(y), -np.inf, y)
        lowest = np.max([seen[offset : len(y) - 2 * LAG + offset] for offset in range(2 * LAG + 1)], axis=0)
        contact = lowest > FLOOR - radius - 3
        gravity = (np.abs(bend - expected) / expected)[~contact | np.isnan(bend)]
        drift = np.abs(x[2 * LAG :] - 2 * x[LAG:-LAG] + x[: -2 * LAG]) / 1.5
        shape = np.abs(mass / max(np.median(mass), 1e-6) - 1) / 0.5
        return (
            0.5 * bounded_mean(gravity)
            + 0.2 * self._restitution(y, radius)
            + 0.15 * bounded_mean(drift)
            + 0.15 * bounded_mean(shape)
        )

    def _restitution(self, y: np.ndarray, radius: float) -> float:
        """|measured restitution - the world's| / 0.4; 1 if the ball never rises again.

        Measured from the ball's energy before and after its first contact.
        """
        speed = (y[2:] - y[:-2]) / 2
        height = FLOOR - radius - 0.5 - y[1:-1]
        energy = self.constants["gravity"] * height + speed**2 / 2
        away = height > 4
        turn = np.flatnonzero((speed[:-1] > 0.5) & (speed[1:] < 0.3) & (height[1:] < 8))
        if not turn.size:
            return 1.0
        before = energy[: turn[0]][away[: turn[0]]]
        after = energy[turn[0] + 2 : turn[0] + 14][away[turn[0] + 2 : turn[0] + 14]]
        before, after = before[np.isfinite(before)], after[np.isfinite(after)]  # a ball may vanish
        if before.size < 2 or after.size < 2:
            return 1.0
        ratio = np.sqrt(max(np.median(after), 0) / max(np.median(before), 1e-3))
        return float(np.clip(abs(ratio - self.constants["restitution"]) / 0.4, 0, 1))


def bounce_height(time: float, y: float, speed: float, floor: float, constants: dict[str, float]) -> float:
    """Height y (px, downward) at `time` of a point that falls from `y` with `speed` and bounces off `floor`:
    arcs in closed form."""
    gravity, restitution = constants["gravity"], constants["restitution"]
    while gravity > 0:
        hit = (-speed + np.sqrt(max(speed**2 + 2 * gravity * (floor - y), 0.0))) / gravity
        if hit > time:
            break
        speed = -restitution * (speed + gravity * hit)
        y, time = floor, time - hit
        if abs(speed) < 0.2:
            return floor
    return y + speed * time + 0.5 * gravity * time**2
