"""Finite differences and the physical residuals built on them, forward and backward in one pass each.

Fields are `B C T H W` in lattice units: one latent pixel, one latent frame. Derivatives are central and second order, with
one-sided second-order stencils at the ends (PILA's residuals, section A.3). A derivative is a linear map, so its gradient is the
transposed stencil; writing it out spares autograd's slices, concatenations and saved temporaries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

TIME, Y, X = -3, -2, -1
START = {1: (-1.5, 2.0, -0.5), 2: (2.0, -5.0, 4.0, -1.0)}
"""One-sided weights of the points 0, 1, 2, .. in the derivative at point 0; at the last point they are mirrored."""


def derivative(field: Tensor, dim: int, order: int = 1) -> Tensor:
    """First or second derivative of a field along one dimension, same shape, differentiable as often as wanted.

    Raises ValueError for an order other than 1 or 2, an integer field, or fewer points than the stencil needs (3 or 4).
    """
    if order not in START:
        raise ValueError(f"order is {order}; it must be 1 or 2.")
    if not field.is_floating_point():
        raise ValueError(f"the field has dtype {field.dtype}; finite differences need a floating-point field.")
    if field.shape[dim] < order + 2:
        raise ValueError(f"the field has {field.shape[dim]} points along dimension {dim}; derivative {order} needs {order + 2}.")
    return _Derivative.apply(field, dim, order, False)


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, field: Tensor, dim: int, order: int, transposed: bool) -> Tensor:
        ctx.how = (dim, order, transposed)
        return add_transposed(torch.zeros_like(field), field, dim, order) if transposed else difference(field, dim, order)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        dim, order, transposed = ctx.how
        return _Derivative.apply(gradient, dim, order, not transposed), None, None, None


def difference(field: Tensor, dim: int, order: int) -> Tensor:
    """`derivative` without autograd and without checks; each point is written once."""
    n = field.shape[dim]
    out = torch.empty_like(field, memory_format=torch.contiguous_format)
    before, here, after = (field.narrow(dim, i, n - 2) for i in range(3))
    inner = out.narrow(dim, 1, n - 2)
    if order == 1:
        torch.sub(after, before, out=inner).mul_(0.5)
    else:
        torch.add(after, before, out=inner).sub_(here, alpha=2.0)
    for edge, points, sign in _edges(n, order):
        target = out.narrow(dim, edge, 1).zero_()
        for point, weight in zip(points, START[order]):
            target.add_(field.narrow(dim, point, 1), alpha=sign * weight)
    return out


def add_transposed(into: Tensor, gradient: Tensor, dim: int, order: int) -> Tensor:
    """Adds the transposed stencil of `gradient` to `into`, in place, and returns it."""
    n = gradient.shape[dim]
    inner = gradient.narrow(dim, 1, n - 2)
    outer = 0.5 if order == 1 else 1.0
    into.narrow(dim, 2, n - 2).add_(inner, alpha=outer)
    into.narrow(dim, 0, n - 2).add_(inner, alpha=-outer if order == 1 else outer)
    if order == 2:
        into.narrow(dim, 1, n - 2).sub_(inner, alpha=2.0)
    for edge, points, sign in _edges(n, order):
        source = gradient.narrow(dim, edge, 1)
        for point, weight in zip(points, START[order]):
            into.narrow(dim, point, 1).add_(source, alpha=sign * weight)
    return into


def _edges(n: int, order: int) -> tuple[tuple[int, range, float], ...]:
    """Both end points: (index, the points its stencil reads, sign of the weights)."""
    reach = order + 2
    return (0, range(reach), 1.0), (n - 1, range(n - 1, n - 1 - reach, -1), -1.0 if order == 1 else 1.0)
