"""Relational losses without the N x N matrix: tempered KL (TSA) and relation L1 (TRD and its soft kin).

One family: a student's tokens should relate to one another as a frozen teacher's do. Features are `B N C`,
tokens in frame-major order over grid = (F, H, W), any floating dtype, any scale: they are L2-normalised here.
Values are float32 (float64 for float64 features); gradients flow to the student alone and can be taken once,
not twice. Nothing waits for the device, but for a boolean `queries`. Which implementation runs is
`backend.choose`'s decision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..autograd import accumulate_dtype, with_gradient
from ..backend import choose
from . import tiled
from .engine_torch import TorchEngine
from .tiled import Engine, Grid

Computed = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]
"""Values of a loss and their gradients by the student, see `autograd.Compute`."""


def tempered_kl(
    student: Tensor, teacher: Tensor, grid: Grid, temperature: float = 0.1, queries: Tensor | None = None
) -> Tensor:
    """TSA (eqs 8 and 9), and M-TSA (eq 13) where `queries` are given.

    For a query token i and a frame f, P[i,f] is the softmax of cosine / temperature over the frame's H W
    tokens. The loss is the mean of KL(P_teacher || P_student) over batch, queries and frames; its gradient is
    eq 10.

    student, teacher: `B N C`; their channels may differ. queries: boolean `B N` or `B F H W`, or token
    indices `B Q` or `Q` (no wait for the device); None takes every token. Samples weigh the same however many
    queries each has.
    Raises ValueError for features that do not fit the grid, a temperature that is not positive, or a sample
    without queries.
    """
    check_tokens(student, teacher, grid)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive (the paper's best is 0.1).")
    chosen = query_indices(queries, student, grid)
    teacher = teacher.detach()

    def compute(x: Tensor, want_gradient: bool) -> Computed:
        return tiled.tempered_kl(x, teacher, grid, temperature, chosen, want_gradient, _engine(x, teacher))

    return with_gradient(student, compute)[0]


def relation_l1(
    student: Tensor, teacher: Tensor, grid: Grid, decay: float | None = None, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Token relation distillation: (spatial, temporal) means of relu(|R_student - R_teacher| - margin).

    R are the cosines of all pairs of tokens. spatial: mean over frames and the H W x H W pairs of a frame.
    temporal: sum over pairs of different frames weighted by exp(-distance / decay), or by 1 where decay is
    None, divided by N^2. MoAlign (arXiv 2510.19022, eq 8) is spatial + temporal with decay 10; VideoREPA's
    single mean is spatial / F + temporal with decay None and margin 0.1. student, teacher: `B N C`; their
    channels may differ.
    Raises ValueError for features that do not fit the grid, a decay that is not positive, or a negative
    margin.
    """
    check_tokens(student, teacher, grid)
    if decay is not None and not decay > 0:
        raise ValueError(f"decay is {decay}; it must be a positive number of frames, or None for no decay.")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin is {margin}; it must be zero or positive.")
    teacher = teacher.detach()

    def compute(x: Tensor, want_gradient: bool) -> Computed:
        return tiled.relation_l1(x, teacher, grid, decay, margin, want_gradient, _engine(x, teacher))

    spatial, temporal = with_gradient(student, compute)
    return spatial, temporal


def query_indices(queries: Tensor | None, student: Tensor, grid: Grid) -> list[Tensor] | None:
    """One int64 index tensor a sample from a mask or from indices; None stays None.

    Raises ValueError for another shape.
    """
    if queries is None:
        return None
    batch, tokens, _ = student.shape
    shape = tuple(queries.shape)
    if queries.dtype == torch.bool:
        if shape not in ((batch, tokens), (batch, *grid)):
            raise ValueError(
                f"queries is a mask of shape {shape}; it must be {(batch, tokens)} or {(batch, *grid)}."
            )
        chosen = [mask.nonzero().squeeze(1).to(student.device) for mask in queries.reshape(batch, tokens)]
    elif queries.is_floating_point() or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != batch):
        needed = f"a boolean mask or token indices ({batch}, Q)"
        raise ValueError(f"queries is {queries.dtype} of shape {shape}; it must be {needed}.")
    else:
        chosen = list(queries.to(student.device, torch.int64).expand(batch, -1))
    empty = [sample for sample, index in enumerate(chosen) if index.numel() == 0]
    if empty:
        raise ValueError(f"sample {empty[0]} has no query token; keep at least one.")
    return chosen


def check_tokens(student: Tensor, teacher: Tensor, grid: Grid) -> None:
    """Raises ValueError unless both are floating `B N C` on one device with one B and N = F H W."""
    check_features(student, teacher)
    if len(grid) != 3 or any(int(size) != size or size < 1 for size in grid):
        raise ValueError(
            f"grid is {tuple(grid)}; it must be three positive whole numbers: frames, height, width."
        )
    if student.shape[:2] != teacher.shape[:2]:
        ours, theirs = tuple(student.shape[:2]), tuple(teacher.shape[:2])
        raise ValueError(f"student has {ours} samples and tokens, teacher {theirs}; they must be equal.")
    if student.shape[1] != math.prod(grid):
        raise ValueError(
            f"grid {tuple(grid)} has {math.prod(grid)} tokens, the features have {student.shape[1]}."
        )


def check_features(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless both are non-empty floating `B N C` on one device."""
    for name, features in (("student", student), ("teacher", teacher)):
        if features.ndim != 3 or features.numel() == 0:
            raise ValueError(
                f"{name} has shape {tuple(features.shape)}; it must be B N C with no empty dimension."
            )
        if not features.is_floating_point():
            raise ValueError(f"{name} has dtype {features.dtype}; features must be floating-point.")
    if student.device != teacher.device:
        raise ValueError(
            f"student is on {student.device}, teacher on {teacher.device}; they must be on one device."
        )


def _engine(student: Tensor, teacher: Tensor) -> Engine:
    if choose(student) == "triton":
        from .engine_triton import TritonEngine

        return TritonEngine(student, teacher)
    return TorchEngine(student, accumulate_dtype(student, teacher))
