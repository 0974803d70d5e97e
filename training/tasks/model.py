"""The video model that a command tunes: its settings, and what is loaded by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.compute import ComputeConfig, check_compute, set_up
from ..backbones.families import FamilyName
from ..backbones.header import check_expert
from ..backbones.load import load_backbone
from ..backbones.lora import TuneConfig, attach
from ..backbones.refuse import check_layout
from ..backbones.swap import swap_blocks
from ..console import TrainingError
from ..data.loaders import Part
from ..loop.checkpoint import fill
from ..loop.optim import trainable
from ..settings import Number
from .export import DTYPES, read_lora


@dataclass(kw_only=True)
class ModelConfig(ComputeConfig):
    """The model that is tuned, its trained part, and the file that is made of it."""

    recipe: str = ""
    """A recipe that comes with the pack, or a JSON file; everything given after it on the command line
    wins."""
    about: str = ""
    """Where the recipe's numbers come from."""
    backbone: FamilyName = "wan"
    """The model's family."""
    source: str | None = None
    """Diffusers folder or hub id; left out, the family's smallest model."""
    dit: Path | None = None
    """A transformer file as ComfyUI's models/diffusion_models holds it (fp16 or bf16), instead of
    `source`."""
    vae: Path | None = None
    """A VAE file."""
    text: Path | None = None
    """A text encoder file."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where the text encoder file carries none (T5, Qwen2.5-VL)."""
    text_also: Path | None = None
    """HunyuanVideo 1.5 with `vae` and `text`: byT5's file, which reads words in quotes."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the frozen weights under a LoRA. A full fine-tune keeps float32 weights."""
    fp8_storage: bool = False
    """Keep the frozen weights in float8 and compute in `weights`: a LoRA on a small card."""
    blocks_to_swap: Number = 0
    """Number of blocks, from the last, whose frozen weights wait in the computer's memory and come to the
    card for their own computation; all, where the model has fewer. For a LoRA with checkpointing."""
    init: Path | None = None
    """A LoRA file of this pack to go on from."""
    export: bool = True
    """Write a file for ComfyUI, or for diffusers, at the end."""
    export_format: Literal["comfyui", "diffusers"] = "comfyui"
    """Program whose own loader reads that file."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of that file."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """Weights that are trained."""


def check_model(config: ModelConfig, precision: str, checkpointing: bool, preset: str | None = None) -> None:
    """Raises TrainingError for what can be known before anything is loaded. precision, checkpointing: the
    loop's; preset: the noise preset, None where the model is asked at every noise."""
    if config.init and not config.init.is_file():
        raise TrainingError(f"init is {config.init}, which does not exist.")
    if config.dit and config.source:
        raise TrainingError("dit and source name two models; give one of them.")
    if config.dit:
        check_layout(config.dit)
    elif config.backbone == "wan":
        check_expert(config.source, preset)
    check_compute(config, config.backbone)
    of_lora = ("fp8_storage", "quantize", "init", "blocks_to_swap")
    if config.tune.mode == "full" and any(getattr(config, name) for name in of_lora):
        what = next(name for name in of_lora if getattr(config, name))
        raise TrainingError(
            f"{what} is for a LoRA; a full fine-tune starts from `source` or `dit` and keeps float32 weights."
        )
    if config.fp8_storage and config.quantize:
        raise TrainingError(
            f"fp8_storage and quantize={config.quantize} both store weights; give one of them."
        )
    if config.blocks_to_swap and not checkpointing:
        raise TrainingError(
            f"blocks_to_swap is {config.blocks_to_swap}; without checkpointing the backward pass keeps every "
            f"block's weights on the card: add --checkpointing."
        )
    if config.backbone == "ltx23" and config.tune.mode == "full":
        raise TrainingError(
            "mode is full; of LTX-2.3 the video's half is trained without sound, and a whole file would hold "
            "a sound that no longer fits it: train a LoRA."
        )
    if config.tune.mode == "lora" and config.weights == "float16" and precision == "bf16":
        raise TrainingError("weights are float16 and precision is bf16; use bfloat16 weights.")


def load_dit(config: ModelConfig) -> Backbone:
    """The transformer alone, on the CPU: the loop places it."""
    source: Any = {"dit": config.dit} if config.dit else config.source
    dtype = torch.float32 if config.tune.mode == "full" else DTYPES[config.weights]
    return load_backbone(config.backbone, source, parts=("dit",), dtype=dtype, fp8_storage=config.fp8_storage)


def encoder_files(config: ModelConfig, parts: Sequence[Part]) -> dict[str, Any]:
    """Settings of CacheConfig that say where `parts` come from: `source`, or the files given instead."""
    files = any(getattr(config, part) for part in parts)
    # The transformer's file tells the scale of CogVideoX's latents.
    dit = config.dit if files and config.backbone == "cogvideox" else None
    source = None if files else config.source
    given = {name: getattr(config, name) for name in ("backbone", "vae", "text", "tokenizer", "text_also")}
    return given | {"source": source, "dit": dit}


def make_trainable(config: ModelConfig, backbone: Backbone, seed: int, checkpointing: bool) -> None:
    """Attaches the LoRA of `tune`, with the weights of `init`, or thaws all. Raises TrainingError."""
    attach(backbone, config.tune, seed)
    if config.init:
        state = read_lora(config.init, backbone.family, backbone.latent_space, config.tune)
        named: Mapping[str, Tensor] = {
            key.replace(".weight", ".default.weight"): value for key, value in state.items()
        }
        fill(trainable(backbone.dit), named, config.init)
    set_up(backbone, config)
    if config.blocks_to_swap:
        swap_blocks(backbone.blocks, config.blocks_to_swap)
    if checkpointing:
        backbone.dit.enable_gradient_checkpointing()


def about_model(config: ModelConfig, backbone: Backbone) -> dict[str, Any]:
    """The model's entries in the checkpoint and the exported file."""
    plain = {key: value for key, value in dict(backbone.dit.config).items() if not key.startswith("_")}
    return {
        "recipe": config.recipe and Path(config.recipe).stem,
        "family": backbone.family,
        "base": str(config.dit or config.source or config.backbone),
        "tune": asdict(config.tune),
        "dit_config": plain,
    }
