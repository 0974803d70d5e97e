"""The toy world's own knowledge in a teacher's place."""

from __future__ import annotations

import torch
from torch import Tensor

from ...encoders import Teacher
from ...toyworld.oracle import CHANNELS, oracle_features


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
        return torch.stack([oracle_features(clip, self.patch) for clip in self.resized(video)]).to(self.device)
