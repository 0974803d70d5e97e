"""Trajectory geometry: how regular the path of a clip's pooled frame features is (after GeoPhys, arXiv
2606.20707).

The paper names five statistics of the path of a frozen image encoder; how they are scaled and added is ours:
each is free of
units (steps are measured in the clip's mean step, angles in radians), and the measure is their mean.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .gate import limits, motion_gate, pixel_motion
from .judgement import Judgement, check_clip, resampled, too_short

PAST = 4
"""Points that the linear predictor is fitted to."""
STATISTICS = ("step_variation", "turning", "turning_variation", "acceleration", "residual")


class FrameEncoder(Protocol):
    """A frozen encoder of frames, such as encoders.images.ImageEncoder; no frame's features may depend on
    the others."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """(frames, height, width) of one feature in pixels."""
        ...

    def features(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C F h w`."""
        ...


class TrajectoryGeometry:
    """Mean of five statistics of the path z_t, the frame features pooled over space.

    All are 0 for a straight, even path.
    """

    name = "geometry"
    reads = "frames"

    def __init__(self, encoder: FrameEncoder, *, rate: float | None = None) -> None:
        """rate: frames per second at which the path is sampled; None takes every frame."""
        self.encoder, self.rate = encoder, rate

    @torch.no_grad()
    def judge(self, clip: Tensor, fps: float, cond: Tensor | None = None) -> Judgement:
        """See Critic. `cond` is not read."""
        check_clip(clip, fps, self)
        video, times = resampled(clip, fps, self.rate)
        tubelet = self.encoder.patch[0]
        needed = (PAST + 1) * tubelet
        if video.shape[2] < needed:
            raise too_short(self.name, video.shape[2], needed, "make a longer clip")
        features = torch.cat([self.encoder.features(one[None]).float().cpu() for one in video])
        path = features.mean(dim=(3, 4)).transpose(1, 2)  # B F C
        parts = statistics(path)
        motion, (still, moving) = pixel_motion(clip, fps), limits(self.reads)
        times = times[: features.shape[2] * tubelet : tubelet]
        return Judgement(
            implausibility=torch.stack(list(parts.values())).mean(0),
            motion=motion,
            gate=motion_gate(motion, still, moving),
            curve=accelerations(path),
            times=times[1:-1],
            maps=_token_accelerations(features),
            map_times=times,
            parts=parts,
        )


def statistics(path: Tensor) -> dict[str, Tensor]:
    """The five statistics of a path `B F C`, F at least PAST + 1; each `B`.

    step_variation: deviation of the step lengths over their mean. turning, turning_variation: mean and
    deviation of the angle
    between one step and the next. acceleration: mean length of the second difference, in mean steps.
    residual: mean distance
    of a point from the straight line fitted to the PAST points before it, in mean steps.
    """
    steps = path.diff(dim=1)
    lengths = steps.norm(dim=2)
    unit = _mean_step(lengths)
    angles = turning_angles(steps)
    return {
        "step_variation": lengths.std(dim=1, correction=0) / unit,
        "turning": angles.mean(dim=1),
        "turning_variation": angles.std(dim=1, correction=0),
        "acceleration": accelerations(path).mean(dim=1),
        "residual": linear_residuals(path).mean(dim=1) / unit,
    }


def turning_angles(steps: Tensor) -> Tensor:
    """Angle between each step and the next in radians, `B F-2` from steps `B F-1 C`; 0 where one of the two
    has no length.

    2 atan2(|u - v|, |u + v|) of the unit steps: accurate for small angles, where the arc cosine is not.
    """
    lengths = steps.norm(dim=2, keepdim=True)
    units = steps / lengths.clamp(min=1e-12)
    u, v = units[:, :-1], units[:, 1:]
    angles = 2 * torch.atan2((u - v).norm(dim=2), (u + v).norm(dim=2))
    still = lengths[..., 0] < 1e-6 * lengths.amax(dim=1).clamp(min=1e-12)
    return torch.where(still[:, :-1] | still[:, 1:], torch.zeros_like(angles), angles)


def accelerations(path: Tensor) -> Tensor:
    """Length of the second difference in mean steps, `B F-2` from a path `B F C`."""
    steps = path.diff(dim=1)
    return steps.diff(dim=1).norm(dim=2) / _mean_step(steps.norm(dim=2))[:, None]


def linear_residuals(path: Tensor) -> Tensor:
    """Distance of each point from the least-squares line in time through the PAST points before it, `B
    F-PAST`."""
    weights = extrapolation(PAST).to(path)
    expected = torch.einsum("bfcp,p->bfc", path[:, :-1].unfold(1, PAST, 1), weights)
    return (path[:, PAST:] - expected).norm(dim=2)


def extrapolation(past: int) -> Tensor:
    """Weights `past` of the points at times -past .. -1 in the value at time 0 of the straight line fitted
    to them."""
    times = torch.arange(-past, 0, dtype=torch.float64)
    design = torch.stack([torch.ones_like(times), times], dim=1)
    return torch.linalg.pinv(design)[0]


def _mean_step(lengths: Tensor) -> Tensor:
    """Mean length of the steps `B F-1`; where nothing moves a unit of 1, so that a still path has
    statistics of 0."""
    mean = lengths.mean(dim=1)
    return torch.where(mean > 1e-9, mean, torch.ones_like(mean))


def _token_accelerations(features: Tensor) -> Tensor:
    """Length of each token's second difference over the clip's mean token step, `B F h w`; 0 at both ends."""
    steps = features.diff(dim=2)
    unit = _mean_step(steps.norm(dim=1).flatten(1))
    bend = steps.diff(dim=2).norm(dim=1) / unit[:, None, None, None]
    return torch.nn.functional.pad(bend, (0, 0, 0, 0, 1, 1))
