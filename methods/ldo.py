"""LDO (latent dynamics optimisation): predictive dynamics alignment, the teacher's half.

The published description has no equations; this is our reading of it: what changes in the frozen world model's prediction
also changes, in step, inside the generator.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels.relational import relation_l1
from .relational import Grid, to_tokens, to_volume


def increments(features: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Change from each frame to the next: `B N C` on (F, H, W) -> `B N' C` on (F - 1, H, W). Raises ValueError for one frame."""
    if grid[0] < 2:
        raise ValueError(f"dynamics need at least 2 feature frames, not {grid[0]}.")
    volume = to_volume(features, grid)
    return to_tokens(volume[:, :, 1:] - volume[:, :, :-1]), (grid[0] - 1, grid[1], grid[2])


def pda_loss(student: Tensor, predicted: Tensor, grid: Grid, decay: float | None = 10.0) -> Tensor:
    """Predictive dynamics alignment: the relations among the student's increments follow those among the predicted ones. Scalar.

    student: the generator's tokens, projected, `B N C`; predicted: what the world model expects of the same tokens, given the
    frames before them, `B N C'`. Both on `grid`, at least 2 frames. The relation matrices (cosines within a frame and across
    frames) are compared as MoAlign compares them (its eqs 5-8), with the same temporal decay.
    """
    moved, shorter = increments(student, grid)
    expected, _ = increments(predicted, grid)
    spatial, temporal = relation_l1(moved, expected.detach(), shorter, decay=decay)
    return spatial + temporal
