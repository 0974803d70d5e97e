"""Rows that frame every table: real clips, what the VAE makes of them, their frames shuffled, and a still."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbones import Backbone
from .scene import batches

ROWS = ("real", "VAE", "shuffled", "frozen")


def frame_of(name: str, clips: Tensor, backbone: Backbone, seed: int) -> Tensor:
    """The clips of one of `ROWS`, made of real clips, `B 3 T H W` in [0, 1] both."""
    if name == "VAE":
        return through_vae(clips, backbone)
    if name == "shuffled":
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(clips.shape[2], generator=generator) for _ in clips]
        return torch.stack([clip[:, order] for clip, order in zip(clips, orders)])
    if name == "frozen":
        middle = clips.shape[2] // 2
        return clips[:, :, middle : middle + 1].expand_as(clips)
    return clips


def through_vae(clips: Tensor, backbone: Backbone) -> Tensor:
    """Clips encoded and decoded, on the CPU."""
    parts = [backbone.decode_latent(backbone.encode_video(clips[rows])).cpu() for rows in batches(len(clips))]
    return torch.cat(parts)
