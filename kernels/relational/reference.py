"""The relational losses by their definitions: every N x N matrix is formed, autograd does the rest.

For reading and for testing. `losses.py` computes the same numbers in O(N C) memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


def similarity(features: Tensor) -> Tensor:
    """R = E E^T of L2-normalised features (TSA eqs 6 and 7): `B N C` -> `B N N`."""
    unit = F.normalize(features, dim=-1, eps=EPS)
    return unit @ unit.transpose(-1, -2)


def tempered_kl(
    student: Tensor,
    teacher: Tensor,
    grid: tuple[int, int, int],
    temperature: float = 0.1,
    queries: Tensor | None = None,
) -> Tensor:
    """TSA's loss (Tempered Self-Similarity Alignment, eqs 8 and 9); of boolean `queries`, M-TSA's (eq 13)."""
    batch, tokens, _ = student.shape
    frames = grid[0]

    def log_correspondence(features: Tensor) -> Tensor:
        scores = similarity(features).view(batch, tokens, frames, -1) / temperature
        return torch.log_softmax(scores, dim=-1)

    log_s, log_t = log_correspondence(student), log_correspondence(teacher.detach())
    divergence = (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean(dim=-1)  # B N
    if queries is None:
        return divergence.mean()
    chosen = queries.reshape(batch, tokens).to(divergence.dtype)
    return ((divergence * chosen).sum(dim=1) / chosen.sum(dim=1)).mean()


def relation_l1(
    student: Tensor,
    teacher: Tensor,
    grid: tuple[int, int, int],
    decay: float | None = None,
    margin: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Token relation distillation: (spatial, temporal) of MoAlign (arXiv 2510.19022) eq 8, with a margin."""
    frames = grid[0]
    per_frame = grid[1] * grid[2]
    distance = F.relu((similarity(student) - similarity(teacher.detach())).abs() - margin)
    frame = torch.arange(frames, device=student.device).repeat_interleave(per_frame)
    gap = (frame[:, None] - frame[None, :]).abs()
    gap = gap.to(distance.dtype)
    weight = torch.ones_like(gap) if decay is None else torch.exp(-gap / decay)
    same = gap == 0
    spatial = distance[:, same].mean()
    temporal = (distance * weight.masked_fill(same, 0)).mean()
    return spatial, temporal
