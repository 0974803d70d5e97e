"""Settings of the objectives: one dataclass per kind, with the papers' values as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt

from ..settings import Count, NotNegative, Number, Positive


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every objective."""

    weight: NotNegative
    """Factor of the loss."""
    start: Number = 0
    """First step on which it counts."""
    ramp: Number = 0
    """Steps over which the weight rises from 0 after `start`."""
    stop: Number = 0
    """Step from which it no longer counts; 0: never."""

    def weight_at(self, step: int) -> float:
        """The factor on a step, counted from 0."""
        if step < self.start or (self.stop and step >= self.stop):
            return 0.0
        return self.weight * (min(1.0, (step - self.start + 1) / self.ramp) if self.ramp else 1.0)


@dataclass(frozen=True, kw_only=True)
class DriftSettings(Settings):
    """LaMo's motion drift (eqs 4-6) and the variants of its table 4."""

    weight: NotNegative = 0.4
    """lambda_drift."""
    lag: Count = 2
    """tau, latent frames. The paper's ablation: 1."""
    target: Literal["mean", "dense"] = "mean"
    """"mean": drift of the spatial mean. "dense": the latent change at every position."""
    scale: Literal["relative", "raw"] = "relative"
    """"relative": divided by the target's own length. "raw": a plain squared difference."""
    eps: NotNegative = 1.0
    """Epsilon of eq 5, as a share of the median |mu*|^2 of the clips trained on: at 1 a pair of median drift
    counts half."""


@dataclass(frozen=True, kw_only=True)
class AlignSettings(Settings):
    """Alignment of a block with a teacher."""

    weight: NotNegative = 0.5
    """lambda."""
    block: Count = 18
    """Number of the transformer block whose output is aligned, counted from 1."""
    teacher: Literal["videomae", "vjepa2", "toy_videomae", "toy_vjepa2", "toy_oracle"] = "videomae"
    """Name of the teacher."""
    source: str | None = None
    """Hub id, folder or file of its weights; None for the usual ones."""
    stride: Count = 3
    """Tokens along a side of the teacher's patch: kernel and stride of the projector's convolution in
    space."""
    hidden: Count = 2048
    """Width of the projector's MLP."""
    grid: Literal["teacher", "tokens"] = "teacher"
    """"teacher": the tokens are brought to the teacher's grid, as in the papers. "tokens": where the
    teacher's is finer, its features are averaged over what a token (after the stride) covers, for a teacher
    whose patch is smaller than a token's."""
    centre: bool = False
    """Takes each place's mean over the clip's time off the teacher's features, so that only what changes is
    compared."""


@dataclass(frozen=True, kw_only=True)
class RepaSettings(AlignSettings):
    """REPA: cosine of matched tokens."""


@dataclass(frozen=True, kw_only=True)
class TrdSettings(AlignSettings):
    """VideoREPA's token relation distillation."""

    margin: NotNegative = 0.1
    """Differences below it count as none."""
    pooled: bool = True
    """One mean over all pairs, as in VideoREPA's code, instead of the spatial plus the temporal mean."""


@dataclass(frozen=True, kw_only=True)
class SoftTrdSettings(AlignSettings):
    """MoAlign's stage 2."""

    decay: Annotated[float, Gt(0)] = 10.0
    """tau of the temporal weights, feature frames; inf for none."""
    motion_head: str | None = None
    """File of stage 1 (`latent-physics motion-head`); None aligns with the teacher's own features."""


@dataclass(frozen=True, kw_only=True)
class TsaSettings(AlignSettings):
    """TSA."""

    temperature: Positive = 0.1
    """tau of the softmax."""


@dataclass(frozen=True, kw_only=True)
class MtsaSettings(TsaSettings):
    """M-TSA."""

    keep: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of the tokens of a frame that count as moving."""


@dataclass(frozen=True, kw_only=True)
class PdaSettings(AlignSettings):
    """LDO's predictive dynamics alignment."""

    teacher: Literal["vjepa2", "toy_vjepa2"] = "vjepa2"
    """A world model with a predictor."""
    context: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of a window that the world model sees before it forecasts the rest."""
    window: Count = 16
    """Frames of the window that slides over the clip."""
    decay: Annotated[float, Gt(0)] = 10.0
    """As in soft-TRD."""
