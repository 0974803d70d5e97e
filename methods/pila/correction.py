"""The adapter as a correction with an artist's settings, a record of what it did, and maps of where experts act."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..labels.taxonomy import CATEGORIES
from ..step import SamplingStep
from . import bank as banks
from .adapter import SMALLEST_SIGMA, PilaAdapter

STAGES = ("any", "high noise", "low noise")
WAN22_BOUNDARY = 0.875
"""Noise level at which Wan 2.2's high-noise model hands over to its low-noise model."""


@dataclass
class PilaSnapshot:
    """What expert maps need of one sampling step, on the CPU."""

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

    def begin(self, step: SamplingStep) -> None:
        """Starts over where a new run begins: the step's number went back or the noise went up."""
        if self.index and (step.index < self.index[-1] or float(step.sigma.max()) > self.sigma[-1] + 1e-6):
            self.clear()

    def wants_snapshot(self, step: SamplingStep) -> bool:
        """True for about four evenly spaced steps of the run, the last one included."""
        if not self.keep_snapshots:
            return False
        spacing = max(1, step.count // 4)
        return (step.count - 1 - step.index) % spacing == 0 and all(kept.index != step.index for kept in self.snapshots)


@dataclass(kw_only=True)
class PilaSettings:
    """How an adapter is applied while sampling."""

    labels: Tensor | None = None
    """Label prior, `8` or `B 8` in [0, 1]; None leaves the choice to the router."""
    strength: float = 1.0
    """Factor on the correction; 0 leaves sampling bit-identical."""
    top_k: int | None = None
    """Experts per sample; None takes the file's."""
    sigma_floor: float | None = None
    """What is left of the correction at pure noise; None takes the file's."""
    start: float = 0.0
    """Share of the sampler's steps after which the correction begins."""
    end: float = 1.0
    """Share of the sampler's steps after which it ends."""
    stage: str = "any"
    """For models split by noise (Wan 2.2 14B): act "any"where, only at "high noise" or only at "low noise"."""
    boundary: float = WAN22_BOUNDARY
    """The noise level that divides the stages."""
    trace: PilaTrace | None = None
    """Where to record; None records nothing."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(f"the step range is {self.start} to {self.end}; it must satisfy 0 <= start <= end <= 1.")
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.labels is not None and self.labels.shape[-1] != len(CATEGORIES):
            raise ValueError(f"the labels have shape {tuple(self.labels.shape)}; they must be (8,) or (B, 8).")


class PilaCorrection:
    """`correct(x0, step)`: x0' = x0 - gain * g(sigma) * dv, because x0 = z - gain * v and v' = v + g(sigma) dv (Eq 10)."""

    def __init__(self, adapter: PilaAdapter, settings: PilaSettings | None = None) -> None:
        self.adapter, self.settings = adapter, settings or PilaSettings()

    def reset(self) -> None:
        """Forgets the last run. Called when a sampler starts."""
        if self.settings.trace is not None:
            self.settings.trace.clear()

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a latent shape (B, C, T, H, W) the adapter cannot correct."""
        channels = self.adapter.config.channels
        if len(shape) != 5 or shape[1] != channels:
            raise ValueError(f"the latent has shape {tuple(shape)}; this PILA adapter needs (B, {channels}, T, H, W).")
        if min(shape[3:]) < 3:
            raise ValueError(f"the latent is {shape[4]}x{shape[3]}; PILA's differences need at least 3x3.")

    def check_condition(self, size: int) -> None:
        """Raises ValueError for a prompt embedding of a width the adapter cannot read."""
        if size != self.adapter.config.cond_dim:
            raise ValueError(f"the prompt embedding has {size} values; this PILA adapter reads {self.adapter.config.cond_dim}.")

    def memory_required(self, shape: tuple[int, ...]) -> int:
        """Bytes of activations in float32 for one sample of a latent's shape, times the batch."""
        config = self.adapter.config
        widest = 2 * config.hidden + banks.BANK_CHANNELS + config.channels  # the input of an expert or of the decoder
        alive = widest + 4 * config.hidden + 4 * banks.BANK_CHANNELS + 4 * config.channels
        return 4 * alive * math.prod(shape) // shape[1]

    def acts_at(self, step: SamplingStep) -> bool:
        """Whether the step lies in the chosen range and stage, and the correction can do anything."""
        s = self.settings
        sigma = float(step.sigma.max())
        if s.strength == 0 or sigma < SMALLEST_SIGMA:
            return False
        position = step.index / max(1, step.count)
        if not s.start <= position < s.end:
            return False
        return s.stage == "any" or (sigma >= s.boundary) == (s.stage == "high noise")

    @torch.no_grad()
    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """`B C T H W` in x0's dtype. Strength 0 and an untrained adapter give x0 back bit for bit.

        Raises ValueError for a latent the adapter does not fit and for one that holds NaN or infinity.
        """
        if not self.acts_at(step):
            return x0
        self.adapter.check_latent(x0)
        if not torch.isfinite(x0).all():
            raise ValueError("the latent holds NaN or infinite values before the PILA correction.")
        s, adapter = self.settings, self.adapter
        estimate = x0.float()
        sigma = per_sample(step.sigma, x0)
        velocity = (step.noisy.float() - estimate) / wide(sigma)
        cond = None if step.cond is None else per_sample(step.cond, x0)
        out = adapter(estimate, velocity, sigma, cond, s.labels, top_k=s.top_k)
        gate = adapter.gate(sigma, s.sigma_floor)
        if s.trace is not None:
            self._record(s.trace, step, x0, out, gate, velocity)
        gain = per_sample(step.gain, x0)
        return (estimate - s.strength * wide(gain * gate) * out.delta).to(x0.dtype)

    def _record(self, trace: PilaTrace, step: SamplingStep, x0: Tensor, out: object, gate: Tensor, velocity: Tensor) -> None:
        trace.begin(step)
        trace.index.append(step.index)
        trace.sigma.append(float(step.sigma.max()))
        weights = torch.zeros(len(CATEGORIES)) if out.routing is None else out.routing.weights.float().mean(dim=0)
        trace.weights.append(weights.tolist())
        ratio = self.settings.strength * (wide(gate) * out.delta).norm() / velocity.norm().clamp(min=1e-12)
        trace.ratio.append(float(ratio))
        if trace.wants_snapshot(step):
            values = (step.noisy, x0, step.sigma, step.cond)
            kept = [None if value is None else value.detach().float().cpu().clone() for value in values]
            trace.snapshots.append(PilaSnapshot(step.index, *kept))


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """A per-sample value in float32 on the latent's device, repeated where one stands for the whole batch."""
    value = value.to(device=like.device, dtype=torch.float32)
    value = value.reshape(1) if value.ndim == 0 else value
    return value.expand(like.shape[0], *value.shape[1:]) if value.shape[0] == 1 else value


def wide(vector: Tensor) -> Tensor:
    """`B` -> `B 1 1 1 1`."""
    return vector[:, None, None, None, None]


@torch.no_grad()
def expert_maps(adapter: PilaAdapter, snapshot: PilaSnapshot, labels: Tensor | None = None, top_k: int | None = None) -> Tensor:
    """Where each expert acts: channel mean of |D(F + weight * update) - D(F)|, `B 8 T H W`, zero for experts that did not run.

    Raises ValueError for an adapter without experts.
    """
    if not hasattr(adapter, "experts"):
        raise ValueError("this adapter was trained without experts; there is nothing to map.")
    device = next(adapter.parameters()).device
    x0 = snapshot.x0.to(device)
    sigma = per_sample(snapshot.sigma, x0)
    velocity = (snapshot.noisy.to(device) - x0) / wide(sigma)
    cond = None if snapshot.cond is None else per_sample(snapshot.cond, x0)
    out = adapter(x0, velocity, sigma, cond, labels, top_k=top_k, keep_updates=True)
    base = adapter.decode_bank(out, out.bank, velocity)
    maps = x0.new_zeros(x0.shape[0], len(CATEGORIES), *x0.shape[2:])
    for index, (samples, update) in out.updates.items():
        bank = out.bank.index_add(0, samples, wide(out.routing.weights[samples, index]) * update)
        change = (adapter.decode_bank(out, bank, velocity) - base).abs().mean(dim=1)
        maps[samples, index] = change[samples]
    return maps.cpu()
