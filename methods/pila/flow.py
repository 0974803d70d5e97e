"""Optical flow without a network: the target for the velocity slot where no RAFT weights are at hand.

Iterative Lucas-Kanade over a pyramid, on any number of channels, so that it also runs on latents. The target
of the velocity slot is motion in latent pixels per latent frame, seen at a fixed pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import stencils as st

WINDOW = 5
ITERATIONS = 4
SMALLEST_SIDE = 8
AGREEMENT = 0.5
"""Pixels by which forward and backward flow may differ before confidence falls to a half."""


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`image` `N C H W` read at x + flow, bilinear, edges repeated. `flow` `N 2 H W` in pixels as (x, y)."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] + flow[:, 1]
    columns = torch.arange(width, device=image.device, dtype=image.dtype)[None] + flow[:, 0]
    grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _window_mean(field: Tensor) -> Tensor:
    pad = WINDOW // 2
    return F.avg_pool2d(F.pad(field, (pad, pad, pad, pad), mode="replicate"), WINDOW, stride=1)


def _refine(before: Tensor, after: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """One Lucas-Kanade update, and how well the window determines it (smaller eigenvalue relative to image
    activity)."""
    warped = warp(after, flow)
    middle = 0.5 * (before + warped)
    dx, dy, dt = st.ddx(middle), st.ddy(middle), warped - before
    products = [dx * dx, dx * dy, dy * dy, dx * dt, dy * dt]
    xx, xy, yy, xt, yt = (_window_mean(p.sum(dim=1, keepdim=True)) for p in products)
    ridge = 0.02 * (xx + yy).mean(dim=(2, 3), keepdim=True) + 1e-8
    a, c = xx + ridge, yy + ridge
    determinant = a * c - xy * xy
    step = torch.cat([(xy * yt - c * xt) / determinant, (xy * xt - a * yt) / determinant], dim=1)
    smaller = 0.5 * (xx + yy - ((xx - yy).square() + 4 * xy * xy).sqrt())
    # Neighbouring windows must agree: left alone, updates of single pixels roughen the flow until iterating
    # diverges.
    return _window_mean(flow + step.clamp(-1.0, 1.0)), (smaller / (smaller + ridge)).clamp(0.0, 1.0)


def _pyramid(image: Tensor) -> list[Tensor]:
    levels = [image]
    while min(levels[-1].shape[-2:]) >= 2 * SMALLEST_SIDE:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels[::-1]


def lucas_kanade(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Flow `N 2 H W` in pixels (x, y) from `before` to `after`, `N C H W`, and how well each place determines
    it, `N 1 H W`.

    Raises ValueError for pictures below 5x5.
    """
    st.require_size(before[:, :, None], 1, WINDOW, "optical flow")
    flow = None
    for low, high in zip(_pyramid(before.float()), _pyramid(after.float())):
        if flow is None:
            flow = low.new_zeros(low.shape[0], 2, *low.shape[-2:])
        else:
            scale = [now / was for now, was in zip(low.shape[:1:-1], flow.shape[:1:-1])]
            flow = F.interpolate(flow, size=low.shape[-2:], mode="bilinear", align_corners=False)
            flow = flow * flow.new_tensor(scale)[None, :, None, None]
        for _ in range(ITERATIONS):
            flow, certainty = _refine(low, high, flow)
    return flow, certainty


def checked_flow(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Flow and a confidence in [0, 1] that falls where forward and backward flow disagree (`N 2 H W`, `N 1 H
    W`)."""
    forward, certainty = lucas_kanade(before, after)
    backward, _ = lucas_kanade(after, before)
    disagreement = (forward + warp(backward, forward)).square().sum(dim=1, keepdim=True)
    return forward, certainty / (1.0 + disagreement / AGREEMENT**2)


@torch.no_grad()
def latent_flow(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Flow targets from a latent itself, `C T H W`: flow `2 T-1 H W` (latent pixels per latent frame),
    confidence `1 T-1 H W`."""
    frames = latent.transpose(0, 1)
    flow, confidence = checked_flow(frames[:-1], frames[1:])
    return flow.transpose(0, 1), confidence.transpose(0, 1)


@torch.no_grad()
def video_flow(video: Tensor, frames: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flow targets from decoded frames, `3 N H W` with N = 1 + stride * (frames - 1): shapes as in
    `latent_flow`.

    Motion between neighbouring frames is added up over a latent frame at a fixed pixel, as the displacement
    of Eq 19 is, and averaged over each latent pixel by confidence. Raises ValueError where N does not fit
    `frames`.
    """
    count = video.shape[1] - 1
    if frames < 2 or count % (frames - 1):
        raise ValueError(f"{count + 1} decoded frames do not belong to {frames} latent frames.")
    pictures = video.transpose(0, 1)
    flow, confidence = checked_flow(pictures[:-1], pictures[1:])
    pooled = F.adaptive_avg_pool2d(confidence, size)
    flow = F.adaptive_avg_pool2d(flow * confidence, size) / pooled.clamp(min=1e-6)
    scale = flow.new_tensor([size[1] / video.shape[3], size[0] / video.shape[2]])[None, :, None, None]
    flow = (flow * scale).unflatten(0, (frames - 1, -1)).sum(dim=1)
    return flow.transpose(0, 1), pooled.unflatten(0, (frames - 1, -1)).mean(dim=1).transpose(0, 1)
