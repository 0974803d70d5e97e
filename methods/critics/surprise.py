"""Causal surprise: how far a frozen world model's expectation lies from what comes (LDO's critic).

Sources: specs of LDO; Garrido et al., "Intuitive physics understanding emerges from self-supervised
pretraining" (windows,
several context lengths, L1); arXiv 2601.10553 (cosine, mean or maximum over windows). Features are V-JEPA
2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .gate import limits, motion_gate, pixel_motion
from .judgement import CriticError, Judgement, check_clip, resampled, too_short

CHUNK = 8
"""Windows that pass through the world model at once."""


class WorldModel(Protocol):
    """A predictive video encoder, such as encoders.VJEPATeacher."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Tubelet (P_t, P_h, P_w)."""
        ...

    def features(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C F h w`."""
        ...

    def predicted(self, video: Tensor, context: int) -> Tensor:
        """Features expected after the first `context` feature frames: `B C F - context h w`.

        Encodes those frames alone.
        """
        ...


class CausalSurprise:
    """mean over windows and context lengths of |P(E(context)) - LN(E(window))|, LayerNorm and distance over
    features.

    The curve has one entry a window, at the window's last frame, so that no entry before a frame depends on
    that frame. The
    maps average each token over the windows in which it was predicted; E attends in both directions inside a
    window, so a
    map may shift a little with what follows it.
    """

    name = "surprise"
    reads = "frames"

    def __init__(
        self,
        model: WorldModel,
        *,
        window: int = 16,
        stride: int = 2,
        contexts: Sequence[int] = (8,),
        distance: str = "cosine",
        over_windows: str = "mean",
        over_contexts: str = "mean",
        rate: float | None = None,
    ) -> None:
        """window, stride, contexts: in frames, multiples of the model's tubelet. distance: "cosine" or "l1".

        over_windows: "mean" or "max"; over_contexts: "mean" or "min", taken within a window first. rate:
        frames per second
        at which the model looks; None looks at every frame. Raises CriticError for values outside their
        range.
        """
        tubelet = model.patch[0]
        wrong = [value for value in (window, stride, *contexts) if value < tubelet or value % tubelet]
        if wrong or not contexts:
            raise CriticError(
                f"window {window}, stride {stride} and contexts {list(contexts)} must be multiples of the "
                "world model's "
                f"tubelet of {tubelet} frames."
            )
        if max(contexts) >= window:
            raise CriticError(
                f"the context of {max(contexts)} frames leaves nothing to predict in a window of {window}."
            )
        for label, value, options in (
            ("distance", distance, ("cosine", "l1")),
            ("over_windows", over_windows, ("mean", "max")),
            ("over_contexts", over_contexts, ("mean", "min")),
        ):
            if value not in options:
                raise CriticError(f"{label} is {value!r}; it must be {' or '.join(map(repr, options))}.")
        self.model, self.window, self.stride, self.contexts = model, window, stride, tuple(sorted(contexts))
        self.distance, self.over_windows, self.over_contexts, self.rate = (
            distance,
            over_windows,
            over_contexts,
            rate,
        )

    @torch.no_grad()
    def judge(self, clip: Tensor, fps: float, cond: Tensor | None = None) -> Judgement:
        """See Critic. `cond` is not read."""
        check_clip(clip, fps, self)
        video, times = resampled(clip, fps, self.rate)
        if video.shape[2] < self.window:
            have = f"at {self.rate:g} a second" if self.rate and fps > self.rate else "of the clip"
            raise too_short(
                self.name, video.shape[2], self.window, f"make a longer clip (frames {have} are counted)"
            )
        first = (video.shape[2] - self.window) % self.stride  # the clip's last frame is always judged
        video, times = video[:, :, first:], times[first:]
        motion, (still, moving) = pixel_motion(clip, fps), limits(self.reads)
        errors = self._errors(video)
        per_window = torch.stack([error.mean(dim=(2, 3, 4)) for error in errors.values()])
        curve = per_window.mean(0) if self.over_contexts == "mean" else per_window.amin(0)
        return Judgement(
            implausibility=curve.mean(1) if self.over_windows == "mean" else curve.amax(1),
            motion=motion,
            gate=motion_gate(motion, still, moving),
            curve=curve,
            times=times[self.window - 1 :: self.stride],
            maps=self._maps(errors, video.shape[2]),
            map_times=times[:: self.model.patch[0]],
            parts=self._parts(errors, curve, video),
        )

    def _errors(self, video: Tensor) -> dict[int, Tensor]:
        """Context in frames -> distance of every predicted token, `B S F' h w`, S windows."""
        tubelet = self.model.patch[0]
        windows = video.unfold(2, self.window, self.stride).permute(0, 2, 1, 5, 3, 4)  # B S 3 W H W
        flat = windows.flatten(0, 1)
        found: dict[int, list[Tensor]] = {context: [] for context in self.contexts}
        for part in flat.split(CHUNK):
            seen = self.model.features(part)
            for context, errors in found.items():
                expected = self.model.predicted(part, context // tubelet)
                errors.append(self._distance(expected, seen[:, :, context // tubelet :]).cpu())
        return {
            context: torch.cat(errors).unflatten(0, windows.shape[:2]) for context, errors in found.items()
        }

    def _distance(self, expected: Tensor, seen: Tensor) -> Tensor:
        """`B C F h w` twice -> `B F h w`.

        Every vector seen has mean 0 and deviation 1, as V-JEPA's own targets have.
        """
        seen = normalised(seen)
        if self.distance == "l1":
            return (expected - seen).abs().mean(dim=1)
        return (1 - functional.cosine_similarity(normalised(expected), seen, dim=1)).clamp(min=0)

    def _maps(self, errors: dict[int, Tensor], frames: int) -> Tensor:
        """`B F h w`: mean over every window and context that predicted a token."""
        tubelet, some = self.model.patch[0], next(iter(errors.values()))
        total = some.new_zeros(len(some), frames // tubelet, *some.shape[3:])
        count = some.new_zeros(frames // tubelet)
        for context, error in errors.items():
            for number in range(error.shape[1]):
                start = (number * self.stride + context) // tubelet
                total[:, start : start + error.shape[2]] += error[:, number]
                count[start : start + error.shape[2]] += 1
        return total / count.clamp(min=1)[None, :, None, None]

    def _parts(self, errors: dict[int, Tensor], curve: Tensor, video: Tensor) -> dict[str, Tensor]:
        parts = {f"context_{context}": error.mean(dim=(1, 2, 3, 4)) for context, error in errors.items()}
        return {"mean": curve.mean(1), "max": curve.amax(1), "moving": self._moving(errors, video), **parts}

    def _moving(self, errors: dict[int, Tensor], video: Tensor) -> Tensor:
        """Mean distance with each token weighted by how much its pixels change from tubelet to tubelet,
        `B`."""
        maps = self._maps(errors, video.shape[2])
        tubelet = self.model.patch[0]
        pictures = video[:, :, ::tubelet].float()
        change = torch.diff(pictures, dim=2, prepend=pictures[:, :, :1]).abs().amax(dim=1)
        weight = functional.adaptive_max_pool2d(change, maps.shape[2:]).cpu() * (maps > 0)
        return (maps * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def normalised(features: Tensor) -> Tensor:
    """LayerNorm without parameters over the feature axis of `B C F h w`."""
    return functional.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
