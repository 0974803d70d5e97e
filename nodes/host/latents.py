"""Clips out of a LATENT or a folder, for a training inside the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    from ...training.data.clips import Clips

    if folder == video_folder.FIRST:
        clip = None  # they have no captions
    one_source_of_prompts(clip, positive)
    fixed = pooled_prompts(positive, 1)
    fixed = torch.zeros(prompt_width(space)) if fixed is None else fixed[0]

    def embed(caption: str) -> Tensor:
        if clip is None:
            return fixed
        return pooled_prompts(clip.encode_from_tokens_scheduled(clip.tokenize(caption)), 1)[0]

    skipped = video_folder.cache_folder(
        folder, space, vae, video_folder.ComfyText(embed), cut, out=scratch, to_sampled=sampled_latents
    )
    return Clips.from_folder(scratch), skipped


def cache_latent(
    latent: dict[str, Any], space: str, positive: list[Any] | None, width: int, out: Path
) -> None:
    """Writes the clips of a LATENT and their prompts' tokens into `out`, as the cache command does. width:
    numbers per token. Raises ValueError where they do not fit."""
    from ...training.data.clip import ClipInfo, write_clip

    video = sampled_latents(latent, space)
    prompts = prompt_tokens(positive, len(video)) or [torch.zeros(0, width)] * len(video)
    for number, (clip, tokens) in enumerate(zip(video, prompts)):
        key = content_key(clip, tokens)
        info = ClipInfo(
            source=f"latent {number}", source_hash=key, key=key, caption="", caption_from="none", window=0,
            last=True, start=0.0, frames=0, width=0, height=0, fps=0.0,
        )  # fmt: skip
        cond = pool_tokens(tokens[None])[0] if len(tokens) else torch.zeros(width)
        path = out / f"latent-{number:05}.safetensors"
        write_clip(path, clip.contiguous(), cond, info, space, tokens=tokens)


def cache_videos(
    folder: str,
    space: str,
    vae: Any,
    clip: Any | None,
    positive: list[Any] | None,
    cut: video_folder.Cut,
    *,
    width: int,
    out: Path,
    node: str,
) -> list[str]:
    """Encodes a folder into `out` with its prompts' tokens; returns a sentence for each clip that could not
    be used. width: numbers per token. Raises ValueError where none can be."""
    from ...training.backbones.comfyui import ComfyPrompts
    from ...training.data.loaders import NoText

    if folder == video_folder.FIRST:
        clip = None  # they have no captions
    one_source_of_prompts(clip, positive)
    text: Any = NoText(width)
    if clip is not None:
        text = ComfyPrompts(clip, width, "the wired clip", "this MODEL")
    elif positive:
        text = OnePrompt(prompt_tokens(positive, 1)[0])
    return video_folder.cache_folder(
        folder, space, vae, text, cut, out=out, to_sampled=sampled_latents, tokens=True, node=node
    )


class OnePrompt:
    """The text encoder of a folder whose videos all have one prompt, of tokens `L D`."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` and mask `B L`, whatever the captions."""
        tokens = self.tokens.expand(len(prompts), -1, -1)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


def one_source_of_prompts(clip: Any | None, positive: list[Any] | None) -> None:
    """Raises ValueError where a folder's prompts would come from two inputs."""
    if clip is not None and positive:
        raise ValueError(
            "there are two sources of prompts: wire clip, for the captions, or positive, one prompt for all."
        )


def prompt_tokens(positive: list[Any] | None, clips: int) -> list[Tensor]:
    """The tokens `L D` that count of each clip's prompt; [] without prompts. Raises ValueError as
    `pooled_prompts`."""
    from ...training.backbones.comfyui import counted_tokens

    rows: list[Tensor] = []
    for tokens, options in positive or []:
        check_tokens(tokens)
        mask = options.get("attention_mask")
        for row in range(len(tokens)):
            masked = {} if mask is None else {"attention_mask": mask[min(row, len(mask) - 1)][None]}
            found, counted = counted_tokens(tokens[row : row + 1], masked)
            rows.append(found[counted])
    return one_for_each(rows, clips)


def content_key(*tensors: Tensor) -> str:
    """A hash of tensors' values."""
    digest = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
        raise ValueError(f"Training needs a video latent, B C T H W, but this one is {tuple(video.shape)}.")
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
        check_tokens(tokens)
        mask = options.get("attention_mask")
        fits = mask is not None and mask.ndim == 2 and mask.shape[-1] == tokens.shape[1]
        rows += list(pool_tokens(tokens, mask if fits else None).float().cpu())
    return torch.stack(one_for_each(rows, clips)) if rows else None


def check_tokens(tokens: Tensor) -> None:
    """Raises ValueError for a CONDITIONING without tokens `B L D`."""
    if tokens.ndim != 3:
        raise ValueError("this prompt has no text tokens; wire the output of CLIP Text Encode.")


def one_for_each(rows: list[Tensor], clips: int) -> list[Tensor]:
    """As many prompts as clips, of one or of as many; [] of none. Raises ValueError for another number."""
    if rows and len(rows) not in (1, clips):
        raise ValueError(
            f"there are {len(rows)} prompts for {clips} clips; wire one prompt for all, or one for each."
        )
    return rows * (clips // len(rows)) if rows else []


def step_bytes(config: PredictorConfig, height: int, width: int) -> float:
    """About what a training step needs on the device."""
    return BYTES_PER_ACTIVATION * height * width * config.width * config.blocks * config.batch
