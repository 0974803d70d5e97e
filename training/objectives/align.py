"""Alignment to frozen video encoders: REPA, TRD, soft-TRD, TSA, M-TSA, PDA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...encoders.need import TeacherNeed
from ...methods import ldo, moalign, relational
from ...methods.weights import WeightsError, load_weights
from ..console import TrainingError
from .base import Objective, StepView
from .settings import (
    AlignSettings,
    MtsaSettings,
    PdaSettings,
    RepaSettings,
    SoftTrdSettings,
    TrdSettings,
    TsaSettings,
)


def teacher_need(settings: AlignSettings) -> TeacherNeed:
    """The teacher's features that an alignment wants."""
    forecast = (
        {"context": settings.context, "window": settings.window} if isinstance(settings, PdaSettings) else {}
    )
    return TeacherNeed(name=settings.teacher, source=settings.source, **forecast)


class AlignObjective(Objective):
    """Base of the objectives that compare a block with a teacher."""

    def __init__(self, settings: AlignSettings, *, width: int, channels: int) -> None:
        """width: of the backbone's tokens; channels: of the teacher's features."""
        super().__init__(settings)
        self.blocks = (settings.block,)
        self.teachers = (teacher_need(settings),)
        self.projector = self.make_projector(width, channels)

    def make_projector(self, width: int, channels: int) -> nn.Module:
        """The trainable map onto the teacher's grid."""
        return relational.TokenProjector(width, channels, self.settings.hidden, self.settings.stride)

    def teacher_volume(self, view: StepView) -> Tensor:
        """Teacher features `B C F H W`."""
        return view.features[self.teachers[0].key]["features"]

    def student_tokens(self, view: StepView) -> tuple[Tensor, relational.Grid]:
        """The block's tokens and their grid, without the latent frame that the teacher does not see."""
        tap = view.taps[self.settings.block]
        return relational.without_first_frame(tap.tokens, tap.grid, view.latent.shape[2])

    def target(self, view: StepView) -> Tensor:
        """Target of the comparison, a constant `B C F H W` on the grid of the comparison."""
        volume = self.on_grid(self.teacher_volume(view), self.student_tokens(view)[1])
        return volume - volume.mean(dim=2, keepdim=True) if self.settings.centre else volume

    def on_grid(self, volume: Tensor, grid: relational.Grid) -> Tensor:
        """Something of the teacher's, `B C F H W`, on the grid of the comparison; `grid` is that of the
        student's tokens."""
        if self.settings.grid == "teacher":
            return volume
        return relational.fit(volume, tuple(map(min, volume.shape[2:], self.coarse(grid))))

    def coarse(self, grid: relational.Grid) -> relational.Grid:
        """The student's own grid of tokens after the projector's stride."""
        return (grid[0], *(max(1, side // self.settings.stride) for side in grid[1:]))

    def student(self, view: StepView, target: relational.Grid) -> Tensor:
        """Projected student tokens `B N C` on `target`."""
        return self.projector(*self.student_tokens(view), target)

    def pair(self, view: StepView) -> tuple[Tensor, Tensor, relational.Grid]:
        """Projected student tokens and the target's, `B N C`, on the grid of the comparison."""
        volume = self.target(view)
        grid = tuple(volume.shape[2:])
        return self.student(view, grid), relational.to_tokens(volume), grid

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        """The loss of any student's tokens against the target's, both `B N C` on `grid`. Scalar."""
        raise NotImplementedError

    def forward(self, view: StepView) -> Tensor:
        return self.compare(*self.pair(view), view)


class RepaObjective(AlignObjective):
    """`methods.relational.repa`."""

    kind, settings_type = "repa", RepaSettings

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        return relational.repa(student, teacher)


class TrdObjective(AlignObjective):
    """`methods.relational.trd`."""

    kind, settings_type = "trd", TrdSettings

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        s: TrdSettings = self.settings
        return relational.trd(student, teacher, grid, margin=s.margin, pooled=s.pooled)


class SoftTrdObjective(AlignObjective):
    """`methods.relational.soft_trd`, onto a motion subspace where there is one."""

    kind, settings_type = "soft_trd", SoftTrdSettings

    frozen: tuple[moalign.MotionCompressor, ...] = ()
    """The compressor, in a tuple so that it is neither trained nor saved with the projector."""

    def make_projector(self, width: int, channels: int) -> nn.Module:
        s: SoftTrdSettings = self.settings
        if s.motion_head is None:
            return super().make_projector(width, channels)
        compressor = load_compressor(s.motion_head, channels)
        self.frozen = (compressor,)
        return moalign.MotionProjector(
            width, compressor.pointwise.out_channels, compressor.temporal.out_channels, s.stride
        )

    def teacher_volume(self, view: StepView) -> Tensor:
        volume = super().teacher_volume(view)
        with torch.no_grad():
            for compressor in self.frozen:
                volume = compressor.to(volume.device)(volume.float())
        return volume

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        return relational.soft_trd(student, teacher, grid, decay=self.settings.decay)


class TsaObjective(AlignObjective):
    """`methods.relational.tsa`."""

    kind, settings_type = "tsa", TsaSettings

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        return relational.tsa(student, teacher, grid, temperature=self.settings.temperature)


class MtsaObjective(AlignObjective):
    """`methods.relational.mtsa`; the mask comes from the video at the teacher's size."""

    kind, settings_type = "mtsa", MtsaSettings

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        s: MtsaSettings = self.settings
        saliency = relational.fit(view.features[self.teachers[0].key]["exact_saliency"][:, None], grid)[:, 0]
        mask = relational.top_share(saliency, s.keep)
        return relational.mtsa(student, teacher, grid, mask, temperature=s.temperature)


class PdaObjective(AlignObjective):
    """`methods.ldo.pda_loss` on the changes that the world model expects, at the slower of the two rates: the
    student's tokens are not stretched in time."""

    kind, settings_type = "pda", PdaSettings

    def changes(self, view: StepView) -> tuple[Tensor, int]:
        """Expected changes between frames of tokens, `B C F H W`, and the frame from which the first one
        leads."""
        found = view.features[self.teachers[0].key]
        per_token = view.latent.shape[2] // view.taps[self.settings.block].grid[0]
        return ldo.at_rate(found["features"], int(found["exact_first"].flatten()[0]), per_token)

    def target(self, view: StepView) -> Tensor:
        expected, _ = self.changes(view)
        return self.on_grid(expected, (expected.shape[2], *view.taps[self.settings.block].grid[1:]))

    def student(self, view: StepView, target: relational.Grid) -> Tensor:
        """Changes of the projected tokens `B N C` on `target`."""
        _, begin = self.changes(view)
        tap, longer = view.taps[self.settings.block], (target[0] + 1, *target[1:])
        volume = relational.to_volume(tap.tokens, tap.grid)[:, :, begin : begin + longer[0]]
        projected = self.projector(relational.to_tokens(volume), (longer[0], *tap.grid[1:]), longer)
        return ldo.increments(projected, longer)[0]

    def compare(self, student: Tensor, teacher: Tensor, grid: relational.Grid, view: StepView) -> Tensor:
        decay = self.settings.decay
        return ldo.pda_loss(student, teacher, grid, None if math.isinf(decay) else decay)


def load_compressor(path: str, channels: int) -> moalign.MotionCompressor:
    """The frozen compressor of a motion head's file. Raises TrainingError where it does not fit the
    teacher."""
    try:
        state, info = load_weights(path, "motion_head")
    except WeightsError as error:
        raise TrainingError(str(error)) from error
    head = moalign.MotionHead(**info.config["sizes"])
    head.load_state_dict(state)
    expected = head.compressor.temporal.in_channels
    if expected != channels:
        raise TrainingError(
            f"{path} was trained on features of {expected} channels ({info.config['teacher']}), the teacher "
            f"has {channels}."
        )
    return head.compressor.float().requires_grad_(False).eval()
