"""The routed physics objective and the full training loss (PILA Eq 6, 7, 11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from ...labels.taxonomy import CATEGORIES
from ..adapter import PilaAdapter, PilaOutput
from ..experts import RECIPES
from ..residuals import TERMS, ResidualSettings, residual_terms

TERM_NAMES: tuple[str, ...] = tuple(
    f"{category}/{name}" for category in CATEGORIES for name in TERMS[category]
)
PHYSICS_WEIGHT = 0.30
PHYSICS_WARMUP = 2000
FIRST_SIGMA = 0.40


def ramp(step: int, length: int) -> float:
    """0 at step 0, 1 from `length` on."""
    return 1.0 if length <= 0 else min(1.0, step / length)


def largest_sigma(step: int, warmup: int = PHYSICS_WARMUP) -> float:
    """The noisiest samples that physics looks at: 0.40 at the start, 1.00 after the warm-up."""
    return FIRST_SIGMA + (1.0 - FIRST_SIGMA) * ramp(step, warmup)


class AdaptiveWeights(nn.Module):
    """w of Eq 6: within a category, terms that are usually small get more weight, usually large ones less, by
    at most 2.

    w = clamp(median of the running means / own running mean, 0.5, 2), detached; the paper gives no rule, this
    one is ours. The median of an even number is the mean of the middle two: `torch.median` takes the lower
    one, with which the smaller of two terms never gets more than 1. `synchronise` averages a tensor over the
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
        middle = median(means)
        weights = {}
        for name, i in zip(names, indices):
            ratio = middle / max(float(self.mean[i]), 1e-8) if self.seen[i] > 0 else 1.0
            weights[name] = min(2.0, max(0.5, ratio))
        return weights


Laws = Callable[..., dict[str, Tensor]]
"""(fields, category, mask=..., settings=...) -> residuals per sample: `residual_terms`, or an ablation of
it."""


@dataclass
class PhysicsLoss:
    """The routed residual objective of a batch."""

    loss: Tensor
    """Scalar; 0 where no sample counts."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Residuals by "Category/term", per contributing sample, detached: for logs and adaptive weights."""
    judged: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per category: the noise level of each contributing sample, and the mean of its residuals."""
    samples: float = 0
    """Number of samples that counted; the mean over the processes of a run."""


def category_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """L_k of Eq 6, normalised by the weights, per sample; a term that is not among them has weight 1."""
    shares = {name: weights.get(name, 1.0) for name in terms}
    return sum(shares[name] * term for name, term in terms.items()) / sum(shares.values())


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
    laws: Laws = residual_terms,
    synchronise: Callable[[Tensor], Tensor] | None = None,
) -> PhysicsLoss:
    """Eq 7: residuals of experts that are both selected and labelled, weighted by the renormalised routing
    weights.

    The routing weights are detached: a live one would teach the router to prefer whichever law is easiest.
    Samples without such an expert, or noisier than `sigma_max`, do not count at all. `synchronise` averages a
    tensor over the processes of a run: with it, the mean of their losses is the mean over all their samples
    that count, however they are spread.
    """
    result = PhysicsLoss(out.delta.sum() * 0.0)
    if out.routing is None:
        return result
    active = out.routing.selected & (labels > 0) & (sigma <= sigma_max)[:, None]
    share = out.routing.weights.detach() * active
    share = share / share.sum(dim=1, keepdim=True).clamp(min=1e-12)
    samples = active.any(dim=1).sum().float()
    result.samples = float(samples if synchronise is None else synchronise(samples))
    for index, category in enumerate(CATEGORIES):
        samples = active[:, index].nonzero()[:, 0]
        if len(samples) == 0:
            continue
        fields = adapter.read(out.expert_bank(index, samples), RECIPES[category])
        values = laws(fields, category, mask=None if mask is None else mask[samples], settings=settings)
        if not values:
            continue
        known = {
            f"{category}/{name}": term.detach() for name, term in values.items() if name in TERMS[category]
        }
        result.terms.update(known)
        result.judged[category] = sigma[samples], sum(values.values()).detach() / len(values)
        loss = category_loss(values, {} if weights is None else weights.of(category))
        result.loss = result.loss + (share[samples, index] * loss).sum() / result.samples
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
) -> CouplingLoss:
    """Eq 11: |v + g dv - (eps - x0)|^2 + lambda(step) L_phys; `target` is eps - x0.

    Nothing penalises dv, as in the paper: a penalty on the ungated dv shrinks the best correction by g^2 /
    (g^2 + its weight).
    """
    gate = adapter.gate(sigma)[:, None, None, None, None]
    velocity, target = velocity.detach().float(), target.float()
    flow = (velocity + gate * out.delta - target).square().mean()
    loss = flow + physics_weight * ramp(step, physics_warmup) * physics.loss
    return CouplingLoss(loss, flow.detach(), (velocity - target).square().mean(), physics)
