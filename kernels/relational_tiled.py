"""The relational losses in O(N C) memory: tiles of the relation are formed, used and forgotten.

Each function here computes a loss over one batch and, on request, its gradient with respect to the student's raw
features in the same pass. Both relations are symmetric, so only tiles on and above the diagonal are formed where every
token is a query. The teacher is a constant throughout. What is done to one tile is an engine's business
(`relational_engine.py` in plain torch, `relational_triton.py`); which tiles there are is decided here.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .features import Pair, Rows, through_normalisation_
from .precomputed import accumulate_dtype
from .tiles import Block, FrameWeight, blocks, parts_of_frames, whole_frames

Grid = tuple[int, int, int]


class Engine(Protocol):
    """The work on one tile, whose scores are the products of its rows and columns; `student` and `teacher` hold both."""

    tile: int
    """Tokens along a tile's side."""

    def rows(self, x: Tensor, length: float = 1.0) -> Rows:
        """Raw features `N C` brought to one length."""
        ...

    def relation_l1(
        self, student: Pair, teacher: Pair, place: tuple[Block, Block], weight: FrameWeight, margin: float
    ) -> tuple[Tensor, Tensor]:
        """Sum of weight * relu(|student's score - teacher's| - margin), and its derivative by the student's scores."""
        ...

    def tempered_rows(
        self, student: Pair, teacher: Pair, per_frame: int, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Sum of the KLs of all rows, one for each frame of the columns, and its derivative by the student's scores."""
        ...

    def tempered_both(
        self, student: Pair, teacher: Pair, per_frame: int, diagonal: bool, want_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `tempered_rows`, and the same for the columns over the frames of the rows.

        On the diagonal the columns are the rows again: the sum leaves them out, the derivative does not.
        """
        ...

    def takes_both(self, per_frame: int, temperature: float) -> bool:
        """Whether `tempered_both` serves this size and temperature."""
        ...

    def add_product(self, into: Tensor, slope: Tensor, rows: Rows) -> None:
        """into += slope times the rows."""
        ...


def relation_l1(
    student: Tensor, teacher: Tensor, grid: Grid, decay: float | None, margin: float, want_gradient: bool, engine: Engine
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """(spatial, temporal) and their gradients, `B N C` in the accumulating dtype. See `relational.relation_l1`."""
    dtype = accumulate_dtype(student, teacher)
    frames, per_frame = grid[0], grid[1] * grid[2]
    batch, tokens, _ = student.shape
    tasks = (
        (FrameWeight(same=True), parts_of_frames(frames, per_frame, engine.tile), 1 / (batch * frames * per_frame**2)),
        (FrameWeight(same=False, decay=decay), blocks(frames, per_frame, engine.tile), 1 / (batch * tokens**2)),
    )
    values = [torch.zeros((), dtype=dtype, device=student.device) for _ in tasks]
    needed = (want_gradient, want_gradient and frames > 1)
    gradients = [torch.zeros(student.shape, dtype=dtype, device=student.device) if need else None for need in needed]
    for sample in range(batch):
        s, t = engine.rows(student[sample]), engine.rows(teacher[sample])
        for index, (weight, parts, scale) in enumerate(tasks):
            into = None if gradients[index] is None else gradients[index][sample]
            _add_l1(engine, s, t, parts, weight, margin, scale, values[index], into)
            if into is not None:
                through_normalisation_(into, student[sample], 2 * scale)  # 2: a token is a row of the relation and a column
    return tuple(values), tuple(gradients)


def _add_l1(
    engine: Engine,
    s: Rows,
    t: Rows,
    parts: list[Block],
    weight: FrameWeight,
    margin: float,
    scale: float,
    value: Tensor,
    into: Tensor | None,
) -> None:
    """Adds `scale` times the sum over all pairs to `value`, and half the sum's gradient with respect to s to `into`."""
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            if weight.between(rows, columns) == 0:
                continue
            a, b = rows.tokens, columns.tokens
            loss, slope = engine.relation_l1((s[a], s[b]), (t[a], t[b]), (rows, columns), weight, margin)
            value.add_(loss, alpha=scale if rows is columns else 2 * scale)
            _add_both(engine, into, slope, s, rows, columns)


def tempered_kl(
    student: Tensor,
    teacher: Tensor,
    grid: Grid,
    temperature: float,
    queries: list[Tensor] | None,
    want_gradient: bool,
    engine: Engine,
) -> tuple[tuple[Tensor], tuple[Tensor | None]]:
    """The loss and its gradient, `B N C`. `queries` holds one index tensor a sample. See `relational.tempered_kl`."""
    dtype = accumulate_dtype(student, teacher)
    frames, per_frame = grid[0], grid[1] * grid[2]
    batch, tokens, _ = student.shape
    length = temperature**-0.5  # so that the product of two rows is their cosine over the temperature
    value = torch.zeros((), dtype=dtype, device=student.device)
    gradient = torch.zeros(student.shape, dtype=dtype, device=student.device) if want_gradient else None
    for sample in range(batch):
        s, t = engine.rows(student[sample], length), engine.rows(teacher[sample], length)
        into = gradient[sample] if want_gradient else None
        chosen = None if queries is None else queries[sample]
        scale = 1 / (batch * frames * (tokens if chosen is None else chosen.numel()))
        keys = whole_frames(frames, per_frame, engine.tile)
        if chosen is None and engine.takes_both(per_frame, temperature):
            _add_kl_all(engine, s, t, keys, per_frame, scale, value, into)
        else:
            _add_kl_queries(engine, s, t, chosen, keys, per_frame, scale, value, into)
        if want_gradient:
            through_normalisation_(into, student[sample], scale * length)
    return (value,), (gradient,)


def _add_kl_all(
    engine: Engine,
    s: Rows,
    t: Rows,
    parts: list[Block],
    per_frame: int,
    scale: float,
    value: Tensor,
    into: Tensor | None,
) -> None:
    """Every token is a query: half the tiles, each read along its rows and along its columns."""
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            a, b = rows.tokens, columns.tokens
            pairs = (s[a], s[b]), (t[a], t[b])
            loss, slope = engine.tempered_both(*pairs, per_frame, rows is columns, into is not None)
            value.add_(loss, alpha=scale)
            _add_both(engine, into, slope, s, rows, columns)


def _add_both(engine: Engine, into: Tensor | None, slope: Tensor | None, s: Rows, rows: Block, columns: Block) -> None:
    """A tile's share of the gradient for its rows and, off the diagonal, for its columns."""
    if into is None:
        return
    engine.add_product(into[rows.tokens], slope, s[columns.tokens])
    if rows is not columns:
        engine.add_product(into[columns.tokens], slope.t(), s[rows.tokens])


def _add_kl_queries(
    engine: Engine,
    s: Rows,
    t: Rows,
    chosen: Tensor | None,
    keys: list[Block],
    per_frame: int,
    scale: float,
    value: Tensor,
    into: Tensor | None,
) -> None:
    """Some tokens are queries (all of them where `chosen` is None): tiles of queries times whole frames."""
    for index in _query_pieces(engine, chosen, len(s), max(block.size for block in keys)):
        query_s, query_t = s[index], t[index]
        query_gradient = None if into is None else into.new_zeros(len(query_s), into.shape[1])
        for block in keys:
            key_s, key_t = s[block.tokens], t[block.tokens]
            loss, slope = engine.tempered_rows((query_s, key_s), (query_t, key_t), per_frame, into is not None)
            value.add_(loss, alpha=scale)
            if into is not None:
                engine.add_product(query_gradient, slope, key_s)
                engine.add_product(into[block.tokens], slope.t(), query_s)
        if into is not None and isinstance(index, slice):
            into[index] += query_gradient
        elif into is not None:
            into.index_add_(0, index, query_gradient)


def _query_pieces(engine: Engine, chosen: Tensor | None, tokens: int, widest: int) -> list[slice] | list[Tensor]:
    """The queries in pieces such that a tile stays near its size although its columns must hold whole frames."""
    count = tokens if chosen is None else chosen.numel()
    height = min(engine.tile, max(64, engine.tile**2 // widest))
    pieces = -(-count // height)
    parts = [slice(count * piece // pieces, count * (piece + 1) // pieces) for piece in range(pieces)]
    return parts if chosen is None else [chosen[part] for part in parts]
