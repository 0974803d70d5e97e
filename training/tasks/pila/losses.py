"""The loss of each stage of PILA's training (arXiv 2606.04737, section B.3), and what is logged of it.

The formulas take the adapter, what they are told of the step, and the noised clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ....methods.pila import CATEGORIES, PilaAdapter, PilaOutput
from ....methods.pila.adapter import wide
from ....methods.pila.losses.masks import blended_mask, bootstrap_mask, physical_mask
from ....methods.pila.losses.objective import (
    AdaptiveWeights,
    CouplingLoss,
    Laws,
    coupling_loss,
    largest_sigma,
    physics_loss,
    ramp,
)
from ....methods.pila.losses.recovery import observable_loss, phase_weights, recovery_losses, spread_guards
from ....methods.pila.routing import Routing, coactivation, label_recall
from .data import Batch
from .settings import PilaTraining

PAIRS = tuple(combinations(range(len(CATEGORIES)), 2))
SIGMA_RANGES = (("0-.33", 0.0, 0.33), (".33-.66", 0.33, 0.66), (".66-1", 0.66, 1.01))
"""Name and bounds of the noise levels that residuals are logged by."""
ROUTING_COLUMNS = (
    *(f"route {name}" for name in CATEGORIES),
    *(f"{CATEGORIES[a]} + {CATEGORIES[b]}" for a, b in PAIRS),
)
SIGMA_COLUMNS = tuple(f"{category} at sigma {name}" for category in CATEGORIES for name, _, _ in SIGMA_RANGES)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step as the formulas see it."""

    number: int
    """Number of the step in its stage, from 0."""
    config: PilaTraining
    weights: AdaptiveWeights
    """Weights of the residuals, by their running means; stage C feeds them."""
    laws: Laws
    """Residuals of a category's fields."""
    mean: Callable[[Tensor], Tensor]
    """Averages a tensor over the processes, without gradient."""


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Clips at a noise level, `B C T H W` float32 (Eq 1)."""

    batch: Batch
    estimate: Tensor
    """The frozen model's x0."""
    velocity: Tensor
    """Prediction of the frozen model."""
    target: Tensor
    """The velocity that is right."""
    sigma: Tensor
    """Noise levels, `B`."""
    kept: Tensor
    """Whose prompt is kept, `B 1` in {0, 1}."""


Formula = Callable[[PilaAdapter, Step, Noised], tuple[Tensor, dict[str, float]]]


def stage_a(adapter: PilaAdapter, step: Step, clips: Noised) -> tuple[Tensor, dict[str, float]]:
    """Stage A: the velocity slot follows optical flow."""
    fields = adapter.estimate(clips.estimate, clips.sigma, "core")
    loss = observable_loss(fields["u"], clips.batch.flow, clips.batch.confidence, step.mean)
    return loss, {"observable": loss.item()}


def stage_b(adapter: PilaAdapter, step: Step, clips: Noised) -> tuple[Tensor, dict[str, float]]:
    """Stage B: fields that no data shows are recovered from laws, in phases."""
    config, batch = step.config, clips.batch
    starts = {"core": 0, "alpha": config.alpha_start, "T": config.alpha_start}
    starts |= {"j": config.impulse_start, "psi": config.wave_start}
    phase, weights = phase_weights(step.number, starts)
    fields = adapter.estimate(clips.estimate, clips.sigma, phase)
    mask = law_mask(step, clips, fields)
    losses = recovery_losses(fields, weights, mask)
    observable = observable_loss(fields["u"], batch.flow, batch.confidence, step.mean)
    loss = sum(losses.values()) + config.observable_anchor * observable
    row = {f"B {name}": value.item() for name, value in losses.items()}
    return loss, {"observable": observable.item(), "mask": mask.mean().item(), **row, **variation(fields)}


