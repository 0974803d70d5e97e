"""L2-normalised features and the gradient through the normalisation, in the features' own memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Rows:
    """Vectors of one length, `n C`: `values`, or `values * factor` if raw rows are kept."""

    values: Tensor
    factor: Tensor | None = None
    """The wanted length over max(|row|, 1e-8), `n`, float32; None where `values` have that length already."""

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.values[rows], None if self.factor is None else self.factor[rows])

    def __len__(self) -> int:
        return self.values.shape[0]


Pair = tuple[Rows, Rows]
"""A tile's rows and its columns."""


def normalise(x: Tensor, dtype: torch.dtype, length: float = 1.0) -> Tensor:
    """Rows of x `N C` divided by max(|row|, 1e-8) and brought to `length`, in `dtype`."""
    unit = torch.empty(x.shape, dtype=dtype, device=x.device)
    return torch.mul(x, length / lengths(x, dtype).clamp_min(EPS), out=unit)


def lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Euclidean length of each row, `N 1`, accumulated in `dtype`."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)


def through_normalisation_(gradient: Tensor, x: Tensor, scale: float) -> Tensor:
    """Turns a gradient by the unit vectors u into `scale` times the gradient by the rows x, in place, `N C`.

    For a row longer than 1e-8: (g - u (u . g)) / |x|. A shorter row was divided by a constant: g / 1e-8.
    """
    for first in range(0, x.shape[0], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        g, length = gradient[rows], lengths(x[rows], gradient.dtype)
        unit = x[rows] / length.clamp_min(EPS)
        along = (g * unit).sum(dim=-1, keepdim=True) * (length > EPS)
        g.addcmul_(unit, along, value=-1).mul_(scale / length.clamp_min(EPS))
    return gradient
