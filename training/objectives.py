"""Objectives: what may be added to the denoising loss. Each says what it needs and turns it into one number.

A recipe names objectives as words, the kind first:

    drift weight=0.4 lag=2
    mtsa weight=0.5 block=18 teacher=videomae temperature=0.1 keep=0.2
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kernels.drift import drift_loss, motion_drift
from ..methods import ldo, moalign, relational
from ..methods.weights import WeightsError, load_weights, read_info
from .backbones import Activation
from .teachers import NAMES as TEACHERS


class ObjectiveError(ValueError):
    """An objective cannot be built or used as asked. The message is one sentence for the user."""


@dataclass(kw_only=True)
class StepView:
    """What an objective is shown of one training step."""

    latent: Tensor
    """The clean latent, `B C T H W`."""
    x0: Tensor
    """The denoised estimate, with gradient."""
    signal: Tensor
    """alpha_bar or (1 - sigma)^2 per sample, `B`."""
    taps: Mapping[int, Activation] = field(default_factory=dict)
    """Block outputs by block number, with gradient."""
    features: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Teachers' tensors by `TeacherNeed.key`."""


@dataclass(frozen=True, kw_only=True)
class TeacherNeed:
    """Which teacher's features an objective wants."""

    name: str
    source: str | None = None
    context: float = 0.0
    """Share of the feature frames a world model sees before it predicts the rest; 0 asks for plain features."""

    @property
    def key(self) -> str:
        """Its name in `StepView.features` and in the cache."""
        parts = [self.name, self.source or "default"] + ([f"context {self.context:g}"] if self.context else [])
        return ", ".join(parts)


# -- settings ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every objective has."""

    weight: float
    """Factor of the loss."""
    start: int = 0
    """First step on which it counts."""
    ramp: int = 0
    """Steps over which the weight rises from 0 after `start`."""
    stop: int = 0
    """Step from which it no longer counts; 0: never."""

    def weight_at(self, step: int) -> float:
        """The factor on a step, counted from 0."""
        if step < self.start or (self.stop and step >= self.stop):
            return 0.0
        return self.weight * (min(1.0, (step - self.start + 1) / self.ramp) if self.ramp else 1.0)


@dataclass(frozen=True, kw_only=True)
class DriftSettings(Settings):
    """LaMo's motion drift (eqs 4-6) and the variants of its table 4."""

    weight: float = 0.4
    """lambda_drift."""
    lag: int = 2
    """tau, latent frames. The paper's ablation: 1."""
    target: str = "mean"
    """"mean": drift of the spatial mean. "dense": the latent change at every position."""
    scale: str = "relative"
    """"relative": divided by the target's own length. "raw": a plain squared difference."""


@dataclass(frozen=True, kw_only=True)
class AlignSettings(Settings):
    """Alignment of a block with a teacher."""

    weight: float = 0.5
    """lambda."""
    block: int = 18
    """The transformer block whose output is aligned."""
    teacher: str = "videomae"
    """Name of the teacher."""
    source: str | None = None
    """Where its weights are; None for the usual ones."""
    stride: int = 3
    """Stride of the projector's convolution in space."""
    hidden: int = 2048
    """Width of the projector's MLP."""


@dataclass(frozen=True, kw_only=True)
class RepaSettings(AlignSettings):
    """REPA: cosine of matched tokens."""


@dataclass(frozen=True, kw_only=True)
class TrdSettings(AlignSettings):
    """VideoREPA's token relation distillation."""

    margin: float = 0.1
    """Differences below it count as none."""
    pooled: bool = True
    """One mean over all pairs, as in VideoREPA's code, instead of the spatial plus the temporal mean."""


@dataclass(frozen=True, kw_only=True)
class SoftTrdSettings(AlignSettings):
    """MoAlign's stage 2."""

    decay: float = 10.0
    """tau of the temporal weights, feature frames; inf for none."""
    motion_head: str | None = None
    """File of stage 1 (`latent-physics motion-head`); None aligns with the teacher's own features."""


@dataclass(frozen=True, kw_only=True)
class TsaSettings(AlignSettings):
    """TSA."""

    temperature: float = 0.1
    """tau of the softmax."""


@dataclass(frozen=True, kw_only=True)
class MtsaSettings(TsaSettings):
    """M-TSA."""

    keep: float = 0.2
    """Share of the tokens of a frame that count as moving."""


