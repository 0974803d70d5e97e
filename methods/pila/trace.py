"""A record of what an adapter did while sampling, and maps of where its experts acted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..labels.taxonomy import CATEGORIES
from ..step import SamplingStep
from .adapter import Corrected, PilaAdapter, per_sample, wide


@dataclass
class PilaSnapshot:
    """Record of one sampling step for expert maps, on the CPU."""

    index: int
    noisy: Tensor
    x0: Tensor
    sigma: Tensor
    cond: Tensor | None


@dataclass
class PilaTrace:
    """A record of one sampling run: routing and size of the correction at each step it acted in."""

    keep_snapshots: bool = False
    """Also keep latents of about four steps, for expert maps."""
    index: list[int] = field(default_factory=list)
    sigma: list[float] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    """Routing weight of each of the eight experts, mean over the batch."""
    ratio: list[float] = field(default_factory=list)
    """Size of the gated correction relative to the velocity, |g dv| / |v|."""
    snapshots: list[PilaSnapshot] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets the last run."""
        for values in (self.index, self.sigma, self.weights, self.ratio, self.snapshots):
            values.clear()

    def record(self, step: SamplingStep, x0: Tensor, corrected: Corrected) -> None:
        """Adds one corrected evaluation; `x0` is the estimate before it. Starts over where a new run
        begins."""
        if self.index and (step.index < self.index[-1] or float(step.sigma.max()) > self.sigma[-1] + 1e-6):
            self.clear()
        self.index.append(step.index)
        self.sigma.append(float(step.sigma.max()))
        routing = corrected.out.routing
        weights = torch.zeros(len(CATEGORIES)) if routing is None else routing.weights.float().mean(dim=0)
        self.weights.append(weights.tolist())
        self.ratio.append(float(corrected.push.norm() / corrected.velocity.norm().clamp(min=1e-12)))
        if self._wants_snapshot(step):
            values = (step.noisy, x0, step.sigma, step.cond)
            kept = [None if value is None else value.detach().float().cpu().clone() for value in values]
            self.snapshots.append(PilaSnapshot(step.index, *kept))

    def _wants_snapshot(self, step: SamplingStep) -> bool:
        """True for about four evenly spaced steps of the run, the last one included."""
        if not self.keep_snapshots:
            return False
        spacing = max(1, step.count // 4)
        return (step.count - 1 - step.index) % spacing == 0 and all(
            kept.index != step.index for kept in self.snapshots
        )


@torch.no_grad()
def expert_maps(
    adapter: PilaAdapter, snapshot: PilaSnapshot, labels: Tensor | None = None, top_k: int | None = None
) -> Tensor:
    """Where each expert acts: channel mean of |D(F + weight * update) - D(F)|, `B 8 T H W`, zero for experts
    that did not run.

    Raises ValueError for an adapter without experts.
    """
    device = next(adapter.parameters()).device
    x0 = snapshot.x0.to(device)
    sigma = per_sample(snapshot.sigma, x0)
    velocity = (snapshot.noisy.to(device) - x0) / wide(sigma)
    cond = None if snapshot.cond is None else per_sample(snapshot.cond, x0)
    out = adapter(x0, velocity, sigma, cond, labels, top_k=top_k)
    if out.bank is None or (out.routing.selected.any() and not out.updates):
        raise ValueError("this adapter was trained without experts; there is nothing to map.")
    base = adapter.decoder(out.bank, out.cond, velocity, out.feature)
    maps = x0.new_zeros(x0.shape[0], len(CATEGORIES), *x0.shape[2:])
    for index, (samples, update) in out.updates.items():
        bank = out.bank.index_add(0, samples, wide(out.routing.weights[samples, index]) * update)
        change = (adapter.decoder(bank, out.cond, velocity, out.feature) - base).abs().mean(dim=1)
        maps[samples, index] = change[samples]
    return maps.cpu()
