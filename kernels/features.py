"""L2-normalised features and the gradient through the normalisation, without a second tensor of the features' size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Rows:
    """Unit vectors `n C`: `values`, or `values * inverse` where the raw rows are kept (they are exact in their own dtype)."""

    values: Tensor
    inverse: Tensor | None = None
    """1 / max(|row|, 1e-8), `n`, float32; None where `values` are unit vectors already."""

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.values[rows], None if self.inverse is None else self.inverse[rows])

    def __len__(self) -> int:
        return self.values.shape[0]

    def unit(self, dtype: torch.dtype) -> Tensor:
        """The unit vectors in `dtype`."""
        values = self.values if self.inverse is None else self.values * self.inverse[:, None]
        return values.to(dtype)


Pair = tuple[Rows, Rows]
"""A tile's rows and its columns."""


def normalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of x `N C` divided by max(|row|, 1e-8), in `dtype`."""
    unit = torch.empty(x.shape, dtype=dtype, device=x.device)
    return torch.div(x, lengths(x, dtype).clamp_min(EPS), out=unit)


def lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Euclidean length of each row, `N 1`, accumulated in `dtype`."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)


def through_normalisation_(gradient: Tensor, x: Tensor, scale: float) -> Tensor:
    """Turns the gradient with respect to the unit vectors u into `scale` times the one with respect to the rows x, in place.

    For a row longer than 1e-8: (g - u (u . g)) / |x|; for a shorter one, which was divided by a constant: g / 1e-8.
    """
    for first in range(0, x.shape[0], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        g, length = gradient[rows], lengths(x[rows], gradient.dtype)
        unit = x[rows] / length.clamp_min(EPS)
        along = (g * unit).sum(dim=-1, keepdim=True) * (length > EPS)
        g.addcmul_(unit, along, value=-1).mul_(scale / length.clamp_min(EPS))
    return gradient
