"""Linear probes: what features say of how a thing moves."""

from __future__ import annotations

import torch
from torch import Tensor

from ...toyworld import WORLDS, sample
from ...toyworld.canvas import UNITS
from ...toyworld.oracle import things

TRACKED = ("rigid_body", "elastic", "collision")
"""Worlds whose things keep their colour and shape, so that a centroid is the thing's place."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def tracked_clips(count: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """(clips `B 3 T H W`, the path of a thing `B T-1 2` as x and y in pixels, prompts), the clip's first
    frame left out of the path; nan where the thing is gone. The largest thing of each clip is followed."""
    names = [name for name in TRACKED if name in WORLDS]
    each = -(-count // len(names))
    clips, paths, prompts = [], [], []
    for number, name in enumerate(names):
        drawn, words = sample(name, each, seed * 101 + number)
        for clip in drawn:
            opacity, _ = things(clip)
            mass = opacity.sum(dim=(2, 3))
            k = int(mass.mean(dim=0).argmax())
            there = mass[:, k] > 4
            rows, columns = (torch.arange(side, dtype=torch.float32) for side in opacity.shape[2:])
            x = (opacity[:, k].sum(dim=1) @ columns) / mass[:, k]
            y = (opacity[:, k].sum(dim=2) @ rows) / mass[:, k]
            paths.append(torch.where(there[:, None], torch.stack([x, y], dim=1), torch.nan)[1:])
        clips.append(drawn)
        prompts += words
    return torch.cat(clips), torch.stack(paths), prompts


def velocity_r2(volume: Tensor, paths: Tensor) -> float:
    """Held-out R^2 of a linear probe for a thing's velocity: the mean of `velocity_shares`."""
    return float(velocity_shares(volume, paths).mean())


def velocity_shares(volume: Tensor, paths: Tensor) -> Tensor:
    """How much of a thing's velocity until the next step a ridge regression reads off the feature under it,
    a number per held-out clip, float64, whose mean is the held-out R^2: 1 - n |error|^2 / sum of all clips'
    |velocity - mean|^2.

    volume: features `B C F H W` of clips without their first frame; paths: `B T 2` x and y in units, T a
    multiple of F. Clips are split in halves: the ridge is chosen in the first by a split of its own, the R^2
    is the second's. 0 is a probe that knows the mean velocity only; it may be below.
    """
    steps = paths.unflatten(1, (volume.shape[2], -1)).mean(dim=2)
    velocity = steps[:, 1:] - steps[:, :-1]
    cells = (steps / UNITS * torch.tensor(volume.shape[:2:-1])).long()  # x by width, y by height
    inside = torch.isfinite(velocity).all(dim=2) & torch.isfinite(steps[:, :-1]).all(dim=2)
    x, y, owner = [], [], []
    for clip, step in inside.nonzero().tolist():
        column, row = cells[clip, step].tolist()
        if 0 <= row < volume.shape[3] and 0 <= column < volume.shape[4]:
            x.append(volume[clip, :, step, row, column])
            y.append(velocity[clip, step])
            owner.append(clip)
    features, wanted, owner = torch.stack(x).double(), torch.stack(y).double(), torch.tensor(owner)
    fitted, judged = owner % 2 == 0, owner % 2 == 1
    inner = owner % 4 == 0
    scores = {ridge: r2(features, wanted, inner, fitted & ~inner, ridge) for ridge in RIDGES}
    error, spread = residuals(features, wanted, fitted, judged, max(scores, key=scores.get))
    clips, place = owner[judged].unique(return_inverse=True)
    of_clip = torch.zeros(len(clips), dtype=error.dtype).index_add_(0, place, error)
    return 1 - len(clips) * of_clip / spread.sum()


def r2(features: Tensor, wanted: Tensor, fitted: Tensor, judged: Tensor, ridge: float) -> float:
    """R^2 on the rows `judged` of a ridge regression fitted on the rows `fitted`; features `N C`, wanted `N
    D`."""
    error, spread = residuals(features, wanted, fitted, judged, ridge)
    return float(1 - error.sum() / spread.sum())


def residuals(
    features: Tensor, wanted: Tensor, fitted: Tensor, judged: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Squared error of that regression, and of the mean of the rows `fitted`, for each row `judged`."""
    mean, deviation = features[fitted].mean(0), features[fitted].std(0)
    deviation = deviation.clamp(
        min=max(1e-9, 0.05 * float(deviation.max()))
    )  # a channel that hardly varied may vary later
    x, centre = (features - mean) / deviation, wanted[fitted].mean(0)
    a = x[fitted]
    gram = a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    weights = torch.linalg.solve(gram, a.T @ (wanted[fitted] - centre))
    error = (x[judged] @ weights + centre - wanted[judged]).square().sum(dim=1)
    return error, (wanted[judged] - centre).square().sum(dim=1)
