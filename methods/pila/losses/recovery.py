"""Losses of the two stages before coupling: observable motion (stage A) and field recovery (stage B), PILA
section B.3."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import stencils as st
from ..afe import PHASES
from ..residuals import TERMS as LAWS
from ..residuals import Averager, ResidualSettings, prepare

BLOCKS: dict[str, tuple[tuple[float, str, str], ...]] = {
    "core": (
        (1.0, "Fluid", "continuity"),
        (1.0, "Fluid", "momentum"),
        (0.25, "Fluid", "pressure_regularity"),
        (0.25, "Fluid", "density_stability"),
        (1.0, "Rigid Body", "kinematic"),
    ),
    "alpha": ((1.0, "Phase Change", "phase_transport"), (0.1, "Phase Change", "support_regularity")),
    "T": ((1.0, "Thermal", "heat_transport"), (0.1, "Thermal", "thermal_regularity")),
    "j": (),
    "psi": (
        (1.0, "Optical", "wave_propagation"),
        (0.2, "Optical", "support_gating"),
        (0.1, "Optical", "support_regularity"),
    ),
}
"""Per recovery phase: weight, category and name of the residual terms it adds. Impulses have losses of their
own."""
EXTRA_LOSSES: dict[str, tuple[str, ...]] = {
    "core": ("spread p", "spread rho"),
    "alpha": ("range", "spread alpha"),
    "T": ("spread T",),
    "j": ("contact", "sparse", "spread j"),
    "psi": ("spread psi",),
}
"""Losses beside the laws: data terms, and guards against fields that collapse to a constant."""
RECOVERY_NAMES: tuple[str, ...] = tuple(
    f"{phase}/{name}"
    for phase in PHASES
    for name in (*(entry[2] for entry in BLOCKS[phase]), *EXTRA_LOSSES[phase])
)
"""Every loss that `recovery_losses` may return."""
OLD_BLOCK_WEIGHT = 0.25
PHASE_RAMP = 150
FREE_SLOTS = ("p", "rho", "alpha", "T", "j", "psi")
"""Slots that no data shows: a constant in any of them obeys the laws. d, eps and sigma follow from the
others."""
SMALLEST_SPREAD = 0.1
SMALLEST_PRESSURE = 1e-3
DEAD_SPREAD = 0.01
"""Below this deviation, a tenth of what the guards ask for, a field is called dead."""
RANGE_WEIGHT = 0.1
SPARSE_WEIGHT = 0.1


def observable_loss(
    velocity: Tensor, flow: Tensor, confidence: Tensor, synchronise: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Stage A: confidence-weighted smooth L1 between the velocity proxy and cached optical flow.

    `velocity` `B 2 T H W`; `flow` `B 2 T-1 H W` in latent pixels per latent frame, between consecutive latent
    frames;
    `confidence` `B 1 T-1 H W` in [0, 1]. The velocity is compared at the middle of the interval, where the
    flow is centred.
    `synchronise` averages a tensor over the processes of a run, so that every pixel counts the same in all of
    them.
    """
    error = F.smooth_l1_loss(st.step_mean(velocity), flow, reduction="none").mean(dim=1, keepdim=True)
    total = confidence.sum() if synchronise is None else synchronise(confidence.sum())
    return (confidence * error).sum() / total.clamp(min=1e-6)


def phase_weights(step: int, starts: dict[str, int]) -> tuple[str, dict[str, float]]:
    """The newest recovery phase at `step` and the weight of every block so far: 1 (after a ramp) while
    newest, 0.25 later."""
    begun = [name for name in PHASES if starts[name] <= step]
    newest = begun[-1]
    weights = dict.fromkeys(begun, OLD_BLOCK_WEIGHT)
    age = step - starts[newest]
    weights[newest] = 1.0 if newest == PHASES[0] else min(1.0, (age + 1) / PHASE_RAMP)
    # Phases that begin together are all new.
    for name in begun:
        if starts[name] == starts[newest]:
            weights[name] = weights[newest]
    return newest, weights


