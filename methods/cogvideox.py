"""CogVideoX's training, as far as its files do not say it: noise schedule and rotary positions.

Source: the schedulers and the position code published with the models (CogVideoX, arXiv:2408.06072;
diffusers' CogVideoXDDIMScheduler and CogVideoXPipeline compute the same).
"""

from __future__ import annotations

import torch
from torch import Tensor

TIMESTEPS = 1000
SNR_SHIFT_2B = 3.0
"""`snr_shift_scale` of the 2B model's scheduler; the 5B models have 1."""
BASE_GRID = (30, 45)
"""Patches in height and width of 480 x 720, the size at which the 1.0 models were trained."""


def alphas_cumprod(snr_shift: float) -> Tensor:
    """alpha_bar of the 1000 training timesteps, float64: scaled-linear betas, SNR over `snr_shift`, then
    rescaled to end at 0.

    Source: the schedulers published with the models (scaled_linear 0.00085 .. 0.012, snr_shift_scale,
    rescale_betas_zero_snr).
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    alpha_bar = alpha_bar / (snr_shift + (1 - snr_shift) * alpha_bar)
    root = alpha_bar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def rotary_positions(
    frames: int, height: int, width: int, size: int, device: torch.device | str = "cpu", theta: float = 1e4
) -> tuple[Tensor, Tensor]:
    """cos and sin `(frames * height * width, size)` of CogVideoX 1.0's rotary positions, of a grid of patches
    in frame-major order; `size` is a head's.

    A grid of other proportions than the trained one is centred in it, as images were in training.
    """
    tops, lefts = _inside(height, width)
    quarter, rest = size // 4, size // 8 * 3
    grids = (
        (torch.arange(frames, device=device, dtype=torch.float32), quarter),
        (torch.linspace(tops[0], tops[1] * (height - 1) / height, height, device=device), rest),
        (torch.linspace(lefts[0], lefts[1] * (width - 1) / width, width, device=device), rest),
    )
    shape, parts = (frames, height, width), []
    for axis, (places, dim) in enumerate(grids):
        rates = theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        angles = torch.outer(places, rates).repeat_interleave(2, dim=1)
        view = [1, 1, 1, dim]
        view[axis] = shape[axis]
        parts.append(angles.view(view).expand(*shape, dim))
    angles = torch.cat(parts, dim=-1).reshape(frames * height * width, -1)
    return angles.cos(), angles.sin()


def _inside(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, bottom) and (left, right) of a grid's proportions, as large as fits, centred in the trained
    grid."""
    tall, wide = BASE_GRID
    if height / width > tall / wide:
        size = tall, round(tall / height * width)
    else:
        size = round(wide / width * height), wide
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return (top, top + size[0]), (left, left + size[1])
