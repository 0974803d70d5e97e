"""The encoders that caching loads: a text encoder, a VAE and, for image-to-video, CLIP's view of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..backbones import Backbone, load_backbone
from ..console import TrainingError
from ..loop.processes import pick_device
from .format import CacheConfig

Part = Literal["vae", "text"]
BOTH: tuple[Part, ...] = ("vae", "text")


def encoder_source(config: CacheConfig, parts: Sequence[Part] = BOTH) -> Any:
    """Sources of `parts` for `load_backbone`. Raises TrainingError where files do not go together."""
    if config.model:
        raise TrainingError(
            f"model {config.model!r} is encoded inside ComfyUI only: use the node Train Motion Predictor "
            "with a folder, or give backbone wan, cogvideox or toy here."
        )
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
        also = {"tokenizer": config.tokenizer, "dit": config.dit if config.backbone == "cogvideox" else None}
        return files | {name: value for name, value in also.items() if value}
    if config.dit:
        raise TrainingError("dit goes with vae and text: a source says itself which CogVideoX it is.")
    return config.source


def loaders(
    config: CacheConfig, parts: Sequence[Part] = BOTH
) -> tuple[Callable[[], Backbone], Callable[[], Backbone]]:
    """Functions that load the backbone's text encoder and its VAE, of which `parts` will be called. Raises
    TrainingError where the files do not go together."""
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


def vision_source(config: CacheConfig) -> Any:
    """Where CLIP's vision encoder is: its file, or a source folder that has one. None where a first frame is
    not to be seen with it."""
    if not config.first_frame:
        return None
    if config.clip_vision:
        return {"vision": config.clip_vision}
    return config.source if (Path(config.source or "") / "image_encoder").is_dir() else None
