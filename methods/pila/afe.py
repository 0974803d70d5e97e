"""Anchored field estimation: features -> physical fields, with an observable velocity as the anchor.

Source: PILA Eq 13-20, Table 5 and section A.1. The velocity is the only quantity taken from the learned
scaffold; every other slot is constructed from it by differences, integration or a small head. Fields that are
hard to observe join one after the other (`PHASES`); until then their slot is exactly zero and neither their
head nor its graph is run. All constructors run in float32: rounding a field before a difference costs more
than the rest of the method gains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import stencils
from .bank import COMPACT, WIDTHS, slot_of
from .encoder import head

PHASES: tuple[str, ...] = ("core", "alpha", "T", "j", "psi")
"""Order in which the slots are recovered (Table 5); each phase keeps what came before."""
CORE_SLOTS: tuple[str, ...] = ("u", "p", "rho", "eps", "sigma", "d")
CONTEXTS: dict[str, tuple[str, ...]] = {
    "alpha": ("u", "rho", "d"),
    "T": ("u", "rho", "alpha"),
    "j": ("d", "u", "p", "rho", "eps", "sigma"),
    "psi": ("alpha",),
}
"""Fields that the head of a weakly observed slot sees beside the feature (Table 5)."""
CONTEXT_WIDTHS = {**COMPACT, "u": 2}
DENSITY_DELTA = 1e-4
LAME_MU = LAME_LAMBDA = 1.0
SPEED_FLOOR = 1e-12


def active_slots(phase: str) -> tuple[str, ...]:
    """The slots that are alive in a recovery phase. Raises ValueError for an unknown phase."""
    if phase not in PHASES:
        raise ValueError(f"recovery phase is {phase!r}; it must be one of {', '.join(PHASES)}.")
    return CORE_SLOTS + PHASES[1 : PHASES.index(phase) + 1]


def speed(velocity: Tensor) -> Tensor:
    """|u|, `B 1 T H W`; the floor keeps the gradient finite at rest."""
    return (velocity.square().sum(dim=1, keepdim=True) + SPEED_FLOOR).sqrt()


def integrate_displacement(velocity: Tensor) -> Tensor:
    """Displacement at a fixed pixel by the midpoint rule, zero at the middle frame (Eq 19). `B 2 T H W` ->
    same shape."""
    steps = stencils.step_mean(velocity)
    path = F.pad(steps.cumsum(dim=2), (0, 0, 0, 0, 1, 0))
    anchor = velocity.shape[2] // 2
    return path - path[:, :, anchor : anchor + 1]


def stress(pressure: Tensor, strain: Tensor) -> Tensor:
    """sigma = -p I + 2 mu eps + lambda tr(eps) I as (xx, xy, yx, yy), `B 4 T H W` (Eq 20)."""
    isotropic = LAME_LAMBDA * (strain[:, :1] + strain[:, 3:]) - pressure
    zero = torch.zeros_like(isotropic)
    return 2.0 * LAME_MU * strain + torch.cat([isotropic, zero, zero, isotropic], dim=1)


def centre(field: Tensor) -> Tensor:
    """Subtracts each sample's mean over space and time."""
    return field - field.mean(dim=(2, 3, 4), keepdim=True)


def density(raw: Tensor) -> Tensor:
    """A positive density: softplus plus a small floor (Eq 18)."""
    return F.softplus(raw) + DENSITY_DELTA


class AnchoredFieldEstimation(nn.Module):
    """Builds every field of the bank from the physical feature h (Eq 13-20)."""

    def __init__(self, hidden: int, head_width: int, operations: Any = nn) -> None:
        super().__init__()
        bank_width = sum(WIDTHS.values())
        self.scaffold = head(hidden, hidden, bank_width, operations=operations)
        self.u_head = head(WIDTHS["u"], head_width, 2, operations=operations)
        self.p_rho_head = head(hidden + 5, hidden, head_width, 2, operations=operations)
        contexts = {name: sum(CONTEXT_WIDTHS[slot] for slot in slots) for name, slots in CONTEXTS.items()}
        self.heads = nn.ModuleDict()
        for name, extra in contexts.items():
            self.heads[name] = head(
                hidden + extra, head_width, head_width, COMPACT[name], operations=operations
            )

    def read_velocity(self, scaffold: Tensor) -> Tensor:
        """The kinematic anchor: velocity `B 2 T H W` in latent pixels per latent frame from the u slot (Eq
        14)."""
        return self.u_head(scaffold)

    def forward(self, feature: Tensor, phase: str = "psi") -> tuple[dict[str, Tensor], Tensor]:
        """Fields of the active slots, compact and in physical units, plus the velocity scaffold `B 4 T H W`.

        `feature` is h `B hidden T H W`. Raises ValueError for a latent too small to differentiate.
        """
        stencils.require_size(feature, 1, 3, "anchored field estimation")
        slots = active_slots(phase)
        with torch.autocast(device_type=feature.device.type, enabled=False):
            feature = feature.float()
            scaffold = self.scaffold(feature)
            fields = {"u": self.read_velocity(slot_of(scaffold, "u"))}
            fields |= self.construct(feature, fields["u"], scaffold)
            for name in PHASES[1:]:
                if name in slots:
                    fields[name] = self._recover(name, feature, fields)
        return fields, slot_of(scaffold, "u")

    def construct(self, feature: Tensor, velocity: Tensor, _: Tensor) -> dict[str, Tensor]:
        """Pressure, density, displacement, strain and stress from the velocity (Eq 15-20); the scaffold is
        not read."""
        descriptors = [velocity, speed(velocity), stencils.divergence(velocity), stencils.curl(velocity)]
        pressure, raw_density = self.p_rho_head(torch.cat([feature, *descriptors], dim=1)).split(1, dim=1)
        strain = stencils.symmetric_gradient(velocity)
        pressure = centre(pressure)
        return {
            "p": pressure,
            "rho": density(raw_density),
            "eps": strain,
            "sigma": stress(pressure, strain),
            "d": integrate_displacement(velocity),
        }

    def _recover(self, name: str, feature: Tensor, fields: dict[str, Tensor]) -> Tensor:
        """One weakly observed slot from its context; the order of phases makes sure that the context is
        there."""
        values = self.heads[name](torch.cat([feature, *(fields[slot] for slot in CONTEXTS[name])], dim=1))
        return torch.sigmoid(values) if name == "alpha" else values
