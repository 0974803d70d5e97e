"""Films of held-out clips: the same prompt and noise without the correction and with it, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....methods.pila import PilaAdapter, PilaCorrection, PilaSettings
from ...backbones.sample import sample
from ..preview import write_video
from .data import Batch

STEPS = 20
FRAMES_PER_SECOND = 16.0


@torch.no_grad()
def write_films(adapter: PilaAdapter, backbone: Any, batch: Batch, folder: Path, step: int) -> list[Path]:
    """Writes films/STEP-NUMBER.mp4 for every clip of the batch; left plain, right corrected. Returns their
    paths.

    Both are sampled without CFG, the prediction that the adapter is fitted to. The backbone needs its VAE.
    Raises OSError.
    """
    paths = []
    for number in range(len(batch.latent)):
        row = slice(number, number + 1)
        tokens = batch.tokens[row].to(backbone.device)
        mask = tokens.abs().sum(dim=2) > 0
        correction = PilaCorrection(adapter, PilaSettings(labels=batch.labels[row].to(backbone.device)))
        pair = [
            side(backbone, tokens, mask, batch.latent.shape[2:], number, kept) for kept in ([], [correction])
        ]
        paths.append(folder / "films" / f"{step:06}-{number}.mp4")
        write_video(paths[-1], torch.cat(pair, dim=3), FRAMES_PER_SECOND)
    return paths


def side(
    backbone: Any,
    tokens: Tensor,
    mask: Tensor,
    shape: torch.Size,
    seed: int,
    corrections: list[PilaCorrection],
) -> Tensor:
    """One sampled and decoded clip, `3 T H W` in [0, 1]."""
    latent = sample(backbone, tokens, mask, shape, steps=STEPS, seed=seed, corrections=corrections)
    return backbone.decode_latent(latent)[0].float().cpu()
