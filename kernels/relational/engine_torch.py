"""The work on one tile of a relation in plain torch: any device, float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ..matmul import product
from .features import Pair, Rows, normalise
from .tiles import Block, FrameWeight

CPU_TILE = 640
"""Tokens along a tile's side: a few tiles stay in a core's caches."""
DEVICE_TILE = 4096
"""The same on a GPU, where a tile has to fill every multiprocessor; in float32 it takes 64 MiB."""
COOLEST = 1 / 64
"""Lowest temperature at which exp(score / temperature), summed over a frame, neither over- nor underflows."""


class TorchEngine:
    """See `tiled.Engine`. Keeps its buffers between tiles.

    like: a tensor on the device to work on; dtype: of scores and slopes; tile: side of a tile in tokens, by
    default the device's own.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, tile: int | None = None) -> None:
        self.tile = tile or (CPU_TILE if like.device.type == "cpu" else DEVICE_TILE)
        self.dtype = dtype
        self._buffer = torch.empty(0, dtype=dtype, device=like.device)

    def rows(self, x: Tensor, length: float = 1.0) -> Rows:
        """Rows of one length in the accumulating dtype."""
        return Rows(normalise(x, self.dtype, length))

    def takes_both(self, per_frame: int, temperature: float) -> bool:
        """If no maximum needs taking off, one exponential serves rows and columns of whole frames."""
        return temperature >= COOLEST and per_frame <= 2 * self.tile

    def add_product(self, into: Tensor, slope: Tensor, rows: Rows) -> None:
        """into += slope times the rows."""
        into.add_(product(slope, rows.values.t()))

    def relation_l1(
        self, student: Pair, teacher: Pair, place: tuple[Block, Block], weight: FrameWeight, margin: float
    ) -> tuple[Tensor, Tensor]:
        """The sum over the tile and its slope: in place, so that two tiles are held and one buffer."""
        slope = product(*_values(student)).sub_(product(*_values(teacher)))
        distance = torch.abs(slope, out=self._like(slope))
        slope.sign_()
        if margin > 0:
            distance.sub_(margin).relu_()
        number = weight.between(*place)
        if number is None:
            table = weight.table(*place, slope)
            frames = (table.shape[0], -1, table.shape[2], slope.shape[1] // table.shape[2])
            loss = (distance.view(frames).sum((1, 3), keepdim=True) * table).sum()
            slope.view(frames).mul_(table)
        else:
            loss = distance.sum() * number
            if number != 1:
                slope.mul_(number)
        if margin > 0:  # relu's slope: 0 within the margin, 1 beyond it
            slope.mul_(distance.sign_())
        return loss, slope

    def tempered_rows(
        self, student: Pair, teacher: Pair, per_frame: int, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Softmax along the rows, frame by frame: the slope is P_S - P_T (TSA eq 10)."""
        frames = (len(student[0]), -1, per_frame)
        s, t = product(*_values(student)).view(frames), product(*_values(teacher)).view(frames)
        difference = torch.sub(t, s, out=self._like(s))
        top_s, top_t = s.amax(-1, keepdim=True), t.amax(-1, keepdim=True)
        s.sub_(top_s).exp_()
        t.sub_(top_t).exp_()
        sum_s, sum_t = s.sum(-1, keepdim=True), t.sum(-1, keepdim=True)
        t.div_(sum_t)
        loss = difference.mul_(t).sum() + (top_s - top_t + (sum_s / sum_t).log_()).sum()
        return loss, s.div_(sum_s).sub_(t).flatten(1) if want_slope else None

    def tempered_both(
        self, student: Pair, teacher: Pair, per_frame: int, diagonal: bool, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Softmax along rows and columns of one tile, seen as `k S l S`, from a single exponential."""
        frames = (-1, per_frame, len(student[1]) // per_frame, per_frame)
        s, t = product(*_values(student)).view(frames), product(*_values(teacher)).view(frames)
        difference = torch.sub(t, s, out=self._like(s))
        s.exp_()
        t.exp_()
        difference.mul_(t)
        loss = torch.zeros((), dtype=s.dtype, device=s.device)
        inverse_s, inverse_t = [], []
        for axis in (3, 1):
            sum_s, sum_t = s.sum(axis, keepdim=True), t.sum(axis, keepdim=True)
            if axis == 3 or not diagonal:
                loss += (difference.sum(axis, keepdim=True) / sum_t + (sum_s / sum_t).log_()).sum()
            inverse_s.append(sum_s.reciprocal_())
            inverse_t.append(sum_t.reciprocal_())
        if not want_slope:
            return loss, None
        # exp(s) / rows' sum + exp(s) / columns' sum, less the teacher's. `difference` is free by now.
        s.mul_(torch.add(*inverse_s, out=difference))
        s.addcmul_(t, torch.add(*inverse_t, out=difference), value=-1)
        return loss, s.view(len(student[0]), -1)

    def _like(self, tile: Tensor) -> Tensor:
        """A buffer of the tile's shape; one at a time."""
        if self._buffer.numel() < tile.numel():
            self._buffer = tile.new_empty(tile.numel())
        return self._buffer[: tile.numel()].view(tile.shape)


def _values(pair: Pair) -> tuple[Tensor, Tensor]:
    """Rows `m C` and columns `n C`, whose product are the scores `m n`."""
    return pair[0].values, pair[1].values
