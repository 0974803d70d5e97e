"""Calibrates the toy world's scores and validates them: real, shuffled, time-warped, wrong-constant, stalling
and frozen clips.

python3 dev.py bench toyworld/scores             prints the constants of toyworld/scores.py and the validation
table
"""

from __future__ import annotations

import argparse

import numpy as np
from latent_physics.toyworld import scores
from latent_physics.toyworld.corruption import VIOLATIONS
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
    print("CALIBRATION =", calibration)
    print("REAL_MOTION =", motion)
    scores.CALIBRATION.update(calibration)
    print(f"\nlaw score, mean over {args.clips} clips (seeds other than the calibration's)\n")
    print("| world | " + " | ".join(KINDS) + " |")
    print("|---|" + "---|" * len(KINDS))
    table = []
    for name, world in WORLDS.items():
        best, worst = calibration[name]
        row = [
            np.clip(
                (worst - residuals(world, kind, args.clips, 2, args.noise)[0]) / (worst - best), 0, 1
            ).mean()
            for kind in KINDS
        ]
        table.append(row)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |", flush=True)
    print("| **mean** | " + " | ".join(f"**{value:.2f}**" for value in np.mean(table, axis=0)) + " |")


if __name__ == "__main__":
    main()
