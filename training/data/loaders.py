"""The encoders that caching loads: a text encoder, a VAE and, for image-to-video, CLIP's view of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones import Backbone, load_backbone
from ..console import TrainingError
from ..loop.processes import pick_device
from .cache import TextEncoder, VideoEncoder
from .format import CacheConfig, model_of

Part = Literal["vae", "text"]
BOTH: tuple[Part, ...] = ("vae", "text")
OWN_LOADERS = {"wan2.1": "wan", "wan2.2-5b": "wan", "hunyuan_video1.5": "hunyuan15"}
"""Models of the table whose files a backbone reads without ComfyUI."""


def encoder_source(config: CacheConfig, parts: Sequence[Part] = BOTH) -> Any:
    """Sources of `parts` for `load_backbone`. Raises TrainingError where files do not go together."""
    files = {part: getattr(config, part) for part in parts}
    if any(files.values()):
        if not all(files.values()) or config.source:
            raise TrainingError(
                "vae and text go together, instead of source: give both files, or a source alone."
            )
        if config.backbone == "cogvideox" and "vae" in parts and not config.dit:
            raise TrainingError(
                "2B and 5B of CogVideoX share a VAE file, but not the scale of their latents: give the "
                "model's file as dit, too."
            )
        if config.backbone == "hunyuan15" and "text" in parts and not (config.text_also and config.tokenizer):
            raise TrainingError(
                "HunyuanVideo 1.5 reads prompts with Qwen2.5-VL and byT5: give byT5's file as text_also, and "
                "Qwen2.5's tokenizer (a folder or hub id), beside text."
            )
        also = {
            "tokenizer": config.tokenizer,
            "text_also": config.text_also,
            "dit": config.dit if config.backbone == "cogvideox" else None,
        }
        return files | {name: value for name, value in also.items() if value}
    if config.dit:
        raise TrainingError("dit goes with vae and text: a source says itself which CogVideoX it is.")
    return config.source


def loaders(
    config: CacheConfig, parts: Sequence[Part] = BOTH
) -> tuple[Callable[[], TextEncoder], Callable[[], VideoEncoder]]:
    """Functions that load the backbone's text encoder and its VAE, of which `parts` will be called; a `model`
    of the table is loaded by ComfyUI.

    Raises TrainingError where the files do not go together, or nothing here can load them.
    """
    if config.model:
        return model_loaders(config, parts)
    device, source = pick_device(config.device), encoder_source(config, parts)
    # The text encoder is 5 to 11 GB in half precision, and half precision is what the models were trained
    # with.
    text_dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    if config.clip_vision and not config.first_frame:
        raise TrainingError("clip_vision is what a first frame is seen with; give first_frame too.")

    def load_vae() -> Backbone:
        backbone = load_backbone(config.backbone, source, parts=("vae",), device=device)
        if vision := vision_source(config):
            backbone.vision = load_backbone(
                config.backbone, vision, parts=("vision",), device=device, dtype=text_dtype
            ).vision
        return backbone

    def load_text() -> Backbone:
        return load_backbone(config.backbone, source, parts=("text",), device=device, dtype=text_dtype)

    return load_text, load_vae


def model_loaders(
    config: CacheConfig, parts: Sequence[Part] = BOTH
) -> tuple[Callable[[], TextEncoder], Callable[[], VideoEncoder]]:
    """The same for a model of the table, from ComfyUI's files: by ComfyUI where there is one, else by the
    backbone of its latents where it has one. Without a text file the clips have no prompts."""
    from ..backbones import comfyui

    model, device = model_of(config), pick_device(config.device)
    family = OWN_LOADERS.get(model.name)
    check_model_files(config, parts)
    texts = [path for path in (config.text, config.text_also) if path]
    if comfyui.find_comfyui():
        load_vae = partial(comfyui.ComfyVideoEncoder, model, config.vae, device)
        load_text = partial(comfyui.ComfyTextEncoder, model, texts, device)
    elif family:
        load_text, load_vae = loaders(
            replace(config, backbone=family, model=None), BOTH if texts and "text" in parts else ("vae",)
        )
    else:
        raise TrainingError(comfyui.NO_COMFYUI)
    return load_text if texts else partial(NoText, model.prompt_width), load_vae


def check_model_files(config: CacheConfig, parts: Sequence[Part] = BOTH) -> None:
    """Raises TrainingError where a `model` lacks a file, or is asked for what only backbones have."""
    if config.vae is None and "vae" in parts:
        raise TrainingError(
            f"model {config.model!r} is encoded by its VAE's file: give it as vae, as ComfyUI's models/vae "
            "holds it (for LTX the checkpoint), and its text encoder's as text where prompts are to count."
        )
    if config.text_also and not config.text:
        raise TrainingError("text_also is a second file beside text; give text too.")
    if config.first_frame:
        raise TrainingError("first_frame is made for backbone wan only; give backbone in place of model.")
    if config.tokens and not config.text:
        raise TrainingError("tokens are made by a text encoder; give its file as text.")


class NoText:
    """The text encoder of a cache without prompts: no token, whatever the caption."""

    def __init__(self, width: int) -> None:
        self.width = width

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Zeros `B 1 D`, and a mask that counts none of them."""
        return torch.zeros(len(prompts), 1, self.width), torch.zeros(len(prompts), 1, dtype=torch.bool)


def vision_source(config: CacheConfig) -> Any:
    """Where CLIP's vision encoder is: its file, or a source folder that has one. None where a first frame is
    not to be seen with it."""
    if not config.first_frame:
        return None
    if config.clip_vision:
        return {"vision": config.clip_vision}
    return config.source if (Path(config.source or "") / "image_encoder").is_dir() else None
