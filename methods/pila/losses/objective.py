"""The routed physics objective and the full training loss (PILA Eq 6, 7, 11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...labels.taxonomy import CATEGORIES
from ..adapter import PilaAdapter, PilaOutput
from ..experts import RECIPES
from ..residuals import TERMS, ResidualSettings, residual_terms

TERM_NAMES: tuple[str, ...] = tuple(f"{category}/{name}" for category in CATEGORIES for name in TERMS[category])
PHYSICS_WEIGHT = 0.30
PHYSICS_WARMUP = 2000
CONDITION_WARMUP = 1000
FIRST_SIGMA = 0.40
CORRECTION_WEIGHT = 0.01


def ramp(step: int, length: int) -> float:
    """0 at step 0, 1 from `length` on."""
    return 1.0 if length <= 0 else min(1.0, step / length)


def largest_sigma(step: int, warmup: int = PHYSICS_WARMUP) -> float:
    """The noisiest samples that physics looks at: 0.40 at the start, 1.00 after the warm-up."""
    return FIRST_SIGMA + (1.0 - FIRST_SIGMA) * ramp(step, warmup)


class AdaptiveWeights(nn.Module):
    """w of Eq 6: within a category, terms that are usually small get more weight, usually large ones less, by at most 2.

    w = clamp(median of the running means / own running mean, 0.5, 2), detached. `synchronise` averages a tensor over the
    processes of a run. Unseen terms have weight 1.
    """

    def __init__(self, decay: float = 0.99, adaptive: bool = True) -> None:
        super().__init__()
        self.decay, self.adaptive = decay, adaptive
        self.register_buffer("mean", torch.zeros(len(TERM_NAMES)))
        self.register_buffer("seen", torch.zeros(len(TERM_NAMES)))

    @torch.no_grad()
    def update(self, terms: dict[str, Tensor], synchronise: Callable[[Tensor], Tensor] | None = None) -> None:
        """Feeds the batch means of the terms that occurred, by name "Category/term"."""
        value, present = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for name, term in terms.items():
            index = TERM_NAMES.index(name)
            value[index], present[index] = term.detach().sum(), term.numel()
        if synchronise is not None:
            value, present = synchronise(value), synchronise(present)
        value = value / present.clamp(min=1e-8)
        kept = torch.where(self.seen > 0, self.decay * self.mean + (1.0 - self.decay) * value, value)
        self.mean.copy_(torch.where(present > 0, kept, self.mean))
        self.seen.add_((present > 0).to(self.seen))

    def of(self, category: str) -> dict[str, float]:
        """The weights of one category's terms."""
        names = list(TERMS[category])
        indices = [TERM_NAMES.index(f"{category}/{name}") for name in names]
        means = [float(self.mean[i]) for i in indices if self.seen[i] > 0]
        if not self.adaptive or not means:
            return dict.fromkeys(names, 1.0)
        middle = float(torch.tensor(means).median())
        weights = {}
        for name, i in zip(names, indices):
            ratio = middle / max(float(self.mean[i]), 1e-8) if self.seen[i] > 0 else 1.0
            weights[name] = min(2.0, max(0.5, ratio))
        return weights


@dataclass
class PhysicsLoss:
    """The routed residual objective of a batch."""

    loss: Tensor
    """Scalar; 0 where no sample counts."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Residuals by "Category/term", per contributing sample, detached: for logs and adaptive weights."""
    samples: float = 0
    """How many samples counted; the mean over the processes of a run."""


def category_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """L_k of Eq 6, normalised by the weights, per sample."""
    total = sum(weights[name] for name in terms)
    return sum(weights[name] * term for name, term in terms.items()) / total


def slot_energy(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "proxy-only" ablation: one bounded L2 over the recipe's slots, per sample."""
    energy = sum(value.square().mean(dim=(1, 2, 3, 4)) for value in fields.values()) / len(fields)
    return {"slots": energy / (1.0 + energy)}


def physics_loss(
    adapter: PilaAdapter,
    out: PilaOutput,
    labels: Tensor,
    sigma: Tensor,
    *,
    mask: Tensor | None = None,
    sigma_max: float = 1.0,
    weights: AdaptiveWeights | None = None,
    settings: ResidualSettings | None = None,
    synchronise: Callable[[Tensor], Tensor] | None = None,
) -> PhysicsLoss:
    """Eq 7: residuals of experts that are both selected and labelled, weighted by the renormalised routing weights.

    Needs `keep_updates=True` in the forward pass. The routing weights are detached: a live one would teach the router to
    prefer whichever law is easiest. Samples without such an expert, or noisier than `sigma_max`, do not count at all.
    `synchronise` averages a tensor over the processes of a run: with it, the mean of their losses is the mean over all their
    samples that count, however they are spread.
    """
    ablation = adapter.config.ablation
    zero = out.delta.sum() * 0.0
    if out.routing is None or not ablation.residuals:
        return PhysicsLoss(zero)
    active = out.routing.selected & (labels > 0) & (sigma <= sigma_max)[:, None]
    share = out.routing.weights.detach() * active
    share = share / share.sum(dim=1, keepdim=True).clamp(min=1e-12)
    counted = active.any(dim=1)
    samples = counted.sum().float()
    result = PhysicsLoss(zero, samples=float(samples if synchronise is None else synchronise(samples)))
    for index, category in enumerate(CATEGORIES):
        samples = active[:, index].nonzero()[:, 0]
        if len(samples) == 0:
            continue
        fields = adapter.read(out.expert_bank(index, samples), RECIPES[category])
        if ablation.proxy_only:
            values = slot_energy(fields)
        else:
            picked = None if mask is None else mask[samples]
            values = residual_terms(fields, category, mask=picked, settings=settings, drop_families=ablation.drop_families)
            result.terms.update({f"{category}/{name}": term.detach() for name, term in values.items()})
        if not values:
            continue
        scale = weights.of(category) if weights is not None and not ablation.proxy_only else dict.fromkeys(values, 1.0)
        result.loss = result.loss + (share[samples, index] * category_loss(values, scale)).sum() / result.samples
    return result


@dataclass
class CouplingLoss:
    """The full objective of the coupling stage and its parts."""

    loss: Tensor
    flow: Tensor
    """Flow-matching error of the corrected velocity."""
    base: Tensor
    """Flow-matching error of the frozen velocity: what the correction has to beat."""
    physics: PhysicsLoss
    regulariser: Tensor
    """Mean squared correction."""


def coupling_loss(
    adapter: PilaAdapter,
    out: PilaOutput,
    velocity: Tensor,
    target: Tensor,
    sigma: Tensor,
    physics: PhysicsLoss,
    *,
    step: int,
    physics_weight: float = PHYSICS_WEIGHT,
    physics_warmup: int = PHYSICS_WARMUP,
    correction_weight: float = CORRECTION_WEIGHT,
) -> CouplingLoss:
    """Eq 11: |v + g dv - (eps - x0)|^2 + lambda(step) L_phys + 0.01 |dv|^2; `target` is eps - x0."""
    gate = adapter.gate(sigma)[:, None, None, None, None]
    velocity, target = velocity.detach().float(), target.float()
    flow = (velocity + gate * out.delta - target).square().mean()
    regulariser = out.delta.square().mean()
    loss = flow + physics_weight * ramp(step, physics_warmup) * physics.loss + correction_weight * regulariser
    return CouplingLoss(loss, flow.detach(), (velocity - target).square().mean(), physics, regulariser.detach())
