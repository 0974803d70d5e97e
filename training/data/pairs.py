"""Pairs of latent frames, for the motion predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .clip import DatasetError
from .clips import Clips
from .folder import Epochs


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A batch of frame pairs."""

    frame: Tensor
    """z[i], `N C H W` float32."""
    before: Tensor | None
    """z[i-1], `N C H W`; None for a predictor of order 1."""
    after: Tensor
    """z[i+lag], `N C H W`."""
    cond: Tensor
    """Pooled prompt embedding, `N D`."""

    def to(self, device: str | torch.device) -> Pairs:
        """The same batch on another device."""
        before = None if self.before is None else self.before.to(device)
        return Pairs(
            frame=self.frame.to(device), before=before, after=self.after.to(device), cond=self.cond.to(device)
        )


class PairSet:
    """Every (clip, i) of some clips for which z[i+lag], and z[i-1] where order is 2, exist (LaMo eq 1)."""

    def __init__(
        self, clips: Clips, chosen: Sequence[int], lag: int, order: int = 1, first: int | None = None
    ) -> None:
        """first: smallest i, at least and by default order - 1. Raises DatasetError where no clip is long
        enough."""
        self.clips, self.chosen, self.lag, self.order = clips, list(chosen), lag, order
        self.first = order - 1 if first is None else max(first, order - 1)
        counts = [max(0, clips.lengths[clip] - lag - self.first) for clip in self.chosen]
        self.ends = np.cumsum(counts)
        self._epochs: Epochs | None = None
        if not len(self.ends) or self.ends[-1] == 0:
            longest = max((clips.lengths[clip] for clip in self.chosen), default=0)
            need = f"lag {lag} and order {order} need at least {lag + order}"
            raise DatasetError(f"The longest clip has {longest} latent frames; {need}: cache longer clips.")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def batch(self, indices: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs with these numbers, 0 .. len - 1."""
        frames, before, after, cond = [], [], [], []
        for index in np.asarray(indices):
            place, first = self._found(index)
            clip = self.chosen[place]
            wanted = [first, first + self.lag] + ([first - 1] if self.order == 2 else [])
            read = self.clips.frames(clip, wanted)
            frames.append(read[0])
            after.append(read[1])
            cond.append(self.clips.conds[clip])
            if self.order == 2:
                before.append(read[2])
        return Pairs(
            frame=torch.stack(frames),
            before=torch.stack(before) if before else None,
            after=torch.stack(after),
            cond=torch.stack(cond),
        )

    def numbers(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """i of the pairs with these numbers, int64."""
        return torch.tensor([self._found(index)[1] for index in np.asarray(indices)])

    def _found(self, index: int) -> tuple[int, int]:
        """(place in `chosen`, i) of a pair."""
        place = int(np.searchsorted(self.ends, index, side="right"))
        return place, int(index - (self.ends[place - 1] if place else 0)) + self.first

    def at_step(self, step: int, size: int, seed: int) -> Pairs:
        """The batch of one training step: consecutive pairs of an endless sequence of shuffled epochs.

        A function of its arguments alone, so a resumed run sees what an uninterrupted one would have seen.
        """
        if self._epochs is None or self._epochs.seed != seed:
            self._epochs = Epochs(len(self), seed)
        return self.batch([self._epochs[number] for number in range(step * size, (step + 1) * size)])

    def spread(self, count: int) -> Pairs:
        """At most `count` pairs, evenly spread over all of them: a fixed validation batch."""
        return self.batch(self.evenly(count))

    def evenly(self, count: int) -> np.ndarray:
        """Numbers of at most `count` pairs, evenly spread over all of them."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
