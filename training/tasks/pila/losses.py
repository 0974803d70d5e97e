"""The loss of each stage of PILA's training (arXiv 2606.04737, section B.3), and what is logged of it.

The formulas take the run, for its adapter, settings and step, and what `PilaRun.noised` made of the clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....methods.pila import CATEGORIES, PilaAdapter, PilaOutput
from ....methods.pila.adapter import wide
from ....methods.pila.losses.masks import blended_mask, bootstrap_mask, physical_mask
from ....methods.pila.losses.objective import CouplingLoss, coupling_loss, largest_sigma, physics_loss, ramp
from ....methods.pila.losses.recovery import observable_loss, phase_weights, recovery_losses, spread_guards
from ....methods.pila.routing import Routing, coactivation, label_recall
from .data import Batch

if TYPE_CHECKING:
    from .task import PilaRun

PAIRS = tuple(combinations(range(len(CATEGORIES)), 2))
SIGMA_RANGES = (("0-.33", 0.0, 0.33), (".33-.66", 0.33, 0.66), (".66-1", 0.66, 1.01))
"""Name and bounds of the noise levels that residuals are logged by."""
ROUTING_COLUMNS = (
    *(f"route {name}" for name in CATEGORIES),
    *(f"{CATEGORIES[a]} + {CATEGORIES[b]}" for a, b in PAIRS),
)
SIGMA_COLUMNS = tuple(f"{category} at sigma {name}" for category in CATEGORIES for name, _, _ in SIGMA_RANGES)


class StageLoss(nn.Module):
    """A stage's loss as a module around the adapter: what accelerate prepares, so that gradients are averaged."""

    def __init__(self, adapter: PilaAdapter, formula: Callable[..., tuple[Tensor, dict[str, float]]], several: bool) -> None:
        """`several`: whether other processes wait for this one's gradients."""
        super().__init__()
        self.adapter, self.formula, self.several = adapter, formula, several

    def forward(self, *arguments: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss, and what to log of it."""
        loss, row = self.formula(*arguments)
        if self.several and not loss.requires_grad:  # an ablation in which no clip of this process counted: zeros, not silence
            loss = loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return loss, row


def stage_a(
    run: PilaRun, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Stage A: the velocity slot follows optical flow."""
    fields = run.adapter.estimate(estimate, sigma, "core")
    loss = observable_loss(fields["u"], batch.flow, batch.confidence, run.average)
    return loss, {"observable": loss.item()}


def stage_b(
    run: PilaRun, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Stage B: fields that no data shows are recovered from laws, in phases."""
    config = run.config
    starts = {"core": 0, "alpha": config.alpha_start, "T": config.alpha_start}
    starts |= {"j": config.impulse_start, "psi": config.wave_start}
    phase, weights = phase_weights(run.step, starts)
    fields = run.adapter.estimate(estimate, sigma, phase)
    mask = mask_of(run, velocity, estimate, fields, batch.labels)
    losses = recovery_losses(fields, weights, mask)
    observable = observable_loss(fields["u"], batch.flow, batch.confidence, run.average)
    loss = sum(losses.values()) + config.observable_anchor * observable
    row = {f"B {name}": value.item() for name, value in losses.items()}
    return loss, {"observable": observable.item(), "mask": mask.mean().item(), **row, **variation(fields)}


def mask_of(run: PilaRun, velocity: Tensor, estimate: Tensor, fields: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Where the laws are judged on this step, `B 1 T H W`: everywhere, then the bootstrap mask, then the physical one."""
    physical = physical_mask({name: value.detach() for name, value in fields.items()}, labels)
    return blended_mask(run.step, bootstrap_mask(velocity, estimate), physical)


def stage_c(
    run: PilaRun, batch: Batch, estimate: Tensor, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Stage C: flow matching through the correction, plus routed residuals (Eq 11)."""
    config, adapter = run.config, run.adapter
    labels = run.share(run.method.relabel(run.accelerator.gather(batch.labels), generator))
    kept = run.share(torch.rand(run.processes * len(sigma), 1, generator=generator) >= config.drop_prompt).to(run.device)
    fade = ramp(run.step, config.condition_warmup) * kept.float()
    out = adapter(estimate, velocity, sigma, batch.cond, labels, ramp=fade)
    mask = None if out.refined is None else mask_of(run, velocity, estimate, adapter.read(out.refined.detach()), labels)
    law = physics_loss(
        adapter, out, labels, sigma, mask=mask, sigma_max=largest_sigma(run.step, config.physics_warmup), weights=run.weights,
        laws=run.method.laws, synchronise=run.average,
    )  # fmt: skip
    run.weights.update(law.terms, run.average)
    result = coupling_loss(
        adapter, out, velocity, target, sigma, law, step=run.step,
        physics_weight=config.physics_weight, physics_warmup=config.physics_warmup,
    )  # fmt: skip
    loss, row = result.loss, coupling_row(adapter, out, result, velocity, sigma)
    if mask is not None:
        anchors = anchors_of(run, batch, out.fields, mask)
        row |= {"mask": mask.mean().item(), "observable": anchors["observable"].item(), **variation(out.fields)}
        loss = loss + config.coupling_anchor * anchors["observable"] + config.coupling_spread * anchors["spread"]
    if out.routing is not None:
        row |= routing_row(out.routing, labels)
    return loss, row


def coupling_row(
    adapter: PilaAdapter, out: PilaOutput, result: CouplingLoss, velocity: Tensor, sigma: Tensor
) -> dict[str, float]:
    """Columns of the log: errors, size of the correction, every residual, and each category's by noise level."""
    law, gate = result.physics, wide(adapter.gate(sigma))
    row = {"flow": result.flow.item(), "base": result.base.item(), "physics": law.loss.item(), "samples": law.samples}
    row["ratio"] = ((gate * out.delta).norm() / velocity.norm()).item()
    row |= {name: value.mean().item() for name, value in law.terms.items()}
    for category, (levels, residuals) in law.judged.items():
        for name, low, high in SIGMA_RANGES:
            inside = (levels >= low) & (levels < high)
            if inside.any():
                row[f"{category} at sigma {name}"] = residuals[inside].mean().item()
    return row


def routing_row(routing: Routing, labels: Tensor) -> dict[str, float]:
    """Columns of the log: mean weight of each expert, weight without a label, label recall, and which experts ran together."""
    weights, together = routing.weights.detach(), coactivation(routing)
    row = {f"route {name}": value for name, value in zip(CATEGORIES, weights.mean(dim=0).tolist())}
    row["off_label"] = (weights * (labels == 0)).sum(dim=1).mean().item()
    row["recall"] = label_recall(routing, labels).item()
    return row | {f"{CATEGORIES[a]} + {CATEGORIES[b]}": together[a, b].item() for a, b in PAIRS}


def anchors_of(run: PilaRun, batch: Batch, fields: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """What ties the fields to the clip beside the laws: the flow target, and guards against fields that are constant."""
    observable = observable_loss(fields["u"], batch.flow, batch.confidence, run.average)
    return {"observable": observable, "spread": sum(spread_guards(fields, mask).values())}


@torch.no_grad()
def variation(fields: Mapping[str, Tensor]) -> dict[str, float]:
    """Standard deviation of each field over space and time, in its units; mean over channels and clips: columns of the log."""
    return {f"std {name}": value.flatten(2).std(dim=2).mean().item() for name, value in fields.items()}


FORMULAS: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"A": stage_a, "B": stage_b, "C": stage_c}
"""The loss of each stage, by the first letter of its name."""
