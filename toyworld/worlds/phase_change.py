"""Phase change: a block on a grille that melts into the tray below."""

from __future__ import annotations

import numpy as np

from ..canvas import band, blend, box, fill
from .base import Scene, World, bounded_mean, pick, pick_colours

GRILLE = 44
TRAY = (8.0, 56.0, 60.0)
"""Left and right wall and bottom of the tray, px."""
SIDES = {"small": 16.0, "large": 21.0}
LAG = 4


class PhaseChange(World):
    name = "phase_change"
    law = (
        "a melting block loses 0.4 px of its side per frame, "
        "and what melts collects in the tray (mass conserved)"
    )
    constants = {"rate": 0.4}
    phrasings = (
        "{things} of ice melting on a grille on the {place}",
        "{things} of wax on the {place} melts and drips into the tray",
        "heat turns {things} of ice on the {place} into liquid below",
    )
    mass_range = (200.0, 460.0)
    pieces = (1, 2)  # the block and what has melted

    def __init__(self) -> None:
        self.background = fill((0.94, 0.91, 0.87))
        left, right, bottom = (int(value) for value in TRAY)
        band(self.background, (0.40, 0.38, 0.37), rows=slice(GRILLE, GRILLE + 2))
        band(self.background, (0.52, 0.50, 0.49), rows=slice(bottom, None))
        band(self.background, (0.52, 0.50, 0.49), rows=slice(GRILLE + 2, None), columns=slice(0, left))
        band(self.background, (0.52, 0.50, 0.49), rows=slice(GRILLE + 2, None), columns=slice(right, None))

    def draw(self, rng: np.random.Generator) -> Scene:
        size, place = pick(rng, tuple(SIDES)), pick(rng, ("left", "right"))
        x = rng.uniform(17, 24) if place == "left" else rng.uniform(39, 46)
        values = {"x": x, "side": SIDES[size] + rng.uniform(-1, 1)}
        return Scene(
            colours=pick_colours(rng, 1), words={"size": size, "place": place, "count": "1"}, values=values
        )

    def frame(self, scene: Scene, time: float, constants: dict[str, float]) -> np.ndarray:
        start, x = scene.values["side"], scene.values["x"]
        side = max(start - constants["rate"] * time, 0.0)
        left, right, bottom = TRAY
        depth = (start**2 - side**2) / (right - left)
        picture = blend(
            self.background,
            box(x - side / 2, GRILLE - 0.5 - side, x + side / 2, GRILLE - 0.5),
            scene.colours[0],
        )
        return blend(
            picture, box(left - 0.5, bottom - 0.5 - depth, right - 0.5, bottom - 0.5), scene.colours[0]
        )

    def residual(self, clip: np.ndarray, alphas: np.ndarray) -> float:
        present = self.present(alphas)
        if not present:
            return 1.0
        stuff = alphas[:, present].sum(1)
        solid, liquid = stuff[:, :GRILLE].sum((1, 2)), stuff[:, GRILLE + 2 :].sum((1, 2))
        if solid.max() < 30:
            return 1.0
        side, step = np.sqrt(solid), self.constants["rate"] * LAG
        shrink = side[:-LAG] - side[LAG:]
        melt = np.abs(shrink - step) / (np.abs(shrink) + step)
        due = np.maximum(side[:-LAG] ** 2 - np.maximum(side[:-LAG] - step, 0) ** 2, 4.0)
        gain = liquid[LAG:] - liquid[:-LAG]
        collect = np.abs(gain - due) / (np.abs(gain) + due)
        # once the block is nearly gone there is nothing left to judge
        alive = side[:-LAG] > step + 2
        return bounded_mean(np.concatenate([melt[alive], collect[alive]]))
