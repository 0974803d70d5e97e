"""Where the motion is: two heatmaps over the latent grid (LaMo, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.drift import difference, spatial_mean
from .bound import pair_count
from .guidance import CHUNK_POSITIONS
from .predictor import MotionFieldPredictor


def drift_heatmap(latent: Tensor, lag: int = 2, eps: float = 1e-6, skip: int = 0) -> tuple[Tensor, Tensor]:
    """(maps `(B, T-lag, H, W)`, peak `(B,)`): how strongly each position's change follows the frame's mean
    change.

    R[t] = |<D_t(h,w), b_t>| / (|b_t| + eps) in latent units, b_t the spatial mean of D_t = z[t+lag] - z[t]
    (eqs 10 and 12), for every t; peak is t* = argmax |b_t| (eq 11). latent: `B C T H W`. skip: the first so
    many maps are zero and no peak (at least one map is left): a causal VAE makes its first latent frame of
    one video frame and the others of four, which in the mean changes more than anything that moves. Raises
    ValueError where T <= lag or skip is negative.
    """
    _check(latent, lag)
    latent = latent.to(torch.promote_types(latent.dtype, torch.float32))
    change = latent[:, :, lag:] - latent[:, :, :-lag]
    drift = difference(spatial_mean(latent), lag)
    size = drift.norm(dim=1)
    along = torch.einsum("bcthw,bct->bthw", change, drift).abs()
    seen = _seen(size.shape[1], skip, latent.device)
    maps = along / (size + eps)[:, :, None, None] * seen[:, None, None]
    return maps, size.where(seen, -1.0).argmax(dim=1)


def motion_amount(latent: Tensor, lag: int = 2, skip: int = 0) -> Tensor:
    """`(B,)`: how much of each clip changes, without a unit.

    The root mean square of D_t = z[t+lag] - z[t] over all positions, channels and t, divided by the latent's
    standard deviation. 0 for a still clip, sqrt(2) for frames that have nothing to do with one another.
    Flicker counts as motion. latent: `B C T H W`; skip: as in `drift_heatmap`. Raises ValueError where T <=
    lag or skip is negative.
    """
    _check(latent, lag)
    latent = latent.to(torch.promote_types(latent.dtype, torch.float32))
    change = latent[:, :, lag:] - latent[:, :, :-lag]
    seen = _seen(change.shape[2], skip, latent.device)
    spread = latent.flatten(1).std(dim=1, correction=0)
    moved = change[:, :, seen].square().flatten(1).mean(dim=1).sqrt()
    return torch.where(spread > 0, moved / spread, torch.zeros_like(moved))


def field_heatmap(
    latent: Tensor, predictor: MotionFieldPredictor, cond: Tensor | None = None, lag: int = 2, skip: int = 0
) -> tuple[Tensor, Tensor]:
    """(maps `(B, T-lag, H, W)`, peak `(B,)`): where the predictor answers to motion.

    R[t] = |f(z[t], c) - f(z_static, c)| per position, z_static the temporal mean of the latent, which cancels
    what f answers to a still scene (eqs 13 and 14), for every t; peak is that of `drift_heatmap`, so that
    both show the same event. An order-2 predictor reads the true last change at t >= 1, and no change at t =
    0 and for the static frame. skip: as in `drift_heatmap`. Raises ValueError where T <= lag or skip is
    negative.
    """
    _, peak = drift_heatmap(latent, lag, skip=skip)
    latent = latent.to(torch.promote_types(latent.dtype, torch.float32))
    batch, _, frames, height, width = latent.shape
    pairs = frames - lag
    still = latent.mean(dim=2)
    reference = _field(predictor, still, cond, torch.zeros_like(still))
    moving = latent[:, :, :pairs].movedim(2, 1)
    last = torch.diff(moving, dim=1, prepend=moving[:, :1])
    maps = latent.new_empty(batch, pairs, height, width)
    size = max(1, CHUNK_POSITIONS // (height * width * batch))
    for start in range(0, pairs, size):
        part = moving[:, start : start + size]
        count = part.shape[1]
        conds = None if cond is None else cond.expand(batch, -1).repeat_interleave(count, dim=0)
        answer = _field(predictor, part.flatten(0, 1), conds, last[:, start : start + size].flatten(0, 1))
        maps[:, start : start + count] = (answer.unflatten(0, (batch, count)) - reference[:, None]).norm(
            dim=2
        )
    return maps * _seen(pairs, skip, maps.device)[:, None, None], peak


def _seen(maps: int, skip: int, device: torch.device) -> Tensor:
    """Bools, the maps that count: all but the first `skip`, and always the last."""
    if skip < 0:
        raise ValueError(f"skip is {skip}; it must be 0 or more latent frames.")
    return torch.arange(maps, device=device) >= min(skip, maps - 1)


def _field(predictor: MotionFieldPredictor, frames: Tensor, cond: Tensor | None, last: Tensor) -> Tensor:
    dtype = predictor.null_prompt.dtype
    with torch.no_grad():
        return predictor(frames.to(dtype), cond, last.to(dtype) if predictor.order == 2 else None).to(
            frames.dtype
        )


def _check(latent: Tensor, lag: int) -> None:
    if latent.ndim != 5:
        raise ValueError(
            f"a motion heatmap needs a video latent (B, C, T, H, W); this one, {tuple(latent.shape)}, is an "
            f"image."
        )
    pair_count(latent.shape[2], lag)
