"""LDO (latent dynamics optimisation): predictive dynamics alignment, the teacher's half.

The published description has no equations; this is our reading of it: what changes in the frozen world
model's forecast also changes, in step, inside the generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .relational import Grid, to_tokens, to_volume

TILE = 1024
"""Rows of the relation matrices that are formed at once."""


def increments(features: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Change from each frame to the next: `B N C` on (F, H, W) -> `B N' C` on (F - 1, H, W).

    Raises ValueError for one frame.
    """
    if grid[0] < 2:
        raise ValueError(f"dynamics need at least 2 feature frames, not {grid[0]}.")
    volume = to_volume(features, grid)
    return to_tokens(volume[:, :, 1:] - volume[:, :, :-1]), (grid[0] - 1, grid[1], grid[2])


def at_rate(changes: Tensor, first: int, per_token: int) -> tuple[Tensor, int]:
    """Changes between latent frames -> changes between tokens that span `per_token` of them: (`B C D' H W`,
    frame of tokens).

    changes: `B C D H W`, change d leading from latent frame `first + d` to the next, both counted without the
    clip's first one. Summed up they are the features themselves but for a constant; those are averaged over
    each token's latent frames and subtracted. The second value is the frame of tokens, counted with the first
    one, from which the first change leads.
    Raises ValueError where fewer than two tokens are covered.
    """
    features = torch.cat([torch.zeros_like(changes[:, :, :1]), changes.cumsum(dim=2)], dim=2)
    begin = (
        -(first + 1) % per_token
    )  # a token begins at a multiple of `per_token`, the clip's first latent frame included
    count = (features.shape[2] - begin) // per_token
    if count < 2:
        raise ValueError(
            f"{changes.shape[2]} changes cover {count} tokens of {per_token} latent frames; use longer clips."
        )
    features = features[:, :, begin : begin + count * per_token].unflatten(2, (count, per_token)).mean(dim=3)
    return features[:, :, 1:] - features[:, :, :-1], (first + 1 + begin) // per_token


def pda_loss(moved: Tensor, expected: Tensor, grid: Grid, decay: float | None = 10.0) -> Tensor:
    """Predictive dynamics alignment: the relations among the student's increments follow those among the
    expected ones. Scalar.

    moved: increments of the generator's projected tokens, `B N C`; expected: of the world model's forecast at
    the same places and times, `B N C'`, a constant. Both on `grid`, whose frames are steps in time of the
    slower of the two. R are cosines, within a step and across steps, as MoAlign compares them (its eqs 5-8):
    D_ij = |R_moved - R_expected|, and

        L = sum_same(w_i w_j D_ij) / sum_same(w_i w_j)
          + sum_other(w_i w_j exp(-|f_i - f_j| / decay) D_ij) / sum_all(w_i w_j).

    w_i = |expected_i|^2: most places stand still, and what they seem to do there is noise. Sums run over the
    batch, so that a still clip counts for little beside a moving one. With equal weights this is
    `kernels.relational.relation_l1`, spatial plus temporal; where nothing is expected to move it is 0. Raises
    ValueError for shapes that do not fit.
    """
    if moved.shape[:2] != expected.shape[:2] or moved.shape[1] != grid[0] * grid[1] * grid[2]:
        shapes = f"{tuple(moved.shape[:2])} and {tuple(expected.shape[:2])} samples and tokens"
        raise ValueError(f"{shapes} do not fit each other and a grid of {'x'.join(map(str, grid))}.")
    moved, expected = (x if x.dtype == torch.float64 else x.float() for x in (moved, expected.detach()))
    weight = expected.square().sum(dim=-1)
    weight = weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)  # only ratios count
    student, teacher = (torch.nn.functional.normalize(x, dim=-1, eps=1e-8) for x in (moved, expected))
    frame = torch.arange(grid[0], device=moved.device).repeat_interleave(grid[1] * grid[2])
    sums = moved.new_zeros(4)
    for sample in range(len(moved)):
        for rows in torch.arange(moved.shape[1], device=moved.device).split(TILE):
            sums = sums + checkpoint(
                _sums,
                student[sample],
                teacher[sample],
                weight[sample],
                frame,
                rows,
                decay,
                use_reentrant=False,
            )
    same, other, all_same, all_pairs = sums
    tiny = torch.finfo(sums.dtype).tiny
    return same / all_same.clamp_min(tiny) + other / all_pairs.clamp_min(tiny)


def _sums(
    student: Tensor, teacher: Tensor, weight: Tensor, frame: Tensor, rows: Tensor, decay: float | None
) -> Tensor:
    """The four sums of `pda_loss` over some rows of one sample's relation: two of losses, two of weights."""
    distance = (student[rows] @ student.T - teacher[rows] @ teacher.T).abs()
    pair = weight[rows, None] * weight
    gap = (frame[rows, None] - frame).abs()
    same = (gap == 0).to(pair.dtype)
    fading = torch.ones_like(pair) if decay is None else torch.exp(gap.to(pair.dtype) / -decay)
    weighted = pair * distance
    return torch.stack(
        [(weighted * same).sum(), (weighted * fading * (1 - same)).sum(), (pair * same).sum(), pair.sum()]
    )
