"""The families of backbones, and what loading one takes: a row for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..console import TrainingError
from . import cogvideox, hunyuan15, ltx2, qwen, text, wan
from .base import Backbone
from .first_frame import siglip_from_file, vision_from_file
from .keys import KeyMap

Config = Callable[[Mapping[str, Tensor]], dict[str, Any]]
"""A native state dict -> arguments of the model's class in diffusers."""
Source = Mapping[str, str | os.PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's class, and the readers of its parts in a diffusers folder and in native files."""

    backbone: type[Backbone]
    model: str
    """Row of `methods.video_models` whose size, length, rate and latent space are usual."""
    source: str | None
    """Hub id of its smallest model; None for one that comes with the pack."""
    dit_config: Config
    vae_config: Config
    vae_keys: Callable[[Mapping[str, Tensor]], KeyMap]
    text_folder: Callable[[str | os.PathLike[str], torch.dtype], nn.Module]
    text_files: Callable[[Source, torch.dtype], nn.Module]
    vision_class: str = "CLIPVisionModel"
    """Class in transformers of the encoder that sees a first frame."""
    vision_file: Callable[[Path, dict[str, Tensor], torch.dtype], nn.Module] = vision_from_file
    encoders: bool = True
    """Whether videos and prompts are encoded here; `vae_config` and the rest say otherwise where not."""
    connector_folder: Callable[[str | os.PathLike[str], torch.dtype], nn.Module] | None = None
    """Connector that prompts go through before the transformer, of a diffusers folder."""
    connector_file: Callable[[Mapping[str, Any], str, torch.dtype], nn.Module] | None = None
    """The same, of a native file with the transformer."""
    connector_like: Callable[[Mapping[str, Any]], nn.Module] | None = None
    """The same for the arguments of a transformer, of the published sizes: what `plan` counts."""
    transformer_part: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """The transformer's tensors of a file that may hold more."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of names in older native files, and what they are now."""


def _t5_file(source: Source, dtype: torch.dtype) -> nn.Module:
    return text.from_native_file(Path(source["text"]), source.get("tokenizer"), dtype)


def _toy_file(source: Source, dtype: torch.dtype) -> nn.Module:
    from ...methods.weights import WeightsError
    from ...toyworld.text import ToyTextEncoder

    try:
        return ToyTextEncoder.load(Path(source["text"]), dtype)
    except WeightsError as error:
        raise TrainingError(str(error)) from error


WAN = Family(
    backbone=wan.WanBackbone,
    model="wan2.1",
    source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    dit_config=wan.dit_config,
    vae_config=wan.vae_config,
    vae_keys=wan.vae_keys_of,
    text_folder=partial(text.from_folder, encoder="UMT5EncoderModel"),
    text_files=_t5_file,
)
KINDS: Mapping[str, Family] = {
    "wan": WAN,
    "cogvideox": Family(
        backbone=cogvideox.CogVideoXBackbone,
        model="cogvideox",
        source="THUDM/CogVideoX-2b",
        dit_config=cogvideox.dit_config,
        vae_config=lambda state: {},
        vae_keys=lambda state: (),
        text_folder=partial(text.from_folder, encoder="T5EncoderModel"),
        text_files=_t5_file,
    ),
    "hunyuan15": Family(
        backbone=hunyuan15.HunyuanVideo15Backbone,
        model="hunyuan_video1.5",
        source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        dit_config=hunyuan15.dit_config,
        vae_config=hunyuan15.vae_config,
        vae_keys=lambda state: hunyuan15.HUNYUAN15_VAE,
        text_folder=qwen.from_folder,
        text_files=qwen.from_files,
        vision_class="SiglipVisionModel",
        vision_file=siglip_from_file,
        renamed=hunyuan15.RENAMED,
    ),
    "ltx23": Family(
        backbone=ltx2.LTX23Backbone,
        model="ltx2.3",
        source="diffusers/LTX-2.3-Distilled-Diffusers",
        dit_config=ltx2.dit_config,
        vae_config=ltx2.no_encoders,
        vae_keys=ltx2.no_encoders,
        text_folder=ltx2.no_encoders,
        text_files=ltx2.no_encoders,
        encoders=False,
        connector_folder=ltx2.connector_from_folder,
        connector_file=ltx2.connector_from,
        connector_like=ltx2.connector_like,
        transformer_part=ltx2.video_part,
    ),
    "toy": replace(WAN, model="toy", source=None, text_files=_toy_file),
}
"""By what commands call them. The toy world's models are of Wan's architecture."""
FamilyName = Literal[tuple(KINDS)]
"""A key of KINDS, as settings and their --help name it."""