def law_mask(step: Step, clips: Noised, fields: Mapping[str, Tensor]) -> Tensor:
    """Where the laws are judged on this step, `B 1 T H W`: everywhere, then the bootstrap mask, then the
    physical one."""
    physical = physical_mask({name: value.detach() for name, value in fields.items()}, clips.batch.labels)
    return blended_mask(step.number, bootstrap_mask(clips.velocity, clips.estimate), physical)


def stage_c(adapter: PilaAdapter, step: Step, clips: Noised) -> tuple[Tensor, dict[str, float]]:
    """Stage C: flow matching through the correction, plus routed residuals (Eq 11)."""
    config, batch, sigma, velocity = step.config, clips.batch, clips.sigma, clips.velocity
    fade = ramp(step.number, config.condition_warmup) * clips.kept
    out = adapter(clips.estimate, velocity, sigma, batch.cond, batch.labels, ramp=fade)
    mask = None if out.refined is None else law_mask(step, clips, adapter.read(out.refined.detach()))
    law = physics_loss(
        adapter, out, batch.labels, sigma, mask=mask, sigma_max=largest_sigma(step.number,
        config.physics_warmup),
        weights=step.weights, laws=step.laws, synchronise=step.mean,
    )  # fmt: skip
    step.weights.update(law.terms, step.mean)
    result = coupling_loss(
        adapter, out, velocity, clips.target, sigma, law, step=step.number,
        physics_weight=config.physics_weight, physics_warmup=config.physics_warmup,
    )  # fmt: skip
    loss, row = result.loss, coupling_row(adapter, out, result, velocity, sigma)
    if mask is not None:
        observable = observable_loss(out.fields["u"], batch.flow, batch.confidence, step.mean)
        spread = sum(spread_guards(out.fields, mask).values())
        row |= {"mask": mask.mean().item(), "observable": observable.item(), **variation(out.fields)}
        loss = loss + config.coupling_anchor * observable + config.coupling_spread * spread
    if out.routing is not None:
        row |= routing_row(out.routing, batch.labels)
    return loss, row


def coupling_row(
    adapter: PilaAdapter, out: PilaOutput, result: CouplingLoss, velocity: Tensor, sigma: Tensor
) -> dict[str, float]:
    """Columns of the log: errors, size of the correction, every residual, and each category's by noise
    level."""
    law, gate = result.physics, wide(adapter.gate(sigma))
    row = {
        "flow": result.flow.item(),
        "base": result.base.item(),
        "physics": law.loss.item(),
        "samples": law.samples,
    }
    row["ratio"] = ((gate * out.delta).norm() / velocity.norm()).item()
    row |= {name: value.mean().item() for name, value in law.terms.items()}
    for category, (levels, residuals) in law.judged.items():
        for name, low, high in SIGMA_RANGES:
            inside = (levels >= low) & (levels < high)
            if inside.any():
                row[f"{category} at sigma {name}"] = residuals[inside].mean().item()
    return row


def routing_row(routing: Routing, labels: Tensor) -> dict[str, float]:
    """Columns of the log: mean weight of each expert, weight without a label, label recall, and which experts
    ran together."""
    weights, together = routing.weights.detach(), coactivation(routing)
    row = {f"route {name}": value for name, value in zip(CATEGORIES, weights.mean(dim=0).tolist())}
    row["off_label"] = (weights * (labels == 0)).sum(dim=1).mean().item()
    row["recall"] = label_recall(routing, labels).item()
    return row | {f"{CATEGORIES[a]} + {CATEGORIES[b]}": together[a, b].item() for a, b in PAIRS}


@torch.no_grad()
def variation(fields: Mapping[str, Tensor]) -> dict[str, float]:
    """Standard deviation of each field over space and time, in its units; mean over channels and clips:
    columns of the log."""
    return {f"std {name}": value.flatten(2).std(dim=2).mean().item() for name, value in fields.items()}


FORMULAS: dict[str, Formula] = {"A": stage_a, "B": stage_b, "C": stage_c}
"""The loss of each stage, by the first letter of its name."""
