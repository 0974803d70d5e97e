"""Motion drift: how fast the spatial mean of a latent changes (LaMo, arXiv 2605.23878, eqs 1, 4 and 5).

The mean over H, W and the difference in time commute, so the means come first: one read of each latent, and
nothing of a latent's size is ever allocated. The gradient is the same at every position and is returned as
one number seen H W times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def motion_drift(latent: Tensor, lag: int = 2) -> Tensor:
    """Spatial mean of `latent[:, :, i + lag] - latent[:, :, i]` for every i (eq 4).

    latent: `B C T H W`, any floating dtype. Returns `B C T-lag` in float32, differentiable with respect to
    the latent. Raises ValueError if the latent is not five-dimensional, not floating-point, or has no pair of
    frames `lag` apart.
    """
    check_latent("latent", latent, lag)
    return difference(spatial_mean(latent), lag).float()


def drift_loss(
    x0: Tensor, target: Tensor, lag: int = 2, eps: float = 1e-6, weight: Tensor | None = None
) -> Tensor:
    """Scale-normalised distance of two drifts (eq 5): mean of w |mu - mu*|^2 / (|mu*|^2 + eps), norms over C.

    The mean runs over B and i. x0: the denoised estimate, `B C T H W`; target: the clean latent of the same
    shape, a constant; weight: w, one number per sample, `B`, or None for ones. eps is in squared latent
    units: pairs whose |mu*|^2 is far below it count little.
    Returns a scalar in float32 (float64 if x0 is float64) whose gradient flows to x0 alone. With eps
    negligible the distance is (r - 1)^2 + 2 r (1 - cos), r the ratio of the drifts' lengths. Raises
    ValueError as `motion_drift` does, and if the shapes differ.
    """
    check_latent("x0", x0, lag)
    check_same_shape("target", target, "x0", x0)
    drift, true = difference(spatial_mean(x0), lag), difference(spatial_mean(target.detach()), lag)
    return normalised_distance(drift, true, eps, weight)


def spatial_mean(latent: Tensor) -> Tensor:
    """Mean over H and W, `B C T H W` -> `B C T`, in float32 (float64 stays), without a converted copy."""
    return _SpatialMean.apply(latent)


def difference(means: Tensor, lag: int) -> Tensor:
    """`means[..., i + lag] - means[..., i]`, `B C T` -> `B C T-lag`."""
    return means[..., lag:] - means[..., :-lag]


def normalised_distance(drift: Tensor, target: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """Eq 5 on drifts `B C T-lag`, samples weighted by `weight` (`B`). The target is a constant."""
    target = target.detach()
    scale = target.square().sum(dim=1) + eps
    distance = ((drift - target).square().sum(dim=1) / scale).mean(dim=1)
    return (distance if weight is None else weight.to(distance) * distance).mean()


def _mean(latent: Tensor) -> Tensor:
    return latent.mean(dim=(-2, -1), dtype=torch.promote_types(latent.dtype, torch.float32))


def _spread(gradient: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of a mean: one number seen at every position, never copied out."""
    return (gradient / (shape[-2] * shape[-1])).to(dtype)[..., None, None].expand(shape)


class _SpatialMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, latent: Tensor) -> Tensor:
        ctx.like = (latent.shape, latent.dtype)
        return _mean(latent)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _spread(gradient, *ctx.like)


def check_latent(name: str, latent: Tensor, lag: int) -> None:
    """Raises ValueError unless `latent` is a floating-point `B C T H W` with a pair of frames `lag` apart."""
    if latent.ndim != 5:
        raise ValueError(
            f"{name} has shape {tuple(latent.shape)}; motion drift needs five dimensions, B C T H W."
        )
    if not latent.is_floating_point():
        raise ValueError(f"{name} has dtype {latent.dtype}; motion drift needs a floating-point latent.")
    if lag < 1:
        raise ValueError(f"lag is {lag}; it must be at least 1 latent frame.")
    if latent.shape[2] <= lag:
        raise ValueError(
            f"{name} has {latent.shape[2]} latent frames; a lag of {lag} needs at least {lag + 1}."
        )
    if latent.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(latent.shape)}; every dimension must be at least 1.")


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both tensors have one shape."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, {other_name} {tuple(other.shape)}; they must be equal."
        )
