"""Triton twin of the drift's means: prediction, noisy latent and target in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 1024


@triton.jit
def _means_kernel(
    output, noisy, target, scale, gain, mean, target_mean,
    rows_per_sample, positions: tl.constexpr, POSITIONS: tl.constexpr,
) -> None:  # fmt: skip
    """One channel of one frame: the means of scale * noisy - gain * output and of target over its positions."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.arange(0, POSITIONS)
    zero = tl.zeros((POSITIONS,), dtype=tl.float32)
    predicted, noise, clean = zero, zero, zero
    for first in range(0, positions, POSITIONS):
        at = first + step
        inside = at < positions
        predicted += tl.load(output + row * positions + at, mask=inside, other=0.0).to(tl.float32)
        noise += tl.load(noisy + row * positions + at, mask=inside, other=0.0).to(tl.float32)
        clean += tl.load(target + row * positions + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(scale + row // rows_per_sample)
    g = tl.load(gain + row // rows_per_sample)
    tl.store(mean + row, (a * tl.sum(noise, axis=0) - g * tl.sum(predicted, axis=0)) / positions)
    tl.store(target_mean + row, tl.sum(clean, axis=0) / positions)


def means_of_output(output: Tensor, noisy: Tensor, target: Tensor, scale: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial means `B C T` in float32 of x0 = scale * noisy - gain * output and of target, from `B C T H W` latents."""
    batch, channels, frames, height, width = output.shape
    mean, target_mean = torch.empty((2, batch, channels, frames), dtype=torch.float32, device=output.device)
    positions = height * width
    _means_kernel[(batch * channels * frames,)](
        output.contiguous(), noisy.contiguous(), target.contiguous(), scale.float().contiguous(), gain.float().contiguous(),
        mean, target_mean, channels * frames,
        positions=positions, POSITIONS=min(POSITIONS, triton.next_power_of_2(positions)),
    )  # fmt: skip
    return mean, target_mean
