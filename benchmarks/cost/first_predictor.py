"""Operations, minutes and GiB of a first motion predictor (recipe `quick`), per model that the pack has a
graph for: on ComfyUI's own clips, and on videos cut to the size that the graph generates.

The operations are those of the recipe's training steps, counted on torch's meta device. GiB are those of a
training step's activations, at 34 bytes each, as the full recipe measures. Minutes are operations over a
GPU's published dense bfloat16 rate with 32-bit accumulation, times EFFICIENCY: they are calculated, not
measured, and leave out encoding the clips.

    python3 dev.py bench cost/first_predictor
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from latent_physics.methods.lamo import MotionFieldPredictor, predictor_loss
from latent_physics.methods.video_models import SPACES
from latent_physics.training.data.first import SIDE
from latent_physics.training.tasks.predictor import RECIPES
from torch.utils.flop_counter import FlopCounterMode

EFFICIENCY = 0.3
"""Share of the published rate that small convolutions are taken to reach."""
GPUS = {"RTX 3060": 25.6, "RTX 3090": 71.0, "RTX 4090": 165.2}
"""TFLOP/s, dense bfloat16 with 32-bit accumulation, as NVIDIA publishes them."""


BYTES_PER_ACTIVATION = 34.0
"""As nodes/host/latents.py reserves memory."""


class Size(NamedTuple):
    """The latent that a graph generates."""

    model: str
    channels: int
    height: int
    width: int
    space: str = "wan2.1"

    @property
    def on_own_clips(self) -> Size:
        """The latent of ComfyUI's own clips."""
        side = SIDE // SPACES[self.space].pixels
        return self._replace(height=side, width=side)

    @property
    def gibibytes(self) -> float:
        """Memory of a training step."""
        recipe = RECIPES["quick"]
        activations = self.height * self.width * recipe.width * recipe.blocks * recipe.batch
        return BYTES_PER_ACTIVATION * activations / 2**30


SIZES = (
    Size("Wan 2.1 1.3B, 832 x 480", 16, 60, 104),
    Size("Wan 2.2 14B, 640 x 640", 16, 80, 80),
    Size("Wan 2.2 5B, 1280 x 704", 48, 44, 80, "wan2.2"),
    Size("LTX-2.3, 1280 x 704", 128, 22, 40, "ltxav"),
    Size("MiniMax H3, 832 x 480", 24, 30, 52, "minimax_h3"),
    Size("HunyuanVideo 1.5, 1280 x 720", 32, 45, 80, "hunyuan_video1.5"),
    Size("CogVideoX 1.5, 1360 x 768", 16, 96, 170, "cogvideox1.5"),
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


def row(size: Size, name: str) -> str:
    """A line of the table."""
    count = operations(size)
    times = " | ".join(f"{minutes(count, rate):.1f}" for rate in GPUS.values())
    return f"| {name} | {count:.1e} | {times} | {size.gibibytes:.2f} |"


def main() -> None:
    print(f"| model | operations | {' | '.join(GPUS)} | GiB |")
    print(f"|---|---|{'---|' * len(GPUS)}---|")
    for size in SIZES:
        own = size.on_own_clips
        print(row(own, f"{size.model.partition(',')[0]}, own clips ({own.height} x {own.width})"))
    for size in SIZES:
        print(row(size, size.model))


if __name__ == "__main__":
    main()
