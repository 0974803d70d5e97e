"""Weights of a fine-tune under the names that a program's own loader reads: ComfyUI's, or diffusers'.

ComfyUI: native names behind `diffusion_model.`, with an `.alpha` for every module of a LoRA. diffusers: its
own names behind `transformer.`; a LoRA's scale is multiplied into `lora_B`, because loaders of this form take
alpha = rank unless metadata says otherwise, and few read metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..console import TrainingError
from .families import KINDS
from .keys import KeyMap, KeyMapError, to_diffusers, to_native
from .lora import TuneConfig, scaling

COMFYUI_PREFIX, DIFFUSERS_PREFIX = "diffusion_model.", "transformer."


def keys_of(family: str) -> KeyMap:
    """The transformer's key map of a backbone family."""
    return KINDS[family].backbone.dit_keys


def lora_to_native(values: Mapping[str, Tensor], family: str, tune: TuneConfig) -> dict[str, Tensor]:
    """LoRA weights under peft's names in diffusers' modules -> ComfyUI's names, with an alpha for every
    module.

    ComfyUI scales by alpha / rank; the alpha written gives the scale that was trained with, rslora or not.
    """
    native = {
        COMFYUI_PREFIX + key: value for key, value in to_native(unnamed(values), keys_of(family)).items()
    }
    for key in [key for key in native if key.endswith(".lora_A.weight")]:
        rank = native[key].shape[0]  # a layer joined of three has three times the rank
        native[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(scaling(tune) * rank)
    return native


def lora_for_diffusers(values: Mapping[str, Tensor], tune: TuneConfig) -> dict[str, Tensor]:
    """LoRA weights under peft's names -> what diffusers' `load_lora_weights` and `load_lora_adapter` read.

    The file has no alpha: `lora_B` carries the scale that was trained with.
    """
    scale = scaling(tune)
    return {
        DIFFUSERS_PREFIX + key: value * scale if key.endswith(".lora_B.weight") else value
        for key, value in unnamed(values).items()
    }


def unnamed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA weights without the adapter's name that peft puts into a key."""
    return {
        key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B."): value
        for key, value in values.items()
    }


def lora_to_diffusers(native: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The inverse of `lora_to_native`, alphas left out. Raises TrainingError for a LoRA of another family."""
    state = {key: value for key, value in native.items() if not key.endswith(".alpha")}
    try:
        return to_diffusers(state, keys_of(family))
    except KeyMapError as error:
        raise TrainingError(f"this LoRA does not fit a {family} model: {error}") from error


def full_to_native(
    values: Mapping[str, Tensor], family: str, dit_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A whole transformer under native names. CogVideoX without rotary positions also gets its position
    table."""
    native = to_native(values, keys_of(family))
    if family == "cogvideox" and not dit_config["use_rotary_positional_embeddings"]:
        native["patch_embed.pos_embedding"] = position_table(dit_config)
    return native


def diffusers_config(values: Mapping[str, Tensor], family: str, dit_config: Mapping[str, Any]) -> str:
    """The `config.json` of a whole transformer. Raises TrainingError where the weights are not all that its
    class holds."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, KINDS[family].backbone.dit_class)(**dit_config)
    if odd := sorted(model.state_dict().keys() ^ values.keys()):
        raise TrainingError(
            f"the checkpoint's weights are not those of diffusers' {type(model).__name__}: {odd[0]!r} is in "
            f"one of the two alone; export it with the version that trained it."
        )
    return model.to_json_string()


def position_table(dit_config: Mapping[str, Any]) -> Tensor:
    """CogVideoX-2B's fixed position table, `1, 226 + F H W, C`; without it ComfyUI takes the model for a
    rotary one."""
    from diffusers.models.embeddings import CogVideoXPatchEmbed

    return CogVideoXPatchEmbed(
        patch_size=dit_config["patch_size"],
        in_channels=1,
        embed_dim=dit_config["num_attention_heads"] * dit_config["attention_head_dim"],
        text_embed_dim=1,
        sample_width=dit_config["sample_width"],
        sample_height=dit_config["sample_height"],
        sample_frames=dit_config["sample_frames"],
        temporal_compression_ratio=dit_config["temporal_compression_ratio"],
        max_text_seq_length=dit_config["max_text_seq_length"],
        spatial_interpolation_scale=dit_config["spatial_interpolation_scale"],
        temporal_interpolation_scale=dit_config["temporal_interpolation_scale"],
        use_positional_embeddings=True,
        use_learned_positional_embeddings=False,
    ).pos_embedding
