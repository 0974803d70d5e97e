"""RAFT (torchvision): the optical flow that MoAlign's stage 1 learns to predict."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..methods.moalign import FLOW_SIZE
from .base import TeacherError, digest_of, fill, reason_of

SMALLEST = 128
"""RAFT's shortest side: its correlation pyramid needs 16 x 16 features."""


class RaftFlow:
    """Frozen RAFT: `B 3 T H W` in [0, 1] -> flow between frames a fixed number apart."""

    def __init__(self, model: nn.Module, identity: str, device: str | torch.device = "cpu") -> None:
        self.model = model.requires_grad_(False).eval().to(device)
        self.identity = identity
        self.device = torch.device(device)

    @torch.no_grad()
    def flow(self, video: Tensor, step: int = 2, size: tuple[int, int] = FLOW_SIZE, chunk: int = 8) -> Tensor:
        """Flow from frame `step * i` to frame `step * (i + 1)`: `B 2 n h w` in pixels of `size`, float32.

        step: the teacher's tubelet, so that flow i lies between feature frames i and i + 1. Raises
        TeacherError for a size that RAFT cannot take and for fewer than two frames.
        """
        if min(size) < SMALLEST or size[0] % 8 or size[1] % 8:
            raise TeacherError(
                f"RAFT takes sides of at least {SMALLEST} pixels that are multiples of 8, not "
                f"{size[0]}x{size[1]}."
            )
        picked = video[:, :, : video.shape[2] // step * step : step]
        if picked.shape[2] < 2:
            raise TeacherError(f"flow needs two frames {step} apart; this clip has {video.shape[2]} frames.")
        batch, count = picked.shape[0], picked.shape[2] - 1
        frames = picked.transpose(1, 2).flatten(0, 1).to(self.device, torch.float32)
        frames = (
            functional.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
            * 2
            - 1
        )
        frames = frames.unflatten(0, (batch, count + 1))
        before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        flows = [self.model(a, b)[-1] for a, b in zip(before.split(chunk), after.split(chunk))]
        return torch.cat(flows).unflatten(0, (batch, count)).transpose(1, 2).float()


def load_raft(source: str | os.PathLike[str] = "raft_large", device: str | torch.device = "cpu") -> RaftFlow:
    """RAFT by torchvision's name ("raft_large", "raft_small": published weights) or from a safetensors file
    of such a state dict.

    Raises TeacherError where it cannot be loaded.
    """
    import safetensors
    import safetensors.torch
    from torchvision.models import optical_flow

    name = str(source)
    if name in ("raft_large", "raft_small"):
        try:
            return RaftFlow(getattr(optical_flow, name)(weights="DEFAULT"), name, device)
        except OSError as error:
            raise TeacherError(
                f"the weights of {name} could not be downloaded ({reason_of(error)}); give a file instead."
            ) from error
    path = Path(source)
    if not path.is_file() or path.suffix != ".safetensors":
        raise TeacherError(f"{source} is neither raft_large, raft_small nor a safetensors file.")
    try:
        state = safetensors.torch.load_file(path)
        small = state["feature_encoder.convnormrelu.0.weight"].shape[0] == 32
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise TeacherError(
            f"{path.name} does not hold torchvision's RAFT weights ({reason_of(error)})."
        ) from error
    model = (optical_flow.raft_small if small else optical_flow.raft_large)(weights=None)
    fill(model, state, path.name)
    return RaftFlow(model, f"raft {path.name} {digest_of([path])}", device)
