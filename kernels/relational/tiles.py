"""Tiles of the N x N relation of a token sequence, which respect its frames."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Block:
    """A run of consecutive tokens: several whole frames, or a part of one frame."""

    tokens: slice
    """The tokens, in frame-major order."""
    frames: range
    """The frames they lie in."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.tokens.stop - self.tokens.start


def whole_frames(frames: int, per_frame: int, target: int) -> list[Block]:
    """Blocks of as many whole frames as fit into `target` tokens, at least one."""
    step = max(1, target // per_frame)
    return [
        Block(tokens=slice(first * per_frame, last * per_frame), frames=range(first, last))
        for first, last in ((first, min(first + step, frames)) for first in range(0, frames, step))
    ]


def parts_of_frames(frames: int, per_frame: int, target: int) -> list[Block]:
    """Each frame by itself, in equal parts of at most `target` tokens."""
    parts = math.ceil(per_frame / target)
    edges = [per_frame * part // parts for part in range(parts + 1)]
    return [
        Block(tokens=slice(frame * per_frame + a, frame * per_frame + b), frames=range(frame, frame + 1))
        for frame in range(frames)
        for a, b in itertools.pairwise(edges)
    ]


def blocks(frames: int, per_frame: int, target: int) -> list[Block]:
    """Blocks of about `target` tokens: whole frames if a frame fits, otherwise parts of one frame."""
    return (whole_frames if per_frame <= target else parts_of_frames)(frames, per_frame, target)


@dataclass(frozen=True, kw_only=True)
class FrameWeight:
    """Weight of a pair of tokens, by the distance of their frames (MoAlign, arXiv 2510.19022, eq 7)."""

    same: bool
    """True: pairs within a frame count, each 1. False: pairs of different frames, exp(-distance / decay)."""
    decay: float | None = None
    """In frames; None weighs every pair of different frames alike."""

    def of(self, distance: int) -> float:
        """The weight at one frame distance."""
        if self.same or distance == 0:
            return float(self.same and distance == 0)
        return 1.0 if self.decay is None else math.exp(-distance / self.decay)

    def between(self, rows: Block, columns: Block) -> float | None:
        """The weight of a tile if it is one number, else None."""
        values = {self.of(abs(f - g)) for f in rows.frames for g in columns.frames}
        return values.pop() if len(values) == 1 else None

    def table(self, rows: Block, columns: Block, like: Tensor) -> Tensor:
        """The weights of a tile seen as `k S l S`: `k 1 l 1`, formed on the device, so that nothing waits."""
        f = torch.arange(rows.frames.start, rows.frames.stop, device=like.device)
        g = torch.arange(columns.frames.start, columns.frames.stop, device=like.device)
        distance = (f[:, None] - g[None, :]).abs().to(like.dtype)
        if self.same:
            weight = (distance == 0).to(like.dtype)
        elif self.decay is None:
            weight = (distance > 0).to(like.dtype)
        else:
            weight = torch.exp(distance / -self.decay).masked_fill(distance == 0, 0)
        return weight[:, None, :, None]
