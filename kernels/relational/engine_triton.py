"""Triton twin of `engine_torch.py`.

Raw features stay in their own dtype: products of bfloat16 numbers are exact on tensor cores that add in
float32, and the rows' lengths are divided out afterwards, so bfloat16 features cost no precision in the
scores. (An L1 slope is a sign: with features rounded after normalisation, every score pair closer than the
rounding would have a random one.)

In comments: C student's channels, D teacher's channels, m x n the size of a tile, S = H W tokens of a frame,
k frames. Every tensor is contiguous; offsets into a tile stay below 2^31, since a tile has about 4096 x 4096
scores.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .engine_torch import DEVICE_TILE
from .features import EPS, Pair, Rows, lengths
from .tiles import Block, FrameWeight

SIDE, SIDE_WIDE = 128, 64
"""Side of the square one program computes: half-precision features, float32 features."""
DEPTH = 32
"""Channels a program loads at once."""
LINES = 16
"""Rows (or columns) of a tile that one program of the softmax and slope kernels takes."""
KEYS = 128
"""Scores along a line that these programs load at once."""


@triton.jit
def _dot(
    a,  # m C, any floating dtype
    b,  # n C, the same dtype
    m, n,
    rows, columns,  # SIDE indices each; those beyond m and n read zeros
    channels: tl.constexpr,  # C
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,  # convert to float32 first: Triton's interpreter needs it
) -> tl.tensor:  # fmt: skip
    """Products of rows of a with rows of b, SIDE x SIDE, added in float32."""
    total = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    step = tl.arange(0, DEPTH)
    for first in range(0, channels, DEPTH):
        c = first + step
        left_inside = (rows[:, None] < m) & (c[None, :] < channels)
        right_inside = (columns[None, :] < n) & (c[:, None] < channels)
        left = tl.load(a + rows[:, None] * channels + c[None, :], mask=left_inside, other=0.0)
        right = tl.load(b + columns[None, :] * channels + c[:, None], mask=right_inside, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        # tf32x3: float32 features keep float32's precision on tensor cores; half types ignore it.
        total += tl.dot(left, right, input_precision="tf32x3")
    return total


@triton.jit
def _scores_kernel(
    a, a_factor,  # m C features, and m float32 factors that bring each row to its length
    b, b_factor,  # n C, n
    out,  # m n float32, written
    m, n,
    channels: tl.constexpr,  # C
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
) -> None:  # fmt: skip
    """One square of the scores. Grid: m / SIDE, n / SIDE."""
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    score = _dot(a, b, m, n, rows, columns, channels, SIDE, DEPTH, WIDEN)
    score *= tl.load(a_factor + rows, mask=rows < m, other=0.0)[:, None]
    score *= tl.load(b_factor + columns, mask=columns < n, other=0.0)[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(out + rows[:, None] * n + columns[None, :], score, mask=inside)


@triton.jit
def _l1_kernel(
    s_rows, s_row_factor,  # student: m C features, m float32 factors
    s_columns, s_column_factor,  # n C, n
    t_rows, t_row_factor,  # teacher: m D, m
    t_columns, t_column_factor,  # n D, n
    slope,  # m n, written: derivative of the sum by the student's scores
    sums,  # one float32 a program, written; adding up in place would make the order, and the rounding, random
    m, n,
    row_frame, row_per_frame,  # frame of the tile's first row, and rows of the tile in one frame
    column_frame, column_per_frame,
    margin,  # distance that costs nothing
    rate,  # 1 / decay in frames; 0: no decay
    s_channels: tl.constexpr,  # C
    t_channels: tl.constexpr,  # D
    SAME: tl.constexpr,  # count pairs within a frame; otherwise pairs of different frames
    SIDE: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
) -> None:  # fmt: skip
    """One square: weighted distance of the two relations, its sum, and its slope.

    Grid: m / SIDE, n / SIDE.
    """
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    score_s = _dot(s_rows, s_columns, m, n, rows, columns, s_channels, SIDE, DEPTH, WIDEN)
    score_s *= tl.load(s_row_factor + rows, mask=rows < m, other=0.0)[:, None]
    score_s *= tl.load(s_column_factor + columns, mask=columns < n, other=0.0)[None, :]
    score_t = _dot(t_rows, t_columns, m, n, rows, columns, t_channels, SIDE, DEPTH, WIDEN)
    score_t *= tl.load(t_row_factor + rows, mask=rows < m, other=0.0)[:, None]
    score_t *= tl.load(t_column_factor + columns, mask=columns < n, other=0.0)[None, :]
    difference = score_s - score_t
    distance = tl.maximum(tl.abs(difference) - margin, 0.0)
    gap = (row_frame + rows // row_per_frame)[:, None] - (column_frame + columns // column_per_frame)[None, :]
    if SAME:
        weight = tl.where(gap == 0, 1.0, 0.0)
    else:
        weight = tl.where(gap == 0, 0.0, tl.exp(-rate * tl.abs(gap).to(tl.float32)))
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    sign = tl.where(difference > 0, 1.0, -1.0) * tl.where(distance > 0, weight, 0.0)
    tl.store(slope + rows[:, None] * n + columns[None, :], sign.to(slope.dtype.element_ty), mask=inside)
    total = tl.sum(tl.sum(tl.where(inside, distance * weight, 0.0), axis=1), axis=0)
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit
def _softmax_kernel(
    s, t,  # m n float32 scores of student and teacher
    log_s, log_t,  # lines k float32, written: log-sum-exp of each line over each frame
    divergence,  # lines k float32, written: KL(teacher || student)
    lines,  # m when read along the rows, n along the columns
    line_stride, key_stride,  # n, 1 along the rows; 1, n along the columns
    per_frame: tl.constexpr,  # S
    LINES: tl.constexpr, KEYS: tl.constexpr,
) -> None:  # fmt: skip
    """For some lines of a tile and one frame: both log-sum-exps and the KL, in one pass.

    Grid: lines / LINES, k.
    """
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    frame = tl.program_id(1)
    zero = tl.zeros((LINES,), dtype=tl.float32)
    top_s, top_t = zero - float("inf"), zero - float("inf")
    sum_s, sum_t, cross = zero, zero, zero
    for first in range(0, per_frame, KEYS):
        key = first + tl.arange(0, KEYS)
        inside = (line[:, None] < lines) & (key[None, :] < per_frame)
        at = line[:, None] * line_stride + (frame * per_frame + key)[None, :] * key_stride
        score_s = tl.load(s + at, mask=inside, other=-1e30)  # finite: -inf less -inf is nan
        score_t = tl.load(t + at, mask=inside, other=-1e30)
        new_s = tl.maximum(top_s, tl.max(score_s, axis=1))
        new_t = tl.maximum(top_t, tl.max(score_t, axis=1))
        power_t = tl.exp(score_t - new_t[:, None])
        shrink = tl.exp(top_t - new_t)  # what was added so far was taken relative to the old maximum
        sum_s = sum_s * tl.exp(top_s - new_s) + tl.sum(tl.exp(score_s - new_s[:, None]), axis=1)
        sum_t = sum_t * shrink + tl.sum(power_t, axis=1)
        cross = cross * shrink + tl.sum(tl.where(inside, power_t * (score_t - score_s), 0.0), axis=1)
        top_s, top_t = new_s, new_t
    at = line * tl.num_programs(1) + frame
    tl.store(log_s + at, top_s + tl.log(sum_s), mask=line < lines)
    tl.store(log_t + at, top_t + tl.log(sum_t), mask=line < lines)
    kl = cross / sum_t + (top_s - top_t) + (tl.log(sum_s) - tl.log(sum_t))
    tl.store(divergence + at, kl, mask=line < lines)


@triton.jit
def _slope_kernel(
    s, t,  # m n float32 scores of student and teacher
    slope,  # m n, written
    row_log_s, row_log_t,  # m n/S float32: log-sum-exps of each row over each frame of the columns
    column_log_s, column_log_t,  # n m/S: the same along the columns; read where COLUMNS alone
    m, n,
    per_frame,  # S
    COLUMNS: tl.constexpr,
    LINES: tl.constexpr, KEYS: tl.constexpr,
) -> None:  # fmt: skip
    """P_S - P_T by rows (TSA eq 10), and by columns too where COLUMNS. Grid: m / LINES, n / KEYS."""
    row = tl.program_id(0) * LINES + tl.arange(0, LINES)
    column = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    inside = (row[:, None] < m) & (column[None, :] < n)
    score_s = tl.load(s + row[:, None] * n + column[None, :], mask=inside, other=0.0)
    score_t = tl.load(t + row[:, None] * n + column[None, :], mask=inside, other=0.0)
    at = row[:, None] * (n // per_frame) + (column // per_frame)[None, :]
    result = tl.exp(score_s - tl.load(row_log_s + at, mask=inside, other=0.0))
    result -= tl.exp(score_t - tl.load(row_log_t + at, mask=inside, other=0.0))
    if COLUMNS:
        at = column[None, :] * (m // per_frame) + (row // per_frame)[:, None]
        result += tl.exp(score_s - tl.load(column_log_s + at, mask=inside, other=0.0))
        result -= tl.exp(score_t - tl.load(column_log_t + at, mask=inside, other=0.0))
    tl.store(slope + row[:, None] * n + column[None, :], result.to(slope.dtype.element_ty), mask=inside)


class TritonEngine:
    """See `tiled.Engine`. float32, float16 and bfloat16 features; slopes are bfloat16 for the half types.

    student, teacher: the features, whose dtypes decide; tile: side of a tile in tokens; side: of the square
    that one program computes, by default the one that fits the dtypes.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, tile: int = DEVICE_TILE, side: int | None = None
    ) -> None:
        self.tile = tile
        self.slope_dtype = torch.float32 if student.dtype == torch.float32 else torch.bfloat16
        wide = torch.float32 in (student.dtype, teacher.dtype)
        # float32 takes smaller squares: three TF32 products at a time spill registers on larger ones.
        side = side or (SIDE_WIDE if wide else SIDE)
        # What every kernel that multiplies is launched with; stages are loads in flight.
        self.square = {"SIDE": side, "DEPTH": DEPTH, "num_warps": 8, "num_stages": 2 if wide else 3}
        # The interpreter multiplies bfloat16 numbers as if they were integers.
        self.square["WIDEN"] = os.environ.get("TRITON_INTERPRET") == "1"

    def rows(self, x: Tensor, length: float = 1.0) -> Rows:
        """The raw features and the factor that brings each row to `length`."""
        return Rows(x.contiguous(), (length / lengths(x, torch.float32).clamp_min(EPS)).squeeze(-1))

    def takes_both(self, per_frame: int, temperature: float) -> bool:
        """Wherever a tile holds whole frames: every line keeps its own maximum, so any temperature does."""
        return per_frame <= self.tile

    def add_product(self, into: Tensor, slope: Tensor, rows: Rows) -> None:
        """into += slope times the rows, added up in float32 within the product."""
        values = (rows.values * rows.factor[:, None]).to(slope.dtype)
        if slope.dtype == into.dtype:
            into.addmm_(slope, values)
        else:
            into.add_(torch.mm(slope, values))

    def relation_l1(
        self, student: Pair, teacher: Pair, place: tuple[Block, Block], weight: FrameWeight, margin: float
    ) -> tuple[Tensor, Tensor]:
        """One launch: scores, distance, sum and slope."""
        m, n = len(student[0]), len(student[1])
        grid = self._squares(m, n)
        slope = torch.empty((m, n), dtype=self.slope_dtype, device=student[0].values.device)
        sums = torch.empty(grid, dtype=torch.float32, device=slope.device)
        rows, columns = place
        _l1_kernel[grid](
            *_pointers(student), *_pointers(teacher), slope, sums, m, n,
            row_frame=rows.frames.start, row_per_frame=rows.size // len(rows.frames),
            column_frame=columns.frames.start, column_per_frame=columns.size // len(columns.frames),
            margin=margin, rate=0.0 if weight.decay is None else 1 / weight.decay, SAME=weight.same,
            s_channels=student[0].values.shape[1], t_channels=teacher[0].values.shape[1], **self.square,
        )  # fmt: skip
        return sums.sum(), slope

    def tempered_rows(
        self, student: Pair, teacher: Pair, per_frame: int, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scores, softmax statistics by rows, slope."""
        s, t = self._scores(student), self._scores(teacher)
        log_s, log_t, loss = _softmax(s, t, per_frame, by_columns=False)
        return loss, self._slope(s, t, per_frame, (log_s, log_t, log_s, log_t), False) if want_slope else None

    def tempered_both(
        self, student: Pair, teacher: Pair, per_frame: int, diagonal: bool, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scores, softmax statistics by rows and by columns, slope."""
        s, t = self._scores(student), self._scores(teacher)
        rows_s, rows_t, loss = _softmax(s, t, per_frame, by_columns=False)
        columns_s, columns_t, more = _softmax(s, t, per_frame, by_columns=True)
        total = loss if diagonal else loss + more
        logs = rows_s, rows_t, columns_s, columns_t
        return total, self._slope(s, t, per_frame, logs, True) if want_slope else None

    def _scores(self, pair: Pair) -> Tensor:
        """Rows times columns, `m n` float32."""
        (m, channels), n = pair[0].values.shape, len(pair[1])
        out = torch.empty((m, n), dtype=torch.float32, device=pair[0].values.device)
        _scores_kernel[self._squares(m, n)](*_pointers(pair), out, m, n, channels=channels, **self.square)
        return out

    def _squares(self, m: int, n: int) -> tuple[int, int]:
        """The grid of programs that covers a tile."""
        return triton.cdiv(m, self.square["SIDE"]), triton.cdiv(n, self.square["SIDE"])

    def _slope(
        self,
        s: Tensor,  # m n
        t: Tensor,  # m n
        per_frame: int,
        logs: tuple[Tensor, Tensor, Tensor, Tensor],  # of rows (student, teacher), then of columns
        columns: bool,  # False: the last two are not read
    ) -> Tensor:
        m, n = s.shape
        slope = torch.empty((m, n), dtype=self.slope_dtype, device=s.device)
        grid = (triton.cdiv(m, LINES), triton.cdiv(n, KEYS))
        _slope_kernel[grid](s, t, slope, *logs, m, n, per_frame, COLUMNS=columns, LINES=LINES, KEYS=KEYS)
        return slope


def _pointers(pair: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows `m C` and their factors `m`, columns `n C` and their factors `n`: the kernels' first arguments."""
    return pair[0].values, pair[0].factor, pair[1].values, pair[1].factor


def _softmax(s: Tensor, t: Tensor, per_frame: int, *, by_columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of student and teacher `lines frames` and the summed KL, along rows or along columns."""
    m, n = s.shape
    lines, keys, strides = (n, m, (1, n)) if by_columns else (m, n, (n, 1))
    frames = keys // per_frame
    log_s, log_t, divergence = torch.empty((3, lines, frames), dtype=torch.float32, device=s.device)
    grid = (triton.cdiv(lines, LINES), frames)
    shape = {"per_frame": per_frame, "LINES": LINES, "KEYS": KEYS}
    _softmax_kernel[grid](s, t, log_s, log_t, divergence, lines, *strides, **shape)
    return log_s, log_t, divergence.sum()
