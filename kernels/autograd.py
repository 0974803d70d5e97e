"""Losses whose gradient is cheapest to form while the loss itself is computed.

A scalar loss has one gradient up to a factor, so a tiled loss computes it in the forward pass, when each tile
is at hand, and the backward pass only scales it: no tile is computed twice and none is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Compute = Callable[[Tensor, bool], tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]]
"""compute(x, want_gradient) -> (values, gradients): a gradient of x's shape, or None, a value."""


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, compute: Compute, want_gradient: bool) -> tuple[Tensor, ...]:
        values, gradients = compute(x, want_gradient)
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.like = (x.shape, x.dtype)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        gradients = iter(ctx.saved_tensors)
        total = None
        for scale, present in zip(upstream, ctx.present):
            if not present:
                continue
            gradient = next(gradients)
            total = gradient * scale if total is None else total.addcmul_(gradient, scale)
        shape, dtype = ctx.like
        if total is None:
            return upstream[0].new_zeros(shape, dtype=dtype), None, None
        return total.to(dtype), None, None


def with_gradient(x: Tensor, compute: Compute) -> tuple[Tensor, ...]:
    """Runs `compute` on x and makes its scalar values differentiable, once, with respect to x.

    `compute` runs without autograd and outside autocast, so it accumulates in the precision it chooses.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        return _Precomputed.apply(x, compute, x.requires_grad and torch.is_grad_enabled())


def accumulate_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
