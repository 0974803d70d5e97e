"""`Objective`: a named loss beside the denoising loss, and what it is shown of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ...encoders.need import TeacherNeed
from ..backbones import Activation
from .settings import Settings


@dataclass(kw_only=True)
class StepView:
    """One training step as an objective sees it."""

    latent: Tensor
    """The clean latent, `B C T H W`."""
    x0: Tensor
    """The denoised estimate, with gradient."""
    signal: Tensor
    """alpha_bar per sample, `B`; of a flow that of the DDPM step with the same signal-to-noise ratio."""
    taps: Mapping[int, Activation] = field(default_factory=dict)
    """Block outputs by block number, counted from 1, with gradient."""
    features: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Teachers' tensors by `TeacherNeed.key`."""


class Objective(nn.Module):
    """A named loss. Its parameters, if any (a projector), train along and stay out of the exported file.

    A class with a `kind`, in any file of this folder, is one that recipes can name.
    """

    kind: ClassVar[str]
    """Its word in a recipe."""
    settings_type: ClassVar[type[Settings]]
    blocks: tuple[int, ...] = ()
    teachers: tuple[TeacherNeed, ...] = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def calibrate(self, latents: Iterable[Tensor]) -> dict[str, float]:
        """Fits what depends on the data's scale to clean latents `C T H W`; returns what the run's files say
        of it."""
        return {}

    def forward(self, view: StepView) -> Tensor:
        """The unweighted loss, a scalar."""
        raise NotImplementedError
