"""The toy world's own knowledge in a teacher's place."""

from __future__ import annotations

import torch
from torch import Tensor

from ...encoders import Teacher
from ...toyworld.oracle import CHANNELS, oracle_features, thing_flow


class OracleFlow:
    """`toyworld.oracle.thing_flow` in RAFT's place."""

    def flow(self, video: Tensor, step: int, size: tuple[int, int]) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B 2 n h w` in pixels of `size`, as `encoders.RaftFlow.flow`."""
        return torch.stack([thing_flow(clip, step, size) for clip in video])


class OracleTeacher(Teacher):
    """`toyworld.oracle` as a teacher: no network, nothing to learn, every thing and place known."""

    kind = "toy_oracle"
    channels = CHANNELS
    patch = (2, 8, 8)

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.identity, self.device = "toy oracle", torch.device(device)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        return torch.stack([oracle_features(clip, self.patch) for clip in self.resized(video)]).to(
            self.device
        )
