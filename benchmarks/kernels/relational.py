"""Relational losses: ours against the definition and against VideoREPA's formula. `__main__.py` runs it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from latent_physics.kernels import relational
from latent_physics.kernels.relational import reference
from torch import Tensor

from .measure import Kernel, Step

SHAPES = tuple({"grid": list(grid), "channels": 768} for grid in ((13, 10, 15), (24, 10, 15), (13, 20, 30)))
LARGER = ((13, 8, 10), (13, 12, 13), (13, 16, 20), (13, 20, 30), (13, 30, 40), (21, 30, 52))
GROWTH = tuple({"grid": list(grid), "channels": 768} for grid in LARGER)
MARGIN = 0.1


def videorepa(student: Tensor, teacher: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """VideoREPA's token relation distillation the way its code builds it: each frame's tokens against all
    tokens.
    """
    batch, _, channels = student.shape
    frames, per_frame = grid[0], grid[1] * grid[2]

    def relation(features: Tensor) -> Tensor:
        unit = F.normalize(features, dim=-1)
        return torch.matmul(unit.view(batch, frames, per_frame, channels), unit.transpose(1, 2).unsqueeze(1))

    return F.relu((relation(student) - relation(teacher)).abs() - MARGIN).mean()


def every_fifth(batch: int, tokens: int, device: str) -> Tensor:
    """A fifth of the tokens as queries, as M-TSA's mask keeps."""
    return torch.arange(0, tokens, 5, device=device).expand(batch, -1)


def definition_of_queries(
    student: Tensor, teacher: Tensor, grid: tuple[int, int, int], temperature: float = 0.1
) -> Tensor:
    """M-TSA by its definition for equally many queries a sample: rows of the relation, then softmax."""
    batch, tokens, _ = student.shape
    index = every_fifth(batch, tokens, student.device)

    def log_correspondence(features: Tensor) -> Tensor:
        unit = F.normalize(features, dim=-1)
        scores = unit[:, index[0]] @ unit.transpose(1, 2)
        return torch.log_softmax(scores.view(batch, -1, grid[0], grid[1] * grid[2]) / temperature, dim=-1)

    log_s, log_t = log_correspondence(student), log_correspondence(teacher)
    return (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean()


LOSSES: dict[str, dict[str, Any]] = {
    "TRD": {
        "ours": lambda s, t, g: sum(relational.relation_l1(s, t, g, None, MARGIN)),
        "definition": lambda s, t, g: sum(reference.relation_l1(s, t, g, None, MARGIN)),
    },
    "soft TRD": {
        "ours": lambda s, t, g: sum(relational.relation_l1(s, t, g, 10.0)),
        "definition": lambda s, t, g: sum(reference.relation_l1(s, t, g, 10.0)),
    },
    "tempered KL": {"ours": relational.tempered_kl, "definition": reference.tempered_kl},
    "tempered KL, 20 % of the queries": {
        "ours": lambda s, t, g: relational.tempered_kl(
            s, t, g, queries=every_fifth(s.shape[0], s.shape[1], s.device)
        ),
        "definition": definition_of_queries,
    },
}


def prepare(name: str, variant: str, device: str, grid: list[int], channels: int) -> Step:
    """Random features; bfloat16 on a GPU, float32 on a CPU."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, math.prod(grid), channels)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    student, teacher = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    student.requires_grad_()
    loss = (
        videorepa if "VideoREPA" in variant else LOSSES[name]["ours" if variant == "ours" else "definition"]
    )
    if "compiled" in variant:
        loss = torch.compile(loss)

    def step() -> Tensor:
        student.grad = None
        value = loss(student, teacher, tuple(grid))
        value.backward()
        return value.detach()

    return step


def flops(name: str, grid: list[int], channels: int) -> float:
    """Two relations and one product with the slopes; symmetry halves the relations where every token is a
    query.
    """
    tokens = math.prod(grid)
    if "20 %" in name:
        return 4 * 2 * (tokens / 5) * tokens * channels
    return 2 * 2 * tokens**2 * channels


def moved(name: str, grid: list[int], channels: int) -> float:
    """Both features are read, the gradient is written."""
    return 3 * 4 * math.prod(grid) * channels


def kernel(name: str, what: str) -> Kernel:
    """The benchmark of one loss."""
    compiled = ("definition compiled",) if torch.cuda.is_available() else ()
    return Kernel(
        name=name,
        what=what,
        prepare=functools.partial(prepare, name),
        shapes=SHAPES,
        variants=("ours", "definition", "VideoREPA's formula", *compiled),
        flops=functools.partial(flops, name),
        bytes=functools.partial(moved, name),
    )


KERNELS = (
    kernel("TRD", "L1 between relations, margin 0.1 (VideoREPA)"),
    kernel("soft TRD", "L1 between relations, decay 10 frames (MoAlign)"),
    kernel("tempered KL", "KL between correspondences at temperature 0.1, every token a query (TSA)"),
    kernel("tempered KL, 20 % of the queries", "the same for a fifth of the tokens (M-TSA)"),
)
