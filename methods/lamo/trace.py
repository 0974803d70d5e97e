"""Records of Motion Prior Guidance, one for each evaluation of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """Record of guidance in one evaluation of the denoiser. Tensors hold one value per sample, `B`."""

    index: int
    """The sampler's step, 0 at the noisy end."""
    count: int
    """Number of steps that the sampler takes in all."""
    sigma: Tensor
    """The sampler's noise level."""
    active: bool
    """Whether the step lies in the guided window."""
    loss_before: Tensor
    """L_guide (eq 8) of the denoised estimate as the backbone gave it."""
    loss_after: Tensor | None
    """L_guide of the edited estimate; None where it was not measured."""
    edit_ratio: Tensor
    """|edit| / |x0|, Euclidean norms over a sample."""
    share: Tensor
    """The step as a share of the largest one that cannot overshoot (`bound.stable_step`); above 1 it may
    overshoot."""
    bounded: Tensor
    """Whether the bound shortened the paper's step, bool."""


@dataclass(kw_only=True)
class GuidanceTrace:
    """Collects a TraceRow per evaluation of the last run. Costs nothing but the norm unless
    `measure_after`."""

    measure_after: bool = False
    """Evaluate f a second time per step for L_guide after the edit, and in the steps outside the guided
    window."""
    rows: list[TraceRow] = field(default_factory=list)
    """The rows of the last run, in the order of evaluation."""
    runs: int = 0
    """Sampler runs that began so far."""

    def begin(self) -> None:
        """Forgets the rows of the last run."""
        self.rows.clear()
        self.runs += 1
