"""The one interface of every critic: what it is given and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class CriticError(ValueError):
    """A clip cannot be judged, or a critic is set up wrongly. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A critic's answer for a batch of clips.

    Tensors are float32 on the CPU; score, gate and raw parts stay apart.
    """

    implausibility: Tensor
    """The critic's raw measure, `B`, 0 or more; lower is more plausible."""
    motion: Tensor
    """Amount of motion, `B`, in the units of `gate.pixel_motion` or `gate.latent_motion`."""
    gate: Tensor
    """Motion gate in [0, 1], `B`: 0 for a still clip.

    Relative to absolute limits; see `gate_of_pool` for candidates.
    """
    curve: Tensor
    """Implausibility over time, `B S`."""
    times: Tensor
    """Seconds into the clip of each entry of the curve, `S`."""
    maps: Tensor
    """Implausibility of each token, `B F h w`; 0 where nothing was judged."""
    map_times: Tensor
    """Seconds into the clip at which each of the F maps begins, `F`."""
    parts: Mapping[str, Tensor]
    """Raw measures by name, each `B`; lower is more plausible in all of them."""

    @property
    def plausibility(self) -> Tensor:
        """1 / (1 + implausibility), `B` in (0, 1]: positive, so that a gate below 1 can only lower it."""
        return 1 / (1 + self.implausibility)

    @property
    def score(self) -> Tensor:
        """plausibility x gate, `B` in [0, 1]; higher is better."""
        return self.plausibility * self.gate


class Critic(Protocol):
    """A judge of clips.

    Clips of a batch are judged one by one: no clip's answer depends on its neighbours.
    """

    name: ClassVar[str]
    """"surprise", "geometry", "motion"."""
    reads: ClassVar[str]
    """"frames": `B 3 T H W` in [0, 1]; "latent": `B C T H W` in the sampler's scaling."""

    def judge(self, clip: Tensor, fps: float, cond: Tensor | None = None) -> Judgement:
        """Judges a batch. `fps`: frames of `clip` per second, latent frames for a latent; `cond`: pooled
        prompt `B D`.

        Raises CriticError for a clip that is too short, of the wrong shape, or not finite, and for an fps
        that is none.
        """
        ...


def check_clip(clip: Tensor, fps: float, critic: Critic) -> None:
    """Raises CriticError, in one sentence, for what no critic can judge."""
    if not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
        raise CriticError(
            f"fps is {fps}; it must be above 0: a critic needs the clip's true frames per second."
        )
    if clip.ndim != 5 or (critic.reads == "frames" and clip.shape[1] != 3):
        wanted = "frames (B, 3, T, H, W)" if critic.reads == "frames" else "a latent (B, C, T, H, W)"
        raise CriticError(
            f"the {critic.name} critic reads {wanted}, but was given a tensor of {tuple(clip.shape)}."
        )
    if len(clip) == 0:
        raise CriticError(f"the {critic.name} critic was given 0 clips: give it at least 1.")
    finite = torch.isfinite(clip).flatten(1).all(dim=1)
    if not finite.all():
        number = int((~finite).nonzero()[0]) + 1
        raise CriticError(
            f"clip {number} of {len(clip)} holds NaN or infinite values, so it has no score: look at what "
            "made it."
        )


def too_short(critic: str, frames: int, needed: int, remedy: str) -> CriticError:
    """The sentence for a clip of too few frames."""
    return CriticError(f"the {critic} critic needs {needed} frames or more and was given {frames}: {remedy}.")


def resampled(clip: Tensor, fps: float, rate: float | None) -> tuple[Tensor, Tensor]:
    """(the frames nearest to a clock of `rate` per second, the seconds at which they were: `T`).

    A clip at or below the rate, and any clip where the rate is None, keeps all its frames: frames are picked,
    never made.
    """
    frames = clip.shape[2]
    if rate is None or fps <= rate:
        return clip, torch.arange(frames) / fps
    count = math.floor((frames - 1) * rate / fps + 1e-6) + 1
    picked = (torch.arange(count) * (fps / rate)).round().long().clamp(max=frames - 1)
    return clip[:, :, picked.to(clip.device)], picked / fps