def momentum_imbalance(fields: dict[str, Tensor], viscosity: float) -> Tensor:
    """Remainder of the momentum balance: u_t + (u . grad) u + grad p / rho - nu laplacian u,
    detached."""
    u, p, rho = (fields[name].detach() for name in ("u", "p", "rho"))
    force = torch.cat([st.ddx(p), st.ddy(p)], dim=1) / rho.clamp(min=1e-2)
    return st.ddt(u) + st.advection(u, u) + force - viscosity * st.laplacian(u)


def spread_guard(field: Tensor, smallest: Tensor | float = SMALLEST_SPREAD) -> Tensor:
    """Anti-collapse: constant fields satisfy every transport law, so a deviation below `smallest` is charged.
    Scalar."""
    return (1.0 - field.flatten(1).std(dim=1) / smallest).clamp(min=0).square().mean()


def smallest_pressure(velocity: Tensor) -> Tensor:
    """Deviation asked of pressure, `B`: a tenth of what Bernoulli's law gives for the clip's own speeds at
    density 1."""
    dynamic = 0.5 * velocity.detach().square().sum(dim=1)
    return (SMALLEST_SPREAD * dynamic.flatten(1).std(dim=1)).clamp(min=SMALLEST_PRESSURE)


def spread_guards(fields: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
    """The guard of every free slot in `fields`, by slot; impulses only count inside the mask."""
    guards = {
        name: spread_guard(fields[name]) for name in FREE_SLOTS if name in fields and name not in ("p", "j")
    }
    if "p" in fields:
        guards["p"] = spread_guard(fields["p"], smallest_pressure(fields["u"]))
    if "j" in fields:
        guards["j"] = spread_guard(fields["j"] if mask is None else fields["j"] * mask)
    return guards


def dead_slots(spread: Mapping[str, float]) -> list[str]:
    """The free slots whose deviation, by name, says that they are constant: their laws judge nothing.

    Pressure is measured against the square of the velocity's deviation, its scale by Bernoulli's law.
    """
    scale = {"p": spread.get("u", 0.0) ** 2}
    return [
        name for name in FREE_SLOTS if name in spread and spread[name] < DEAD_SPREAD * scale.get(name, 1.0)
    ]


def impulse_losses(
    fields: dict[str, Tensor], mask: Tensor, mean: Averager, settings: ResidualSettings
) -> dict[str, Tensor]:
    """Impulses explain the momentum that nothing else explains, inside the mask, and vanish outside."""
    target = momentum_imbalance(fields, settings.viscosity)
    scale = mean(target.square()) + 1e-6
    contact = mean(mask * (fields["j"] - target).square()) / scale
    sparse = mean(((1.0 - mask) * fields["j"]).square()) / scale
    return {"contact": contact.mean(), "sparse": SPARSE_WEIGHT * sparse.mean()}


def recovery_losses(
    fields: dict[str, Tensor],
    weights: dict[str, float],
    mask: Tensor | None = None,
    settings: ResidualSettings | None = None,
) -> dict[str, Tensor]:
    """Stage B: the weighted loss of every active block by "phase/term", each a scalar; their sum is the loss.

    `fields` are the active slots in physical units, `weights` come from `phase_weights`. Raises ValueError
    for latents below 4 frames or 5x5.
    """
    context = prepare(fields, mask, settings or ResidualSettings())
    guards = spread_guards(fields, mask)
    losses: dict[str, Tensor] = {}
    for phase, weight in weights.items():
        block = {
            name: share * LAWS[category][name].formula(context).mean()
            for share, category, name in BLOCKS[phase]
        }
        if phase == "j":
            full = torch.ones_like(fields["j"][:, :1]) if mask is None else mask
            block.update(impulse_losses(dict(context.fields), full, Averager(full, None), context.settings))
        if phase == "alpha":
            # "range": keep both phases present; the sigmoid alone would let alpha saturate everywhere.
            block["range"] = (
                RANGE_WEIGHT
                * (context["alpha"].flatten(1).mean(dim=1) - 0.5).abs().sub(0.4).clamp(min=0).mean()
            )
        block.update(
            {
                name: guards[name.removeprefix("spread ")]
                for name in EXTRA_LOSSES[phase]
                if name.startswith("spread ")
            }
        )
        losses.update({f"{phase}/{name}": weight * value for name, value in block.items()})
    return losses
