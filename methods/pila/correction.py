"""The adapter as a correction with an artist's settings: which branch of CFG, which steps, how strong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..labels.taxonomy import CATEGORIES
from ..step import SamplingStep
from . import bank as banks
from .adapter import SMALLEST_SIGMA, PilaAdapter
from .trace import PilaTrace

BRANCHES = ("conditional", "both", "guided")
"""Subject of the correction: the prompt's prediction before CFG mixes, both predictions before it, or what
CFG made of them."""
STAGES = ("any", "high noise", "low noise")
WAN22_BOUNDARY = 0.875
"""Noise level at which Wan 2.2's high-noise text-to-video model hands over to its low-noise one."""
WAN22_I2V_BOUNDARY = 0.9
"""The same for image to video."""


@dataclass(kw_only=True)
class PilaSettings:
    """Settings of an adapter while sampling."""

    labels: Tensor | None = None
    """Label prior, `8` or `B 8` in [0, 1]; None leaves the choice to the router."""
    strength: float = 1.0
    """Factor on the correction; 0 leaves sampling bit-identical."""
    branch: str = "conditional"
    """The one of `BRANCHES` that is corrected. The adapter was fitted to the prompt's prediction; CFG then
    carries the correction along, so that a strength means the same at every CFG."""
    top_k: int | None = None
    """Experts per sample; None takes the file's."""
    sigma_floor: float | None = None
    """Share of the correction applied at pure noise; None takes the file's."""
    start: float = 0.0
    """Share of the sampler's steps after which the correction begins."""
    end: float = 1.0
    """Share of the sampler's steps after which it ends."""
    stage: str = "any"
    """For models split by noise (Wan 2.2 14B): act "any"where, only at "high noise" or only at "low
    noise"."""
    boundary: float = WAN22_BOUNDARY
    """The noise level that divides the stages."""
    trace: PilaTrace | None = None
    """Where to record; None records nothing."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"the step range is {self.start} to {self.end}; it must satisfy 0 <= start <= end <= 1."
            )
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.branch not in BRANCHES:
            raise ValueError(f"branch is {self.branch!r}; it must be one of {', '.join(BRANCHES)}.")
        if self.labels is not None and self.labels.shape[-1] != len(CATEGORIES):
            raise ValueError(
                f"the labels have shape {tuple(self.labels.shape)}; they must be (8,) or (B, 8)."
            )


class PilaCorrection:
    """`PilaAdapter.apply_to` where and as the settings say."""

    def __init__(self, adapter: PilaAdapter, settings: PilaSettings | None = None) -> None:
        self.adapter, self.settings = adapter, settings or PilaSettings()

    @property
    def branch(self) -> str:
        """The prediction that a sampler hands to `correct`; see `BRANCHES`."""
        return self.settings.branch

    def reset(self) -> None:
        """Forgets the last run. Called when a sampler starts."""
        if self.settings.trace is not None:
            self.settings.trace.clear()

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a latent shape (B, C, T, H, W) the adapter cannot correct."""
        channels = self.adapter.config.channels
        if len(shape) != 5 or shape[1] != channels:
            raise ValueError(
                f"the latent has shape {tuple(shape)}; this PILA adapter needs (B, {channels}, T, H, W)."
            )
        if min(shape[3:]) < 3:
            raise ValueError(f"the latent is {shape[4]}x{shape[3]}; PILA's differences need at least 3x3.")

    def check_condition(self, size: int) -> None:
        """Raises ValueError for a prompt embedding of a width the adapter cannot read."""
        if size != self.adapter.config.cond_dim:
            raise ValueError(
                f"the prompt embedding has {size} values; this PILA adapter reads "
                f"{self.adapter.config.cond_dim}."
            )

    def memory_required(self, shape: tuple[int, ...]) -> int:
        """Bytes of activations in float32 for one sample of a latent's shape, times the batch."""
        config = self.adapter.config
        widest = (
            2 * config.hidden + banks.BANK_CHANNELS + config.channels
        )  # the input of an expert or of the decoder
        updates = config.top_k if self.settings.top_k is None else self.settings.top_k
        alive = widest + 4 * config.hidden + (4 + updates) * banks.BANK_CHANNELS + 4 * config.channels
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
        """`B C T H W` in x0's dtype. Strength 0 and an untrained adapter give x0 back bit for bit. Raises as
        `apply_to`."""
        if not self.acts_at(step):
            return x0
        s = self.settings
        corrected = self.adapter.apply_to(
            x0, step, s.labels, top_k=s.top_k, floor=s.sigma_floor, strength=s.strength
        )
        if s.trace is not None:
            s.trace.record(step, x0, corrected)
        return corrected.x0