@dataclass(frozen=True, kw_only=True)
class PdaSettings(AlignSettings):
    """LDO's predictive dynamics alignment."""

    teacher: str = "vjepa2"
    """A world model with a predictor."""
    context: float = 0.5
    """Share of the feature frames the world model sees."""
    decay: float = 10.0
    """As in soft-TRD."""


# -- objectives ----------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """A named loss. Its parameters, if any (a projector), train along and stay out of the exported file."""

    kind: ClassVar[str]
    blocks: tuple[int, ...] = ()
    teachers: tuple[TeacherNeed, ...] = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, view: StepView) -> Tensor:
        """The unweighted loss, a scalar."""
        raise NotImplementedError


class DriftObjective(Objective):
    """LaMo eq 6 without lambda: batch mean of the signal power times the drift loss."""

    kind = "drift"

    def __init__(self, settings: DriftSettings, **_: Any) -> None:
        super().__init__(settings)

    def forward(self, view: StepView) -> Tensor:
        s: DriftSettings = self.settings
        if view.latent.shape[2] <= s.lag:
            raise ObjectiveError(
                f"clips of {view.latent.shape[2]} latent frames have no drift at lag {s.lag}; use longer clips or a smaller lag."
            )
        return view.signal.mean() * drift_variant(view.x0, view.latent, s.lag, s.target, s.scale)


def drift_variant(x0: Tensor, latent: Tensor, lag: int, target: str, scale: str, eps: float = 1e-6) -> Tensor:
    """The drift loss (LaMo eq 5) and its ablations. "mean" and "relative" is the method itself.

    "dense" compares the change at every position, norms over C, H and W; "raw" leaves the normalisation out. Scalar.
    """
    if (target, scale) == ("mean", "relative"):
        return drift_loss(x0, latent, lag, eps)
    change = (
        (lambda z: (z[:, :, lag:] - z[:, :, :-lag]).float())
        if target == "dense"
        else (lambda z: motion_drift(z, lag)[..., None, None])
    )
    ours, theirs = change(x0), change(latent).detach()
    error, size = ((value**2).sum(dim=(1, 3, 4)) for value in (ours - theirs, theirs))
    return (error / (size + eps) if scale == "relative" else error).mean()


class AlignObjective(Objective):
    """Base of the objectives that compare a block with a teacher."""

    def __init__(self, settings: AlignSettings, *, width: int, channels: int) -> None:
        """width: of the backbone's tokens; channels: of the teacher's features."""
        super().__init__(settings)
        self.blocks = (settings.block,)
        self.teachers = (TeacherNeed(name=settings.teacher, source=settings.source),)
        self.projector = self.make_projector(width, channels)

    def make_projector(self, width: int, channels: int) -> nn.Module:
        """The trainable map onto the teacher's grid."""
        return relational.TokenProjector(width, channels, self.settings.hidden, self.settings.stride)

    def teacher_volume(self, view: StepView) -> Tensor:
        """Teacher features `B C F H W`."""
        return view.features[self.teachers[0].key]["features"]

    def pair(self, view: StepView) -> tuple[Tensor, Tensor, relational.Grid]:
        """Projected student tokens and teacher tokens, `B N C`, on the teacher's grid."""
        volume = self.teacher_volume(view)
        return self.project(view, tuple(volume.shape[2:])), relational.to_tokens(volume), tuple(volume.shape[2:])

    def project(self, view: StepView, target: relational.Grid) -> Tensor:
        """Student tokens on `target`."""
        tap = view.taps[self.settings.block]
        tokens, grid = tap.tokens, tap.grid
        if grid[0] > 1:  # the teacher does not see the video frame that the first latent frame stands for
            tokens, grid = relational.without_first_frame(tokens, grid)
        return self.projector(tokens, grid, target)


class RepaObjective(AlignObjective):
    """`methods.relational.repa`."""

    kind = "repa"

    def forward(self, view: StepView) -> Tensor:
        student, teacher, _ = self.pair(view)
        return relational.repa(student, teacher)


class TrdObjective(AlignObjective):
    """`methods.relational.trd`."""

    kind = "trd"

    def forward(self, view: StepView) -> Tensor:
        s: TrdSettings = self.settings
        return relational.trd(*self.pair(view), margin=s.margin, pooled=s.pooled)


