"""Finite differences on fields `B C T H W`, in lattice units: one latent pixel, one latent frame.

Derivatives are central and second order, with one-sided second-order stencils at the ends, so that all terms
of one equation sit at the same point. Forward differences appear only inside gradient energies: a central
difference cannot see the checkerboard mode. Differences amplify rounding, so callers pass float32 or wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TIME, Y, X = -3, -2, -1


def require_size(field: Tensor, frames: int, side: int, what: str) -> None:
    """Raises ValueError where `field` has fewer frames or a shorter side than a stencil needs."""
    found_frames, height, width = field.shape[-3:]
    if found_frames < frames:
        raise ValueError(f"{what} needs at least {frames} latent frames; the latent has {found_frames}.")
    if min(height, width) < side:
        raise ValueError(
            f"{what} needs latents of at least {side}x{side}; this one is {width}x{height} (width x height)."
        )


def first_derivative(field: Tensor, dim: int) -> Tensor:
    """d field / d dim, same shape. Needs three points along `dim`."""
    n = field.shape[dim]
    inner = 0.5 * (field.narrow(dim, 2, n - 2) - field.narrow(dim, 0, n - 2))
    first, second, third = (field.narrow(dim, i, 1) for i in range(3))
    start = 2.0 * second - 1.5 * first - 0.5 * third
    last, before, third_last = (field.narrow(dim, n - 1 - i, 1) for i in range(3))
    end = 1.5 * last - 2.0 * before + 0.5 * third_last
    return torch.cat([start, inner, end], dim=dim)


def second_derivative(field: Tensor, dim: int) -> Tensor:
    """d^2 field / d dim^2, same shape: compact three-point stencil. Needs four points along `dim`."""
    n = field.shape[dim]
    inner = field.narrow(dim, 2, n - 2) - 2.0 * field.narrow(dim, 1, n - 2) + field.narrow(dim, 0, n - 2)
    a, b, c, d = (field.narrow(dim, i, 1) for i in range(4))
    start = 2.0 * a - 5.0 * b + 4.0 * c - d
    a, b, c, d = (field.narrow(dim, n - 1 - i, 1) for i in range(4))
    end = 2.0 * a - 5.0 * b + 4.0 * c - d
    return torch.cat([start, inner, end], dim=dim)


def ddt(field: Tensor) -> Tensor:
    """Rate of change per latent frame, at a fixed pixel."""
    return first_derivative(field, TIME)


def ddx(field: Tensor) -> Tensor:
    """Derivative along the width."""
    return first_derivative(field, X)


def ddy(field: Tensor) -> Tensor:
    """Derivative along the height (rows count downwards)."""
    return first_derivative(field, Y)


def laplacian(field: Tensor) -> Tensor:
    """Second derivatives along width and height, added."""
    return second_derivative(field, X) + second_derivative(field, Y)


def divergence(vector: Tensor) -> Tensor:
    """div of a vector field `B 2 T H W` with channels (x, y): `B 1 T H W` (Eq 15)."""
    return ddx(vector[:, :1]) + ddy(vector[:, 1:2])


def curl(vector: Tensor) -> Tensor:
    """The out-of-plane rotation of a vector field `B 2 T H W`: `B 1 T H W` (Eq 15)."""
    return ddx(vector[:, 1:2]) - ddy(vector[:, :1])


def symmetric_gradient(vector: Tensor) -> Tensor:
    """sym grad of a vector field `B 2 T H W`: `B 4 T H W` as (xx, xy, yx, yy) (Eq 16). Blind to rotation."""
    x, y = vector[:, :1], vector[:, 1:2]
    shear = 0.5 * (ddy(x) + ddx(y))
    return torch.cat([ddx(x), shear, shear, ddy(y)], dim=1)


def advection(vector: Tensor, field: Tensor) -> Tensor:
    """(u . grad) field, for every channel of `field`."""
    return vector[:, :1] * ddx(field) + vector[:, 1:2] * ddy(field)


def step_difference(field: Tensor) -> Tensor:
    """field[n+1] - field[n] along time: one frame fewer."""
    return field[:, :, 1:] - field[:, :, :-1]


def step_mean(field: Tensor) -> Tensor:
    """(field[n+1] + field[n]) / 2 along time: one frame fewer."""
    return 0.5 * (field[:, :, 1:] + field[:, :, :-1])


def forward_energy(field: Tensor) -> Tensor:
    """|forward gradient|^2 summed over channels, `B 1 T H W`; the far edges count the difference that
    exists."""
    dx = F.pad(field[..., 1:] - field[..., :-1], (0, 1))
    dy = F.pad(field[..., 1:, :] - field[..., :-1, :], (0, 0, 0, 1))
    return (dx.square() + dy.square()).sum(dim=1, keepdim=True)


def smooth(field: Tensor) -> Tensor:
    """Separable 1-2-1 filter along time, height and width; the outermost values stay, so that linear fields
    pass unchanged."""
    for dim in (TIME, Y, X):
        n = field.shape[dim]
        inner = 0.5 * field.narrow(dim, 1, n - 2) + 0.25 * (
            field.narrow(dim, 0, n - 2) + field.narrow(dim, 2, n - 2)
        )
        field = torch.cat([field.narrow(dim, 0, 1), inner, field.narrow(dim, n - 1, 1)], dim=dim)
    return field
