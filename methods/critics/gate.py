"""The motion gate: a frozen clip is perfectly predictable, so every critic would choose it (specs: reward
hacking guard)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

INTERVAL = 0.25
"""Seconds between the two moments that are compared: long enough that a decoder's flicker is not motion."""
BUSIEST = 0.05
"""Share of the places of a frame, the busiest ones, whose change counts: a small thing that moves is
motion too."""
PIXELS_STILL, PIXELS_MOVING = 0.004, 0.01
"""Change of pixels in [0, 1] at and below which a clip counts as still (a grey level), and from which it
counts as moving: slow real motion, such as spreading heat, must not count as none."""
LATENT_STILL, LATENT_MOVING = 0.1, 0.3
"""The same for latents, whose values have a deviation of about 1."""
POOL_SHARE = 0.5
"""Among candidates a clip counts as moving from this share of the pool's median motion."""


def pixel_motion(clip: Tensor, fps: float) -> Tensor:
    """Motion of frames `B 3 T H W` in [0, 1], `B`: mean over time of the busiest pixels' change within
    INTERVAL seconds.

    One number for the same clip at any frame rate. A single frame has motion 0.
    """
    return _busiest(clip, fps, lambda change: change.abs().mean(dim=1))


def latent_motion(latent: Tensor, fps: float) -> Tensor:
    """The same of a latent `B C T H W`: a place's change is the root mean square over channels.

    fps: latent frames a second. Causal video VAEs encode the first frame by itself, which differs from the
    rest of a still clip too: it is left out where 3 or more latent frames are there.
    """
    latent = latent[:, :, 1:] if latent.shape[2] > 2 else latent
    return _busiest(latent, fps, lambda change: change.square().mean(dim=1).sqrt())


def motion_gate(motion: Tensor, still: float, moving: float | Tensor) -> Tensor:
    """0 at `still` and below, 1 from `moving` on, straight in between; `B`."""
    moving = torch.as_tensor(moving, dtype=motion.dtype).clamp(min=still * 1.001)
    return ((motion - still) / (moving - still)).clamp(0, 1)


def gate_of_pool(motion: Tensor, reads: str) -> Tensor:
    """Gate of candidates for one prompt, `B`: a clip also counts as nearly still beside others that move much
    more.

    motion: `B`, of all candidates. reads: "frames" or "latent", which decides the absolute limits. The median
    of an even number is the mean of the middle two: `torch.median` takes the lower one, so that of two clips
    the stiller would be measured by itself.
    """
    still, moving = limits(reads)
    return motion_gate(motion, still, (POOL_SHARE * motion.quantile(0.5)).clamp(min=moving))


def limits(reads: str) -> tuple[float, float]:
    """(still, moving) of what a critic reads."""
    return (PIXELS_STILL, PIXELS_MOVING) if reads == "frames" else (LATENT_STILL, LATENT_MOVING)


def rank(plausibility: Tensor, gate: Tensor) -> list[int]:
    """Candidates, best first: by plausibility x gate, then by gate, then by plausibility, then in the
    order given."""
    keys = zip((plausibility * gate).tolist(), gate.tolist(), plausibility.tolist())
    return [number for number, _ in sorted(enumerate(keys), key=lambda pair: pair[1], reverse=True)]


def _busiest(clip: Tensor, fps: float, size: Callable[[Tensor], Tensor]) -> Tensor:
    """`size` turns a change `B C T H W` into lengths `B T H W`."""
    lag = min(max(1, round(fps * INTERVAL)), max(1, clip.shape[2] - 1))
    clip = clip.float()
    change = size(clip[:, :, lag:] - clip[:, :, : clip.shape[2] - lag]).flatten(2)
    if change.shape[1] == 0:
        return torch.zeros(len(clip))
    count = max(1, round(BUSIEST * change.shape[2]))
    return change.topk(count, dim=2).values.mean(dim=(1, 2)).cpu()