class SoftTrdObjective(AlignObjective):
    """`methods.relational.soft_trd`, onto a motion subspace where there is one."""

    kind = "soft_trd"

    frozen: tuple[moalign.MotionCompressor, ...] = ()
    """The compressor, in a tuple so that it is neither trained nor saved with the projector."""

    def make_projector(self, width: int, channels: int) -> nn.Module:
        s: SoftTrdSettings = self.settings
        if s.motion_head is None:
            return super().make_projector(width, channels)
        compressor = load_compressor(s.motion_head, channels)
        self.frozen = (compressor,)
        return moalign.MotionProjector(width, compressor.pointwise.out_channels, compressor.temporal.out_channels, s.stride)

    def teacher_volume(self, view: StepView) -> Tensor:
        volume = super().teacher_volume(view)
        with torch.no_grad():
            for compressor in self.frozen:
                volume = compressor.to(volume.device)(volume.float())
        return volume

    def forward(self, view: StepView) -> Tensor:
        return relational.soft_trd(*self.pair(view), decay=self.settings.decay)


class TsaObjective(AlignObjective):
    """`methods.relational.tsa`."""

    kind = "tsa"

    def forward(self, view: StepView) -> Tensor:
        return relational.tsa(*self.pair(view), temperature=self.settings.temperature)


class MtsaObjective(AlignObjective):
    """`methods.relational.mtsa`; the mask comes from the video at the teacher's size."""

    kind = "mtsa"

    def forward(self, view: StepView) -> Tensor:
        s: MtsaSettings = self.settings
        mask = relational.top_share(view.features[self.teachers[0].key]["exact_saliency"], s.keep)
        return relational.mtsa(*self.pair(view), mask, temperature=s.temperature)


class PdaObjective(AlignObjective):
    """`methods.ldo.pda_loss` on the frames that the world model predicts."""

    kind = "pda"

    def __init__(self, settings: PdaSettings, **sizes: int) -> None:
        super().__init__(settings, **sizes)
        self.teachers = (TeacherNeed(name=settings.teacher, source=settings.source, context=settings.context),)

    def forward(self, view: StepView) -> Tensor:
        s: PdaSettings = self.settings
        predicted = view.features[self.teachers[0].key]["features"]
        later, height, width = predicted.shape[2:]
        seen = int(view.features[self.teachers[0].key]["exact_seen"].flatten()[0])
        student = self.project(view, (seen + later, height, width))[:, seen * height * width :]
        return ldo.pda_loss(
            student, relational.to_tokens(predicted), (later, height, width), None if math.isinf(s.decay) else s.decay
        )


def seen_of(frames: int, share: float) -> int:
    """Feature frames a world model sees of `frames`: at least one, and at least two left to predict."""
    return max(1, min(frames - 2, round(frames * share)))


KINDS: dict[str, tuple[type[Settings], type[Objective]]] = {
    "drift": (DriftSettings, DriftObjective),
    "repa": (RepaSettings, RepaObjective),
    "trd": (TrdSettings, TrdObjective),
    "soft_trd": (SoftTrdSettings, SoftTrdObjective),
    "tsa": (TsaSettings, TsaObjective),
    "mtsa": (MtsaSettings, MtsaObjective),
    "pda": (PdaSettings, PdaObjective),
}
"""Kind -> settings and objective."""


# -- from words ----------------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[str, Settings]:
    """Reads "kind key=value ...". Raises ObjectiveError for an unknown kind or key, or a value of the wrong type."""
    kind, *pairs = text.split() or [""]
    if kind not in KINDS:
        raise ObjectiveError(f"objective {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    settings = KINDS[kind][0]
    types = {f.name: f for f in dataclasses.fields(settings)}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, word = pair.partition("=")
        if not equals or key not in types:
            raise ObjectiveError(f"{pair!r} is not a setting of the objective {kind}; it has {', '.join(types)}.")
        values[key] = _value(kind, key, word, types[key])
    made = settings(**values)
    check_values(kind, made)
    return kind, made


LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("weight", "margin"), (lambda value: 0 <= value < math.inf, "at least 0")),
    **dict.fromkeys(("start", "ramp", "stop", "block"), (lambda value: value >= 0, "at least 0")),
    **dict.fromkeys(("lag", "stride", "hidden"), (lambda value: value >= 1, "at least 1")),
    "temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "decay": (lambda value: value > 0, "above 0, or inf"),
    "keep": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "context": (lambda value: 0 < value < 1, "between 0 and 1"),
}
"""What numbers a setting takes, in code and in words."""
CHOICES = {"target": ("mean", "dense"), "scale": ("relative", "raw"), "teacher": TEACHERS}
"""What words a setting takes."""


