"""`latent-physics export`: a checkpoint of a fine-tune -> a safetensors file that ComfyUI's own loaders take.

A LoRA becomes `diffusion_model.<native name>.lora_A.weight`, `.lora_B.weight` and `.alpha` (Load LoRA); a
full fine-tune becomes the whole transformer under native names (Load Diffusion Model). The projectors of the
objectives stay behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ... import __version__
from ...methods.weights import WeightsError, WeightsInfo, load_weights, read_info, save_weights
from ..backbones.cogvideox import COGVIDEOX_DIT
from ..backbones.keys import WAN_DIT, KeyMap, KeyMapError, to_diffusers, to_native
from ..backbones.lora import TuneConfig, scaling
from ..console import TrainingError, saving
from ..loop.checkpoint import KIND
from ..objectives import parse

LORA_KIND, FULL_KIND = "lora", "diffusion_model"
PREFIX = "diffusion_model."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class ExportConfig:
    """Turns a run's checkpoint into a file for ComfyUI."""

    run: Path
    """The run's folder, or one checkpoint in it."""
    out: Path | None = None
    """The file to write; left out, a name in the run's folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 for a LoRA and bfloat16 for a full fine-tune."""
    raw: bool = False
    """Export the last weights even where the run kept an average of them."""


def keys_of(family: str) -> KeyMap:
    """The transformer's key map of a backbone family."""
    return COGVIDEOX_DIT if family == "cogvideox" else WAN_DIT


def lora_to_native(values: Mapping[str, Tensor], family: str, tune: TuneConfig) -> dict[str, Tensor]:
    """LoRA weights under peft's names in diffusers' modules -> ComfyUI's names, with an alpha for every
    module.

    ComfyUI scales by alpha / rank; the alpha written gives the scale that was trained with, rslora or not.
    """
    state = {
        key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B."): value
        for key, value in values.items()
    }
    native = {PREFIX + key: value for key, value in to_native(state, keys_of(family)).items()}
    alpha = scaling(tune) * tune.rank
    for key in [key for key in native if key.endswith(".lora_A.weight")]:
        native[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(alpha)
    return native


def lora_to_diffusers(native: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The inverse, alphas left out. Raises TrainingError for a LoRA of another family."""
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


def export(config: ExportConfig) -> Path:
    """Writes the file and returns its path. Raises TrainingError, WeightsError or TrainingError."""
    checkpoint = config.run / "checkpoint.safetensors" if config.run.is_dir() else config.run
    if not checkpoint.is_file():
        raise TrainingError(
            f"{config.run} holds no checkpoint; train first with: latent-physics finetune --out {config.run}"
        )
    tensors, info = load_weights(checkpoint, KIND)
    about = info.config
    if "tune" not in about:
        raise TrainingError(f"{checkpoint} is no checkpoint of a fine-tune.")
    averaged = not config.raw and any(key.startswith("average/") for key in tensors)
    prefix = "average/dit." if averaged else "model/dit."
    values = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not values:
        raise TrainingError(f"{checkpoint} holds no weights of a transformer.")
    tune = TuneConfig(**about["tune"])
    lora = tune.mode == "lora"
    family = about["family"]
    native = (
        lora_to_native(values, family, tune) if lora else full_to_native(values, family, about["dit_config"])
    )
    dtype = DTYPES[config.dtype if config.dtype != "auto" else "float32" if lora else "bfloat16"]
    native = {
        key: value if key.endswith(".alpha") else value.to(dtype).contiguous()
        for key, value in native.items()
    }
    recipe = {
        "step": info.recipe["progress"]["step"],
        "averaged": averaged,
        "trainer": info.recipe["trainer"],
        **{key: about[key] for key in ("recipe", "tune")},
        **({"calibrated": about["calibrated"]} if about.get("calibrated") else {}),
        "objectives": [" ".join(map(without_folder, text.split())) for text in parse.counted_from_one(about)],
        "blocks_from": 1,
        "base": without_folder(about["base"]),
        "versions": versions(),
    }
    kind = LORA_KIND if lora else FULL_KIND
    out = (
        config.out
        or checkpoint.parent / f"{about['recipe'] or family}-{'lora' if lora else 'full'}.safetensors"
    )
    described = {"family": family} | ({"rank": tune.rank} if lora else {"dit_config": about["dit_config"]})
    with saving(out.name, "the checkpoint is safe"):
        save_weights(
            out,
            native,
            WeightsInfo(kind=kind, latent_space=info.latent_space, config=described, recipe=recipe),
        )
    return out


def without_folder(word: str) -> str:
    """A file's name alone: an exported file is given to others, and need not say where things lie on this
    disk. Hub ids stay."""
    key, equals, path = word.rpartition("=")
    return (
        key + equals + Path(path).name
        if Path(path).is_absolute() or Path(path).suffix == ".safetensors"
        else word
    )


def versions() -> dict[str, str]:
    """What the file was made with."""
    import diffusers
    import peft

    return {
        "latent_physics": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
    }


def read_lora(path: Path, family: str, latent_space: str, tune: TuneConfig) -> dict[str, Tensor]:
    """A LoRA file's weights under diffusers' names, to go on training it. Raises TrainingError where it fits
    another model, rank or scale."""
    try:
        info = read_info(path)
        if info.latent_space != latent_space:
            raise TrainingError(
                f"{path.name} is a LoRA for latent space {info.latent_space}; this backbone's is "
                f"{latent_space}."
            )
        native, info = load_weights(path, LORA_KIND)
    except WeightsError as error:
        raise TrainingError(str(error)) from error
    if info.config["rank"] != tune.rank:
        raise TrainingError(
            f"{path.name} has rank {info.config['rank']}, the run's LoRA has {tune.rank}; give --rank "
            f"{info.config['rank']}."
        )
    alpha = scaling(tune) * tune.rank
    found = {value.item() for key, value in native.items() if key.endswith(".alpha")}
    if odd := [value for value in found if abs(value - alpha) > 1e-3]:
        raise TrainingError(
            f"{path.name} acts with alpha {odd[0]:g}, the run's LoRA with {alpha:g}; give that --alpha (and "
            f"its --rslora)."
        )
    return lora_to_diffusers(native, family)
