"""The relational losses in O(N C) memory: tiles of the relation are formed, used and forgotten.

Each function here computes a loss over one batch and, on request, its gradient with respect to the student's
raw features in the same pass. Both relations are symmetric, so only tiles on and above the diagonal are
formed where every token is a query. The teacher is a constant throughout. What is done to one tile is an
engine's business (`engine_torch.py`, `engine_triton.py`); which tiles there are is decided here; who runs is
decided in `losses.py`.

Wide: float32, or float64 if a feature is. In comments: N tokens, C student's channels, D teacher's channels,
S = H W tokens of a frame, m x n the size of a tile.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations_with_replacement
from typing import Protocol

import torch
from torch import Tensor

from ..autograd import accumulate_dtype
from .features import Pair, Rows, through_normalisation_
from .tiles import Block, FrameWeight, blocks, parts_of_frames, whole_frames

Grid = tuple[int, int, int]
"""(F, H, W) of the tokens, which are in frame-major order."""


class Engine(Protocol):
    """The work on one tile.

    `student` and `teacher` are its rows and columns, whose products are its scores. A slope is the derivative
    of the tile's sum by the student's scores, `m n`.
    """

    tile: int
    """Tokens along a tile's side."""

    def rows(self, x: Tensor, length: float = 1.0) -> Rows:
        """Raw features `N C` brought to one length."""
        ...

    def relation_l1(
        self, student: Pair, teacher: Pair, place: tuple[Block, Block], weight: FrameWeight, margin: float
    ) -> tuple[Tensor, Tensor]:
        """Sum of weight * relu(|student's score - teacher's| - margin), and its slope."""
        ...

    def tempered_rows(
        self, student: Pair, teacher: Pair, per_frame: int, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Sum of the KLs of all rows, one for each frame of the columns, and its slope."""
        ...

    def tempered_both(
        self, student: Pair, teacher: Pair, per_frame: int, diagonal: bool, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `tempered_rows`, and the same for the columns over the frames of the rows.

        On the diagonal the columns are the rows again: the sum leaves them out, the slope does not.
        """
        ...

    def takes_both(self, per_frame: int, temperature: float) -> bool:
        """Whether `tempered_both` serves this size and temperature."""
        ...

    def add_product(self, into: Tensor, slope: Tensor, rows: Rows) -> None:
        """into `m C` += slope `m n` times the rows `n C`."""
        ...


def relation_l1(
    student: Tensor,  # B N C
    teacher: Tensor,  # B N D
    grid: Grid,
    decay: float | None,  # frames; None: all pairs of different frames weigh the same
    margin: float,
    want_gradient: bool,
    engine: Engine,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """(spatial, temporal) and their gradients, `B N C`, wide. See `losses.relation_l1`."""
    dtype = accumulate_dtype(student, teacher)
    frames, per_frame = grid[0], grid[1] * grid[2]
    batch, tokens, _ = student.shape
    within, across = FrameWeight(same=True), FrameWeight(same=False, decay=decay)
    # Which pairs count and how much, the tiles that hold them, and the factor that makes their sum a mean.
    tasks = (
        (within, parts_of_frames(frames, per_frame, engine.tile), 1 / (batch * frames * per_frame**2)),
        (across, blocks(frames, per_frame, engine.tile), 1 / (batch * tokens**2)),
    )
    new = partial(torch.zeros, dtype=dtype, device=student.device)
    values = [new(()) for _ in tasks]
    needed = (want_gradient, want_gradient and frames > 1)
    gradients = [new(student.shape) if need else None for need in needed]
    for sample in range(batch):
        s, t = engine.rows(student[sample]), engine.rows(teacher[sample])
        for index, (weight, parts, scale) in enumerate(tasks):
            into = None if gradients[index] is None else gradients[index][sample]
            _add_l1(engine, s, t, parts, weight, margin, scale, values[index], into)
            if into is not None:  # 2: a token is a row of the relation and a column
                through_normalisation_(into, student[sample], 2 * scale)
    return tuple(values), tuple(gradients)


def _add_l1(
    engine: Engine,
    s: Rows,  # student, N C
    t: Rows,  # teacher, N D
    parts: list[Block],
    weight: FrameWeight,
    margin: float,
    scale: float,
    value: Tensor,  # scalar, grows by `scale` times the sum over all pairs
    into: Tensor | None,  # N C, grows by half the sum's gradient by s; None: no gradient is wanted
) -> None:
    """The L1 distance of two relations, tile by tile."""
    for rows, columns in combinations_with_replacement(parts, 2):
        if weight.between(rows, columns) == 0:
            continue
        a, b = rows.tokens, columns.tokens
        loss, slope = engine.relation_l1((s[a], s[b]), (t[a], t[b]), (rows, columns), weight, margin)
        # A tile off the diagonal stands for its mirror image as well.
        value.add_(loss, alpha=scale if rows is columns else 2 * scale)
        _add_both(engine, into, slope, s, rows, columns)


def tempered_kl(
    student: Tensor,  # B N C
    teacher: Tensor,  # B N D
    grid: Grid,
    temperature: float,
    queries: list[Tensor] | None,  # token indices, one int64 tensor a sample; None: every token
    want_gradient: bool,
    engine: Engine,
) -> tuple[tuple[Tensor], tuple[Tensor | None]]:
    """The loss and its gradient, `B N C`, wide. See `losses.tempered_kl`."""
    dtype = accumulate_dtype(student, teacher)
    frames, per_frame = grid[0], grid[1] * grid[2]
    batch, tokens, _ = student.shape
    length = temperature**-0.5  # so that the product of two rows is their cosine over the temperature
    value = torch.zeros((), dtype=dtype, device=student.device)
    gradient = torch.zeros(student.shape, dtype=dtype, device=student.device) if want_gradient else None
    keys = whole_frames(frames, per_frame, engine.tile)  # a softmax runs over a whole frame
    for sample in range(batch):
        s, t = engine.rows(student[sample], length), engine.rows(teacher[sample], length)
        into = gradient[sample] if want_gradient else None
        chosen = None if queries is None else queries[sample]
        scale = 1 / (batch * frames * (tokens if chosen is None else chosen.numel()))
        if chosen is None and engine.takes_both(per_frame, temperature):
            for rows, columns in combinations_with_replacement(keys, 2):
                a, b = rows.tokens, columns.tokens
                pairs = (s[a], s[b]), (t[a], t[b])
                loss, slope = engine.tempered_both(*pairs, per_frame, rows is columns, want_gradient)
                value.add_(loss, alpha=scale)
                _add_both(engine, into, slope, s, rows, columns)
        else:
            _add_kl_queries(engine, s, t, chosen, keys, per_frame, scale, value, into)
        if want_gradient:
            through_normalisation_(into, student[sample], scale * length)
    return (value,), (gradient,)


def _add_both(
    engine: Engine,
    into: Tensor | None,  # N C
    slope: Tensor | None,  # m n
    s: Rows,  # student, N C
    rows: Block,
    columns: Block,
) -> None:
    """A tile's share of the gradient for its rows and, off the diagonal, for its columns."""
    if into is None:
        return
    engine.add_product(into[rows.tokens], slope, s[columns.tokens])
    if rows is not columns:
        engine.add_product(into[columns.tokens], slope.t(), s[rows.tokens])


def _add_kl_queries(
    engine: Engine,
    s: Rows,  # student, N C
    t: Rows,  # teacher, N D
    chosen: Tensor | None,  # token indices; None: every token
    keys: list[Block],  # whole frames
    per_frame: int,
    scale: float,
    value: Tensor,  # scalar, grows by `scale` times the sum
    into: Tensor | None,  # N C, grows by the sum's gradient by s
) -> None:
    """The KL of some queries: tiles of queries times whole frames, each read along its rows."""
    for index in _query_pieces(engine, chosen, len(s), max(block.size for block in keys)):
        query_s, query_t = s[index], t[index]
        query_gradient = None if into is None else into.new_zeros(len(query_s), into.shape[1])
        for block in keys:
            key_s, key_t = s[block.tokens], t[block.tokens]
            pairs = (query_s, key_s), (query_t, key_t)
            loss, slope = engine.tempered_rows(*pairs, per_frame, into is not None)
            value.add_(loss, alpha=scale)
            if into is not None:
                engine.add_product(query_gradient, slope, key_s)
                engine.add_product(into[block.tokens], slope.t(), query_s)
        if into is not None and isinstance(index, slice):
            into[index] += query_gradient
        elif into is not None:  # a token may be a query twice, which `into[index] +=` would count once
            into.index_add_(0, index, query_gradient)


def _query_pieces(
    engine: Engine,
    chosen: Tensor | None,
    tokens: int,
    widest: int,  # tokens of the largest block of keys
) -> list[slice] | list[Tensor]:
    """The queries in pieces, so that a tile keeps its size although its columns hold whole frames."""
    count = tokens if chosen is None else chosen.numel()
    # At least 64 rows: a product of fewer wastes the processor, however wide a frame is.
    height = min(engine.tile, max(64, engine.tile**2 // widest))
    pieces = -(-count // height)
    parts = [slice(count * piece // pieces, count * (piece + 1) // pieces) for piece in range(pieces)]
    return parts if chosen is None else [chosen[part] for part in parts]
