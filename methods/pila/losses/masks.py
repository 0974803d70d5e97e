"""Where a residual looks while training: the bootstrap motion mask and the physical mask (PILA section B.3).

Masks are `B 1 T H W`, detached, between a floor of 0.08 and 1. Sampling uses none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...labels.taxonomy import CATEGORIES
from ..experts import RECIPES

FLOOR = 0.08
QUANTILE = 0.9
BOOTSTRAP_STEPS = 300
BLEND_STEPS = 1000
TIME, Y, X = 2, 3, 4


def change(field: Tensor, dim: int) -> Tensor:
    """Channel mean of absolute forward differences along `dim`, `B 1 T H W`; the last difference is
    repeated."""
    if field.shape[dim] == 1:
        return torch.zeros_like(field[:, :1])
    step = field.diff(dim=dim).abs().mean(dim=1, keepdim=True)
    return torch.cat([step, step.narrow(dim, step.shape[dim] - 1, 1)], dim=dim)


def standardise(energy: Tensor) -> Tensor:
    """Divides each sample by its own 0.9 quantile and clips to [0, 1]; an all-zero map stays zero."""
    scale = torch.quantile(energy.flatten(1).float(), QUANTILE, dim=1)[:, None, None, None, None]
    return (energy / scale.clamp(min=1e-8)).clamp(0.0, 1.0)


def with_floor(energy: Tensor) -> Tensor:
    """floor + (1 - floor) * standardised energy."""
    return FLOOR + (1.0 - FLOOR) * standardise(energy)


@torch.no_grad()
def bootstrap_mask(velocity: Tensor, x0: Tensor) -> Tensor:
    """0.55 |dv/dt| + 0.25 |dx0/dt| + 0.20 |grad v| of the frozen prediction and its estimate, `B C T H W`
    each."""
    velocity, x0 = velocity.float(), x0.float()
    slope = 0.5 * (change(velocity, X) + change(velocity, Y))
    return with_floor(0.55 * change(velocity, TIME) + 0.25 * change(x0, TIME) + 0.20 * slope)


MULTIPLIERS: dict[str, dict[str, float]] = {
    "Thermal": {"T": 2.0, "u": 0.5, "grad T": 2.0},
    "Phase Change": {
        "T": 1.5,
        "rho": 1.5,
        "alpha": 1.5,
        "u": 0.75,
        "grad T": 1.5,
        "grad rho": 1.5,
        "grad alpha": 1.5,
    },
    "Optical": {"psi": 1.5, "alpha": 1.25},
    "Collision": {"j": 1.5},
}
"""Places that a category weighs more, or less, than the rest."""
GROUPS = (
    (0.65, ("d", "u", "rho", "T", "alpha", "psi")),
    (0.25, ("j",)),
    (0.10, ("grad rho", "grad alpha", "grad T")),
)
"""Evolution, events, boundaries, and their shares."""


def activity(fields: dict[str, Tensor], name: str) -> Tensor:
    """One map of activity: speed for u, size for j, slope for "grad f", rate of change for the rest;
    standardised."""
    if name.startswith("grad "):
        field = fields[name.removeprefix("grad ")]
        energy = change(field, X) + change(field, Y)
    elif name in ("u", "j"):
        energy = fields[name].norm(dim=1, keepdim=True)
    else:
        energy = change(fields[name], TIME)
    return standardise(energy)


@torch.no_grad()
def physical_mask(fields: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Where the labelled categories' slots are active, from fields in physical units; `labels` is `B 8`.

    Each map is standardised by its own quantile first, because the slots' scales are arbitrary. A sample
    without labels gets all ones.
    """
    sample = next(iter(fields.values()))
    total = sample.new_zeros(sample.shape[0], 1, *sample.shape[2:])
    maps: dict[str, Tensor] = {}
    for share, names in GROUPS:
        weighted, weight = torch.zeros_like(total), torch.zeros_like(total[:, :, :1, :1, :1])
        for name in names:
            slot = name.removeprefix("grad ")
            for index, category in enumerate(CATEGORIES):
                if slot not in RECIPES[category] or slot not in fields:
                    continue
                if name not in maps:
                    maps[name] = activity(fields, name)
                active = (labels[:, index] > 0).to(sample)[:, None, None, None, None]
                weighted = weighted + active * MULTIPLIERS.get(category, {}).get(name, 1.0) * maps[name]
                weight = weight + active
        total = total + share * weighted / weight.clamp(min=1.0)
    labelled = (labels > 0).any(dim=1)[:, None, None, None, None]
    return torch.where(labelled, with_floor(total), torch.ones_like(total))


def blended_mask(step: int, bootstrap: Tensor, physical: Tensor) -> Tensor:
    """All ones at step 0, the bootstrap mask from step 300, then over 1000 steps to the physical mask."""
    if step < BOOTSTRAP_STEPS:
        return torch.lerp(torch.ones_like(bootstrap), bootstrap, step / BOOTSTRAP_STEPS)
    return torch.lerp(bootstrap, physical, min(1.0, (step - BOOTSTRAP_STEPS) / BLEND_STEPS))
