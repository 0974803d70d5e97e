"""`latent-physics export`: a checkpoint of a fine-tune -> what ComfyUI's or diffusers' own loaders take.

ComfyUI: a file for Load LoRA or Load Diffusion Model. diffusers: a file for `load_lora_weights`, or a folder
whose `transformer` subfolder `from_pretrained` reads (it has no single-file loader for CogVideoX). The
projectors of the objectives stay behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ... import __version__
from ...methods.weights import (
    WeightsError,
    WeightsInfo,
    load_weights,
    read_info,
    save_weights,
    write_atomically,
)
from ..backbones.formats import (
    diffusers_config,
    full_to_native,
    lora_for_diffusers,
    lora_to_diffusers,
    lora_to_native,
)
from ..backbones.lora import TuneConfig, scaling
from ..console import TrainingError, saving
from ..loop.checkpoint import KIND, kept_state
from ..objectives import parse

LORA_KIND, FULL_KIND = "lora", "diffusion_model"
FOR_DIFFUSERS = "diffusers_"
"""Prefix of kinds whose tensors have diffusers' names."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class ExportConfig:
    """Turns a run's checkpoint into a file for ComfyUI, or into what diffusers loads."""

    run: Path
    """The run's folder, or one checkpoint in it."""
    out: Path | None = None
    """The file to write (a folder for a full fine-tune in diffusers' format); left out, a name in the run's
    folder."""
    format: Literal["comfyui", "diffusers"] = "comfyui"
    """Program whose own loader reads the result."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 for a LoRA and bfloat16 for a full fine-tune."""
    raw: bool = False
    """Export the last weights even where the run kept an average of them, or the best ones."""


def export(config: ExportConfig) -> Path:
    """Writes the file, or the folder, and returns its path. Raises TrainingError, WeightsError or
    KeyMapError."""
    checkpoint = config.run / "checkpoint.safetensors" if config.run.is_dir() else config.run
    if not checkpoint.is_file():
        raise TrainingError(
            f"{config.run} holds no checkpoint; train first with: latent-physics finetune --out {config.run}"
        )
    tensors, info = load_weights(checkpoint, KIND)
    if "tune" not in info.config:
        raise TrainingError(f"{checkpoint} is no checkpoint of a fine-tune.")
    progress = info.recipe["progress"]
    state, step = ("model", progress["step"]) if config.raw else kept_state(tensors, progress)
    prefix = f"{state}/dit."
    values = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not values:
        raise TrainingError(f"{checkpoint} holds no weights of a transformer.")
    averaged = not config.raw and any(key.startswith("average/") for key in tensors)
    described = description(info, averaged, step)
    lora = described.kind == LORA_KIND
    dtype = DTYPES[config.dtype if config.dtype != "auto" else "float32" if lora else "bfloat16"]
    out = config.out or checkpoint.parent / usual_name(info.config, lora, config.format)
    with saving(out.name, "the checkpoint is safe"):
        if config.format == "comfyui":
            save_weights(out, in_format(comfyui_tensors(values, info.config), dtype), described)
        else:
            write_diffusers(out, values, info.config, dtype, described)
    return out


def comfyui_tensors(values: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's weights as ComfyUI's loaders name them."""
    tune, family = TuneConfig(**about["tune"]), about["family"]
    if tune.mode == "lora":
        return lora_to_native(values, family, tune)
    return full_to_native(values, family, about["dit_config"])


def write_diffusers(
    out: Path,
    values: Mapping[str, Tensor],
    about: Mapping[str, Any],
    dtype: torch.dtype,
    described: WeightsInfo,
) -> None:
    """Writes a LoRA as one file, a full fine-tune as `out/transformer`; the weights are what comes last.

    Raises TrainingError where the weights do not make up the transformer that its configuration names.
    """
    described = replace(described, kind=FOR_DIFFUSERS + described.kind)
    tune = TuneConfig(**about["tune"])
    if tune.mode == "lora":
        save_weights(out, in_format(lora_for_diffusers(values, tune), dtype), described)
        return
    if out.suffix == ".safetensors" or out.is_file():
        raise TrainingError(
            f"out is {out}, a file; a full fine-tune in diffusers' format is a folder: give a folder's name."
        )
    text = diffusers_config(values, about["family"], about["dit_config"])
    folder = out / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", text.encode())
    save_weights(folder / "diffusion_pytorch_model.safetensors", in_format(values, dtype), described)


def in_format(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors in the file's number format; alphas stay as they are."""
    return {
        key: value if key.endswith(".alpha") else value.to(dtype).contiguous() for key, value in state.items()
    }


def description(info: WeightsInfo, averaged: bool, step: int) -> WeightsInfo:
    """Metadata of the exported file: the checkpoint's run without anything of this disk. step: that of the
    weights."""
    about = info.config
    tune = TuneConfig(**about["tune"])
    recipe = {
        "step": step,
        "averaged": averaged,
        "trainer": info.recipe["trainer"],
        **{key: about[key] for key in ("recipe", "tune")},
        **({"calibrated": about["calibrated"]} if about.get("calibrated") else {}),
        "objectives": [" ".join(map(without_folder, text.split())) for text in parse.counted_from_one(about)],
        "blocks_from": 1,
        "base": without_folder(about["base"]),
        "versions": versions(),
    }
    lora = tune.mode == "lora"
    config = {"family": about["family"]} | (
        {"rank": tune.rank} if lora else {"dit_config": about["dit_config"]}
    )
    kind = LORA_KIND if lora else FULL_KIND
    return WeightsInfo(kind=kind, latent_space=info.latent_space, config=config, recipe=recipe)


def usual_name(about: Mapping[str, Any], lora: bool, form: str) -> str:
    """The name of what is written, where none was given."""
    name = f"{about['recipe'] or about['family']}-{'lora' if lora else 'full'}"
    if form == "comfyui":
        return f"{name}.safetensors"
    return f"{name}-diffusers" + (".safetensors" if lora else "")


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
    """Versions of the packages that made the file."""
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
    names = [key.removesuffix(".alpha") for key in native if key.endswith(".alpha")]
    ranks = {name: native[f"{name}.lora_A.weight"].shape[0] for name in names}
    found = {native[f"{name}.alpha"].item() * tune.rank / rank for name, rank in ranks.items()}
    if odd := [value for value in found if abs(value - alpha) > 1e-3]:
        raise TrainingError(
            f"{path.name} acts with alpha {odd[0]:g}, the run's LoRA with {alpha:g}; give that --alpha (and "
            f"its --rslora)."
        )
    return lora_to_diffusers(native, family)
