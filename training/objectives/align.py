"""Alignment to frozen video encoders: REPA, TRD, soft-TRD, TSA, M-TSA, PDA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...encoders.need import TeacherNeed
from ...methods import ldo, moalign, relational
from ...methods.weights import WeightsError, load_weights
from .base import Objective, StepView
from .settings import AlignSettings, MtsaSettings, ObjectiveError, PdaSettings, SoftTrdSettings, TrdSettings


def teacher_need(settings: AlignSettings) -> TeacherNeed:
    """The teacher's features that an alignment wants."""
    forecast = {"context": settings.context, "window": settings.window} if isinstance(settings, PdaSettings) else {}
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

    def pair(self, view: StepView) -> tuple[Tensor, Tensor, relational.Grid]:
        """Projected student tokens and teacher tokens, `B N C`, on the grid of the comparison."""
        tap = view.taps[self.settings.block]
        # The teacher does not see the video frame that the first latent frame stands for.
        tokens, grid = relational.without_first_frame(tap.tokens, tap.grid, view.latent.shape[2])
        volume = self.on_grid(self.teacher_volume(view), grid)
        if self.settings.centre:
            volume = volume - volume.mean(dim=2, keepdim=True)
        target = tuple(volume.shape[2:])
        return self.projector(tokens, grid, target), relational.to_tokens(volume), target

    def on_grid(self, volume: Tensor, grid: relational.Grid) -> Tensor:
        """Something of the teacher's, `B C F H W`, on the grid of the comparison; `grid` is that of the student's tokens."""
        if self.settings.grid == "teacher":
            return volume
        coarse = (grid[0], grid[1] // self.settings.stride, grid[2] // self.settings.stride)
        return relational.fit(volume, tuple(map(min, volume.shape[2:], coarse)))


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
        student, teacher, grid = self.pair(view)
        saliency = relational.fit(view.features[self.teachers[0].key]["exact_saliency"][:, None], grid)[:, 0]
        return relational.mtsa(student, teacher, grid, relational.top_share(saliency, s.keep), temperature=s.temperature)


class PdaObjective(AlignObjective):
    """`methods.ldo.pda_loss` on the changes that the world model expects, at the slower of the two rates: the student's tokens
    are not stretched in time."""

    kind = "pda"

    def forward(self, view: StepView) -> Tensor:
        s: PdaSettings = self.settings
        found, tap = view.features[self.teachers[0].key], view.taps[self.settings.block]
        frames, *space = tap.grid
        expected, begin = ldo.at_rate(found["features"], int(found["exact_first"].flatten()[0]), view.latent.shape[2] // frames)
        steps = expected.shape[2] + 1
        expected = self.on_grid(expected, (steps - 1, *space))
        volume = relational.to_volume(tap.tokens, tap.grid)[:, :, begin : begin + steps]
        target = (steps, *expected.shape[3:])
        student = self.projector(relational.to_tokens(volume), (steps, *space), target)
        moved, grid = ldo.increments(student, target)
        return ldo.pda_loss(moved, relational.to_tokens(expected), grid, None if math.isinf(s.decay) else s.decay)


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
