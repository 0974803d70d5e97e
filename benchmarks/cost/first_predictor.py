"""Operations and minutes of a first motion predictor (recipe `quick`), per model that the pack has a graph
for.

The operations are those of the recipe's training steps at the latent size that the graph generates, counted
on torch's meta device. Minutes are operations over a GPU's published dense bfloat16 rate with 32-bit
accumulation, times EFFICIENCY: they are calculated, not measured, and leave out encoding the clips.

    python3 dev.py bench cost/first_predictor
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from latent_physics.methods.lamo import MotionFieldPredictor, predictor_loss
from latent_physics.training.tasks.predictor import RECIPES
from torch.utils.flop_counter import FlopCounterMode

EFFICIENCY = 0.3
"""Share of the published rate that small convolutions are taken to reach."""
GPUS = {"RTX 3060": 25.6, "RTX 3090": 71.0, "RTX 4090": 165.2}
"""TFLOP/s, dense bfloat16 with 32-bit accumulation, as NVIDIA publishes them."""


class Size(NamedTuple):
    """The latent that a graph generates."""

    model: str
    channels: int
    height: int
    width: int


SIZES = (
    Size("Wan 2.1 1.3B, 832 x 480", 16, 60, 104),
    Size("Wan 2.2 14B, 640 x 640", 16, 80, 80),
    Size("Wan 2.2 5B, 1280 x 704", 48, 44, 80),
    Size("LTX-2.3, 1280 x 704", 128, 22, 40),
    Size("MiniMax H3, 832 x 480", 24, 30, 52),
    Size("HunyuanVideo 1.5, 1280 x 720", 32, 45, 80),
    Size("CogVideoX 1.5, 1360 x 768", 16, 96, 170),
)


def operations(size: Size) -> float:
    """Operations of a whole training run, forward and backward."""
    recipe = RECIPES["quick"]
    with torch.device("meta"):
        network = MotionFieldPredictor(
            size.channels, 4096, width=recipe.width, blocks=recipe.blocks, order=recipe.order
        )
        frames = torch.empty(recipe.batch, size.channels, size.height, size.width)
        cond = torch.empty(recipe.batch, 4096)
    with FlopCounterMode(display=False) as counter:
        predictor_loss(network(frames, cond), frames).backward()
    return counter.get_total_flops() * float(recipe.steps)


def minutes(count: float, rate: float) -> float:
    """`count` operations on a GPU of `rate` TFLOP/s."""
    return count / (rate * 1e12 * EFFICIENCY) / 60


def main() -> None:
    print(f"| model | operations | {' | '.join(GPUS)} |")
    print(f"|---|---|{'---|' * len(GPUS)}")
    for size in SIZES:
        count = operations(size)
        times = " | ".join(f"{minutes(count, rate):.1f}" for rate in GPUS.values())
        print(f"| {size.model} | {count:.1e} | {times} |")


if __name__ == "__main__":
    main()