def check_values(kind: str, settings: Settings) -> None:
    """Raises ObjectiveError for a value that makes no sense, before anything is loaded."""
    for key, value in vars(settings).items():
        if key in LIMITS:
            fits, words = LIMITS[key]
            check(fits(value), kind, key, value, words)
        if key in CHOICES:
            check(value in CHOICES[key], kind, key, value, f"{', '.join(CHOICES[key][:-1])} or {CHOICES[key][-1]}")
    if isinstance(settings, PdaSettings):
        worlds = [name for name in TEACHERS if "vjepa" in name]
        check(settings.teacher in worlds, kind, "teacher", settings.teacher, f"one that predicts: {' or '.join(worlds)}")


def check_files(kind: str, settings: Settings) -> None:
    """Raises ObjectiveError where the motion head that an objective names is missing, something else, or another teacher's."""
    path = getattr(settings, "motion_head", None)
    if path is None:
        return
    try:
        info = read_info(path)
    except WeightsError as error:
        raise ObjectiveError(f"{error} Make it with: latent-physics motion-head.") from error
    check(info.kind == "motion_head", kind, "motion_head", path, f"a motion head's file, and this one holds a {info.kind}")
    teacher, taught = TeacherNeed(name=settings.teacher, source=settings.source).key, str(info.config.get("teacher"))
    # Files may have moved between the stages: their names are compared, not their folders.
    same = [key.partition(", ")[0] + Path(key.partition(", ")[2]).name for key in (teacher, taught)]
    check(same[0] == same[1], kind, "teacher", teacher, f"{taught!r}, with which the motion head was trained")


def _value(kind: str, key: str, word: str, spec: dataclasses.Field) -> Any:
    """A word as the type that the setting's annotation names."""
    expected = str(spec.type)
    try:
        if "bool" in expected:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]
        if "int" in expected:
            return int(word)
        if "float" in expected:
            number = float(word)
            if math.isnan(number):
                raise ValueError
            return number
        return None if word == "none" and "None" in expected else word
    except (ValueError, KeyError) as error:
        raise ObjectiveError(f"{key} of the objective {kind} is {word!r}; it must be a {expected}.") from error


def needed_teachers(texts: Sequence[str]) -> list[TeacherNeed]:
    """The teachers' features that the objectives want, each once."""
    found: dict[str, TeacherNeed] = {}
    for _, settings in map(parse, texts):
        if isinstance(settings, AlignSettings):
            context = settings.context if isinstance(settings, PdaSettings) else 0.0
            need = TeacherNeed(name=settings.teacher, source=settings.source, context=context)
            found[need.key] = need
    return list(found.values())


def build(texts: Sequence[str], *, width: int, blocks: int, channels: Mapping[str, int]) -> nn.ModuleDict:
    """Objectives by name (the kind, numbered where it occurs twice).

    width: of the backbone's tokens; blocks: how many it has; channels: the teachers' widths by `TeacherNeed.key`.
    Raises ObjectiveError.
    """
    built = nn.ModuleDict()
    for text in texts:
        kind, settings = parse(text)
        name = kind if kind not in built else f"{kind}_{sum(key.startswith(kind) for key in built) + 1}"
        sizes: dict[str, int] = {}
        if isinstance(settings, AlignSettings):
            check(0 <= settings.block < blocks, kind, "block", settings.block, f"0 to {blocks - 1} for this model")
            need = needed_teachers([text])[0]
            sizes = {"width": width, "channels": channels[need.key]}
        built[name] = KINDS[kind][1](settings, **sizes)
    return built


def check(condition: bool, kind: str, key: str, value: Any, fits: str) -> None:
    """Raises ObjectiveError unless `condition`."""
    if not condition:
        raise ObjectiveError(f"{key} of the objective {kind} is {value!r}; it must be {fits}.")


def load_compressor(path: str, channels: int) -> moalign.MotionCompressor:
    """The frozen compressor of a motion head's file. Raises ObjectiveError where it does not fit the teacher."""
    try:
        state, info = load_weights(path, "motion_head")
    except WeightsError as error:
        raise ObjectiveError(str(error)) from error
    head = moalign.MotionHead(**info.config["sizes"])
    head.load_state_dict(state)
    expected = head.compressor.temporal.in_channels
    if expected != channels:
        raise ObjectiveError(
            f"{path} was trained on features of {expected} channels ({info.config['teacher']}), the teacher has {channels}."
        )
    return head.compressor.float().requires_grad_(False).eval()
