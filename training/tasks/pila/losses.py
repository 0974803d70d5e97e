"""The loss of each stage of PILA's training (arXiv 2606.04737, section B.3), and what is logged of it.

The formulas take the run, for its adapter, settings and step, and what `PilaRun.noised` made of the clips.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....methods.labels.taxonomy import random_labels
from ....methods.pila import CATEGORIES, PilaAdapter
from ....methods.pila.losses.masks import blended_mask, bootstrap_mask, physical_mask
from ....methods.pila.losses.objective import coupling_loss, largest_sigma, physics_loss, ramp
from ....methods.pila.losses.recovery import observable_loss, phase_weights, recovery_losses, spread_guard
from .data import Batch

if TYPE_CHECKING:
    from .task import PilaRun


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
    config, ablation = run.config, run.adapter_config.ablation
    labels = batch.labels
    if ablation.random_label:
        labels = run.share(random_labels(run.accelerator.gather(labels), generator))
    kept = run.share(torch.rand(run.processes * len(sigma), 1, generator=generator) >= config.drop_prompt).to(run.device)
    fade = ramp(run.step, config.condition_warmup) * kept.float()
    out = run.adapter(estimate, velocity, sigma, batch.cond, labels, ramp=fade, keep_updates=True)
    mask = None if out.refined is None else mask_of(run, velocity, estimate, run.adapter.read(out.refined.detach()), labels)
    limit = largest_sigma(run.step, config.physics_warmup)
    law = physics_loss(run.adapter, out, labels, sigma, mask=mask, sigma_max=limit, weights=run.weights, synchronise=run.average)
    run.weights.update(law.terms, run.average)
    result = coupling_loss(
        run.adapter, out, velocity, target, sigma, law, step=run.step,
        physics_weight=config.physics_weight, physics_warmup=config.physics_warmup,
        correction_weight=config.correction_weight,
    )  # fmt: skip
    gate = run.adapter.gate(sigma)[:, None, None, None, None]
    row = {
        "flow": result.flow.item(),
        "base": result.base.item(),
        "physics": law.loss.item(),
        "samples": law.samples,
        "regulariser": result.regulariser.item(),
        "ratio": ((gate * out.delta).norm() / velocity.norm()).item(),
    }
    loss = result.loss
    if mask is not None:
        row["mask"] = mask.mean().item()
        anchors = anchors_of(run, batch, out.fields, mask)
        row |= {"observable": anchors["observable"].item(), **variation(out.fields)}
        loss = loss + config.coupling_anchor * anchors["observable"] + config.coupling_spread * anchors["spread"]
    row |= {name: value.mean().item() for name, value in law.terms.items()}
    if out.routing is not None:
        weights = out.routing.weights.detach()
        row |= {f"route {name}": value for name, value in zip(CATEGORIES, weights.mean(dim=0).tolist())}
        row["off_label"] = (weights * (labels == 0)).sum(dim=1).mean().item()
    return loss, row


def anchors_of(run: PilaRun, batch: Batch, fields: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """What ties the fields to the clip beside the laws: the flow target, and guards against fields that are constant."""
    observable = observable_loss(fields["u"], batch.flow, batch.confidence, run.average)
    guarded = (fields["T"], fields["psi"], mask * fields["j"])
    return {"observable": observable, "spread": sum(spread_guard(field) for field in guarded)}


@torch.no_grad()
def variation(fields: dict[str, Tensor]) -> dict[str, float]:
    """Standard deviation of each field over space and time, in its units; mean over channels and clips: columns of the log."""
    return {f"std {name}": value.flatten(2).std(dim=2).mean().item() for name, value in fields.items()}


FORMULAS: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"A": stage_a, "B": stage_b, "C": stage_c}
"""The loss of each stage, by the first letter of its name."""
