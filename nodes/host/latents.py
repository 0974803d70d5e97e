"""Clips out of a LATENT or a folder, for a training inside the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...methods.lamo import pool_tokens
from ...methods.video_models import SPACES, TOY, main_model
from . import spaces, video_folder, wires

if TYPE_CHECKING:
    from ...training.data.clips import Clips
    from ...training.tasks.predictor import PredictorConfig


BYTES_PER_ACTIVATION = 34.0
"""Memory of a training step per pair, position, channel and block: the full recipe measures 0.4 GiB at 60 x
104."""


def clips_of_latent(latent: dict[str, Any], space: str, positive: list[Any] | None) -> Clips:
    """The clips of a LATENT and their prompts. Raises ValueError where they do not fit."""
    from ...training.data.clips import Clips

    video = sampled_latents(latent, space)
    return Clips.from_tensors(
        list(video), pooled_prompts(positive, len(video)), space, cond_dim=prompt_width(space)
    )


def clips_of_folder(
    folder: str,
    space: str,
    vae: Any,
    clip: Any | None,
    positive: list[Any] | None,
    cut: video_folder.Cut,
    scratch: Path,
) -> tuple[Clips, list[str]]:
    """(the clips of a folder, a sentence for each that could not be used). Raises ValueError where none can
    be."""
    if folder == video_folder.FIRST:
        clip = None  # they have no captions
    if clip is not None and positive:
        raise ValueError(
            "there are two sources of prompts: wire clip, for the captions, or positive, one prompt for all."
        )
    fixed = pooled_prompts(positive, 1)
    fixed = torch.zeros(prompt_width(space)) if fixed is None else fixed[0]

    def embed(caption: str) -> Tensor:
        if clip is None:
            return fixed
        return pooled_prompts(clip.encode_from_tokens_scheduled(clip.tokenize(caption)), 1)[0]

    return video_folder.encode_folder(
        folder, space, vae, embed, cut, scratch=scratch, to_sampled=sampled_latents
    )


def prompt_width(space: str) -> int:
    """Numbers per token of the prompts of a space's main model, for a training without prompts; umT5's for
    the toy world."""
    model = main_model(space)
    return 4096 if model is None else model.prompt_width


def sampled_latents(latent: dict[str, Any], space: str) -> Tensor:
    """The clips of a LATENT as a model of `space` samples them, `B C T H W` float32 on the CPU.

    Wires carry the VAE's latents; predictors read what samplers see. Raises ValueError where the latent is
    not of that space.
    """
    video = wires.video_in(latent)
    if video.ndim != 5:
        raise ValueError(
            f"Train Motion Predictor needs a video latent, B C T H W, but this one is {tuple(video.shape)}."
        )
    form = spaces.latent_format(space)
    if form is None:
        raise ValueError(
            f"this ComfyUI does not know the latent space {space!r}; choose another one, or update ComfyUI."
        )
    channels = SPACES.get(space, TOY).channels
    if channels != video.shape[1]:
        raise ValueError(
            f"this latent has {video.shape[1]} channels, but {space} latents have {channels}: "
            f"choose the latent "
            "space of the VAE that made it."
        )
    return form.process_in(video.float().cpu())


def pooled_prompts(positive: list[Any] | None, clips: int) -> Tensor | None:
    """One pooled prompt embedding per clip, `clips D`; None without prompts.

    Raises ValueError where there are neither one nor as many prompts as clips, or they have no tokens.
    """
    rows = []
    for tokens, options in positive or []:
        if tokens.ndim != 3:
            raise ValueError("this prompt has no text tokens; wire the output of CLIP Text Encode.")
        mask = options.get("attention_mask")
        fits = mask is not None and mask.ndim == 2 and mask.shape[-1] == tokens.shape[1]
        rows += list(pool_tokens(tokens, mask if fits else None).float().cpu())
    if not rows:
        return None
    if len(rows) not in (1, clips):
        raise ValueError(
            f"there are {len(rows)} prompts for {clips} clips; wire one prompt for all, or one for each."
        )
    return torch.stack(rows * (clips // len(rows)))


def step_bytes(config: PredictorConfig, height: int, width: int) -> float:
    """About what a training step needs on the device."""
    return BYTES_PER_ACTIVATION * height * width * config.width * config.blocks * config.batch
