"""Optical flow of clips: from latents or from frames, cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...methods.pila.flow import latent_flow, video_flow
from ...methods.weights import WeightsError, WeightsInfo, load_weights, save_weights

FLOW_KIND = "pila_flow"
FlowSource = Literal["latent", "pixels", "raft"]


Frames = Callable[[], Tensor]
"""Reads a clip's own frames, `3 T H W` in [0, 1]."""


def flow_of(
    latent: Tensor, source: FlowSource, backbone: Any, raft: Any = None, frames: Frames | None = None
) -> tuple[Tensor, Tensor]:
    """Flow `2 T-1 H W` and confidence `1 T-1 H W` of a clip's latent `C T H W`.

    "latent": Lucas-Kanade on the latent itself. "pixels": on the frames. "raft": RAFT on frames a latent
    frame apart, with a forward-backward check. The last two decode the frames with the backbone's VAE, unless
    `frames` has them.
    """
    if source == "latent":
        return latent_flow(latent)
    video = frames() if frames is not None else backbone.decode_latent(latent[None])[0].cpu()
    size = (latent.shape[2], latent.shape[3])
    if source == "pixels":
        return video_flow(video, latent.shape[1], size)
    return raft_flow(video, latent.shape[1], size, backbone.temporal_stride, raft)


def raft_flow(
    video: Tensor, frames: int, size: tuple[int, int], stride: int, raft: Any
) -> tuple[Tensor, Tensor]:
    """RAFT between the last frames of neighbouring latent frames, `stride` apart; confidence falls where
    forward and backward flow disagree by more than a pixel. video: `3 N H W` with N = 1 + stride * (frames -
    1). Raises ValueError where N does not fit `frames`."""
    from ...methods.pila.flow import warp

    if video.shape[1] != 1 + stride * (frames - 1):
        raise ValueError(f"{video.shape[1]} decoded frames do not belong to {frames} latent frames.")
    height, width = (max(128, side // 8 * 8) for side in video.shape[2:])
    chosen = video[None, :, ::stride]
    ahead = raft.flow(chosen, 1, (height, width))[0].transpose(0, 1).cpu()
    back = raft.flow(chosen.flip(2), 1, (height, width))[0].flip(1).transpose(0, 1).cpu()
    disagreement = (ahead + warp(back, ahead)).square().sum(dim=1, keepdim=True)
    confidence = 1.0 / (1.0 + disagreement)
    pool = torch.nn.functional.adaptive_avg_pool2d
    pooled = pool(confidence, size)
    flow = pool(ahead * confidence, size) / pooled.clamp(min=1e-6)
    flow = flow * flow.new_tensor([size[1] / width, size[0] / height])[None, :, None, None]
    return flow.transpose(0, 1), pooled.transpose(0, 1)


def cached_flow(
    path: Path,
    latent: Tensor,
    source: FlowSource,
    backbone: Any,
    raft: Any = None,
    frames: Frames | None = None,
    key: str = "",
) -> tuple[Tensor, Tensor]:
    """The flow at `path`, computed and written there first where it is missing, or of another source, network
    or content of the clip (`key`). Raises OSError."""
    origin = {"source": source, "clip": key, "network": getattr(raft, "identity", "")}
    try:
        state, info = load_weights(path, FLOW_KIND)
        _, length, *size = latent.shape
        same = origin | info.config == origin  # files of older versions say their source alone
        if same and list(state["flow"].shape[1:]) == [length - 1, *size]:
            return state["flow"].float(), state["confidence"].float()
    except WeightsError:
        pass  # missing or cut off: made anew
    flow, confidence = (value.half() for value in flow_of(latent, source, backbone, raft, frames))
    info = WeightsInfo(kind=FLOW_KIND, latent_space=backbone.latent_space, config=origin)
    save_weights(path, {"flow": flow, "confidence": confidence}, info)
    return (
        flow.float(),
        confidence.float(),
    )  # what a resumed run reads: a run that was killed must see the same
