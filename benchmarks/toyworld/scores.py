"""Calibrates the toy world's scores and validates them: real, shuffled, time-warped, wrong-constant, stalling
and frozen clips.

python3 dev.py bench toyworld/scores             prints the constants of toyworld/scores.py and the validation
table
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np
from latent_physics.toyworld import lasting, scores
from latent_physics.toyworld.corruption import VIOLATIONS, doubled, recoloured
from latent_physics.toyworld.worlds import WORLDS, World

KINDS = {
    "real": lambda world, scene, rng: world.render(scene),
    "shuffled": VIOLATIONS["shuffled"],
    "time-warped": VIOLATIONS["time-warp"],
    "jumping": VIOLATIONS["jump"],
    "stalling": VIOLATIONS["stall"],
    "constant x 1/2": VIOLATIONS["constant x 1/2"],
    "constant x 2": VIOLATIONS["constant x 2"],
    "frozen": VIOLATIONS["frozen"],
}
MOTION_CLIPS = 256
"""Clips per world behind REAL_MOTION: motion differs more from scene to scene than residuals do."""
LASTING = ("real", "shuffled", "constant x 2", "frozen", "teleport", "vanish", "recoloured", "doubled")
"""Kinds in the table of permanence: the first five keep their things as they are, the last three do not."""


def residuals(world: World, kind: str, count: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Residual and motion per clip; `noise` is the deviation of pixel noise, which stands for a decoder's."""
    rng, found, motion = np.random.default_rng(seed), [], []
    for _ in range(count):
        scene = world.draw(rng)
        frames = KINDS[kind](world, scene, rng)
        frames = np.clip(frames + noise * rng.standard_normal(frames.shape), 0, 1).astype(np.float32)
        alphas = world.unmix(frames)
        found.append(world.residual(frames, alphas))
        motion.append(scores.motion(alphas))
    return np.array(found), np.array(motion)


def law_row(world: World, calibration: tuple[float, float], count: int, noise: float) -> list[float]:
    """Mean law score of each of KINDS, on seeds other than the calibration's."""
    best, worst = calibration
    found = [residuals(world, kind, count, 2, noise)[0] for kind in KINDS]
    return [float(np.clip((worst - each) / (worst - best), 0, 1).mean()) for each in found]


def lasting_row(world: World, count: int) -> list[float]:
    """Mean permanence of each of LASTING."""
    rows, kinds = [], KINDS | VIOLATIONS | {"recoloured": recoloured, "doubled": doubled}
    for kind in LASTING:
        rng = np.random.default_rng(2)
        clips = [kinds[kind](world, world.draw(rng), rng) for _ in range(count)]
        rows.append(float(np.mean([lasting.permanence(world.unmix(clip), world) for clip in clips])))
    return rows


def usual_change(world: World, count: int) -> float:
    """Median over real clips of `permanence.mass_change`."""
    rng, found = np.random.default_rng(1), []
    for _ in range(count):
        alphas = world.unmix(world.render(world.draw(rng)))
        found.append(lasting.mass_change(alphas.sum((-2, -1))[:, world.present(alphas)]))
    return round(float(np.median(found)), 3)


def print_table(title: str, heads: Iterable[str], row: Callable[[World], list[float]]) -> None:
    """Markdown: a row per world, and their mean."""
    heads = list(heads)
    print(f"\n{title}\n\n| world | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    table = []
    for name, world in WORLDS.items():
        table.append(row(world))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in table[-1]) + " |", flush=True)
    print("| **mean** | " + " | ".join(f"**{value:.2f}**" for value in np.mean(table, axis=0)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64, help="clips per world and kind")
    parser.add_argument("--noise", type=float, default=0.0, help="pixel noise, standard deviation in 0..1")
    args = parser.parse_args()
    calibration, motion = {}, {}
    for name, world in WORLDS.items():
        real, _ = residuals(world, "real", args.clips, 1, 0.0)
        calibration[name] = (
            round(float(np.median(real)), 3),
            round(float(np.median(residuals(world, "shuffled", args.clips, 1, 0.0)[0])), 3),
        )
        motion[name] = round(float(residuals(world, "real", MOTION_CLIPS, 1, 0.0)[1].mean()), 1)
        lasting.USUAL_CHANGE[name] = usual_change(world, args.clips)
    print("CALIBRATION =", calibration)
    print("REAL_MOTION =", motion)
    print("USUAL_CHANGE =", lasting.USUAL_CHANGE)
    scores.CALIBRATION.update(calibration)
    print_table(
        f"law score, mean over {args.clips} clips (seeds other than the calibration's)",
        KINDS,
        lambda world: law_row(world, calibration[world.name], args.clips, args.noise),
    )
    print_table("permanence", LASTING, lambda world: lasting_row(world, args.clips))


if __name__ == "__main__":
    main()
