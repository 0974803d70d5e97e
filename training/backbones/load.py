"""`load_backbone`: diffusers folders, hub ids and native files become a Backbone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.video_models import MODELS
from ..console import TrainingError
from . import cogvideox, wan
from .base import Backbone
from .families import KINDS
from .first_frame import vision_from_folder
from .keys import KeyMap, KeyMapError, is_native, strip_prefix, to_diffusers, to_native
from .present import skip_zero_taps
from .refuse import refuse_quantised
from .stored import StoredTensor, fill, stored_tensors

FAMILIES = tuple(KINDS)
PARTS = ("vae", "text", "dit")
BESIDE_TEXT = ("tokenizer", "text_also")
"""Files that a text encoder's may need beside it."""
VISION = "vision"
"""A part beside those, never loaded unless it is named: what Wan 2.1 image-to-video sees of a first frame."""
DEFAULT_SOURCE = {name: kind.source for name, kind in KINDS.items() if kind.source}
TOY_TEXT_LENGTH = 24
TOY_WEIGHTS = Path(__file__).resolve().parents[2] / "toyworld" / "weights"
Source = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]


def load_backbone(
    family: str,
    source: Source | None = None,
    parts: Iterable[str] = PARTS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.float32,
    fp8_storage: bool = False,
) -> Backbone:
    """Loads a text-to-video model for training or caching; every part is frozen and in eval mode.

    `family`: a row of `families.KINDS`. `source`: a diffusers folder or hub id, a mapping of part -> native
    safetensors file
    ("dit", "vae", "text", "tokenizer" where the text file has none, "text_also" for HunyuanVideo 1.5's byT5),
    or None for the family's smallest model. `parts`: which
    of "vae", "text", "dit" to load; a CogVideoX "dit" file in the mapping also says which scale a "vae"
    file's latents have, as
    those of 2B and 5B are told apart by nothing else. `fp8_storage` keeps the transformer's weights in float8
    and computes in
    `dtype` (diffusers' layerwise casting), for LoRA on a small card. Raises TrainingError where something is
    missing or does
    not fit.
    """
    parts = tuple(parts)
    if family not in FAMILIES:
        raise TrainingError(f"backbone family {family!r} is unknown; choose one of {', '.join(FAMILIES)}.")
    if unknown := set(parts) - {*PARTS, VISION}:
        raise TrainingError(f"part {sorted(unknown)[0]!r} is unknown; parts are {', '.join(PARTS)}.")
    if source is None:
        source = (
            {part: TOY_WEIGHTS / f"toy_{part}.safetensors" for part in parts}
            if family == "toy"
            else DEFAULT_SOURCE[family]
        )
    load = _from_files if isinstance(source, Mapping) else _from_diffusers
    pieces = load(family, source, parts, dtype, vae_dtype)
    for name in (*PARTS, VISION):
        if isinstance(pieces.get(name), nn.Module):
            pieces[name].requires_grad_(False).eval()
    if fp8_storage and pieces.get("dit") is not None:
        pieces["dit"].enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    return _assemble(family, pieces, device, dtype)


def _assemble(
    family: str, pieces: dict[str, Any], device: str | torch.device, dtype: torch.dtype
) -> Backbone:
    common = {
        "vae": pieces.get("vae"),
        "text": pieces.get("text"),
        "dit": pieces.get("dit"),
        "device": device,
        "dtype": dtype,
    }
    make = _ASSEMBLE.get(family)
    if make is not None:
        backbone = make(pieces, common)
    else:
        backbone = KINDS[family].backbone(latent_space=MODELS[KINDS[family].model].space, **common)
        if backbone.vae is not None:
            backbone.vae.enable_tiling()  # its middle attends to all of a clip: 49 K tokens at 480p
    backbone.vision = pieces.get(VISION)
    if "connector" in pieces:
        backbone.connector = pieces["connector"]
    return backbone.to(device)


def _wan(pieces: dict[str, Any], common: dict[str, Any]) -> Backbone:
    backbone = wan.WanBackbone(latent_space="wan2.1", **common)
    if backbone.latent_channels == wan.WAN22_CHANNELS:
        backbone.latent_space = "wan2.2"
    return backbone


def _toy(pieces: dict[str, Any], common: dict[str, Any]) -> Backbone:
    backbone = wan.WanBackbone(latent_space="toy", **common)
    backbone.text_length = getattr(pieces.get("text"), "length", TOY_TEXT_LENGTH)
    if backbone.vae is not None:
        skip_zero_taps(backbone.vae)
    return backbone


def _cogvideox(pieces: dict[str, Any], common: dict[str, Any]) -> Backbone:
    dit, vae = pieces.get("dit"), pieces.get("vae")
    heads = dit.config.num_attention_heads if dit is not None else pieces.get("heads")
    if heads is not None:
        five = cogvideox.is_five_billion(heads)
    else:
        five = vae is not None and abs(vae.config.scaling_factor - 0.7) < 1e-3
    return cogvideox.CogVideoXBackbone(
        latent_space="cogvideox1.5" if five else "cogvideox", snr_shift=1.0 if five else 3.0, **common
    )


_ASSEMBLE: Mapping[str, Callable[[dict[str, Any], dict[str, Any]], Backbone]] = {
    "wan": _wan,
    "toy": _toy,
    "cogvideox": _cogvideox,
}
"""Families whose latent space is told by their parts."""


def _from_diffusers(
    family: str,
    source: str | os.PathLike[str],
    parts: tuple[str, ...],
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> dict[str, Any]:
    """Parts from a diffusers folder or hub id."""
    import diffusers

    if family == "toy":
        raise TrainingError(
            "the toy backbone is loaded from native files; leave `source` out or give a mapping of part to "
            "file."
        )
    if str(source).endswith((".safetensors", ".ckpt", ".pt")):
        raise TrainingError(
            f"{source} is one file; say which part it is, for example {{'dit': {str(source)!r}}}."
        )
    kind = KINDS[family]
    pieces: dict[str, Any] = {}
    try:
        if "vae" in parts and not kind.encoders:
            kind.vae_config({})  # which says how they are encoded instead
        if "vae" in parts:
            pieces["vae"] = getattr(diffusers, kind.backbone.vae_class).from_pretrained(
                source, subfolder="vae", torch_dtype=vae_dtype, use_safetensors=True
            )
        if "text" in parts:
            pieces["text"] = kind.text_folder(source, dtype)
        if "dit" in parts and kind.connector_folder:
            pieces["connector"] = kind.connector_folder(source, dtype)
        if VISION in parts:
            pieces[VISION] = vision_from_folder(source, dtype, kind.vision_class)
        if "dit" in parts:
            pieces["dit"] = getattr(diffusers, kind.backbone.dit_class).from_pretrained(
                source, subfolder="transformer", torch_dtype=dtype, use_safetensors=True
            )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"{source} could not be loaded as a diffusers {family} model: {reason}"
        ) from error
    return pieces


def _from_files(
    family: str,
    source: Mapping[str, str | os.PathLike[str]],
    parts: tuple[str, ...],
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> dict[str, Any]:
    """Parts from native single files."""
    import diffusers

    if unknown := set(source) - {*PARTS, VISION, *BESIDE_TEXT}:
        raise TrainingError(
            f"source part {sorted(unknown)[0]!r} is unknown; parts are {', '.join(PARTS)} and "
            f"{', '.join(BESIDE_TEXT)}."
        )
    paths = {name: Path(path) for name, path in source.items() if name in parts}
    for name in parts:
        if name not in paths:
            raise TrainingError(
                f"no file was given for {name!r}; add it to the source or leave {name!r} out of the parts."
            )
        if not paths[name].is_file():
            raise TrainingError(f"{paths[name]} does not exist.")
    pieces: dict[str, Any] = {}
    kind = KINDS[family]
    if "vae" in paths:
        state = _read(paths["vae"])
        keys = kind.vae_keys(state)
        state = _convert(state, keys, paths["vae"]) if keys else state
        config = _sizes(kind.vae_config, state, keys, paths["vae"])
        vae_type = getattr(diffusers, kind.backbone.vae_class)
        pieces["vae"] = _fill(vae_type, config, state, paths["vae"], vae_dtype)
    if "dit" in paths:
        state = {renamed(key, kind.renamed): value for key, value in _read(paths["dit"]).items()}
        if kind.connector_file:
            pieces["connector"] = kind.connector_file(state, paths["dit"].name, dtype)
        state = kind.transformer_part(state)
        keys = kind.backbone.dit_keys
        state = _convert(state, keys, paths["dit"])
        config = _sizes(kind.dit_config, state, keys, paths["dit"])
        state.pop("patch_embed.pos_embedding", None)  # A fixed table, which diffusers computes.
        dit_type = getattr(diffusers, kind.backbone.dit_class)
        pieces["dit"] = _fill(dit_type, config, state, paths["dit"], dtype)
    elif family == "cogvideox" and "vae" in paths and "dit" in source:
        pieces["heads"] = _heads(Path(source["dit"]))
    if VISION in paths:
        state = {key: value.read() for key, value in _read(paths[VISION]).items()}
        pieces[VISION] = kind.vision_file(paths[VISION], state, dtype)
    if "text" in paths:
        pieces["text"] = kind.text_files(source, dtype)
    return pieces


def renamed(key: str, rows: tuple[tuple[str, str], ...]) -> str:
    """A native name of an older file as it is now."""
    for old, new in rows:
        key = key.replace(old, new)
    return key


def _read(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a native file, unread. Raises TrainingError, also for quantised ones."""
    state, metadata = stored_tensors(path)
    refuse_quantised(state, path, metadata)
    return {strip_prefix(key): value for key, value in state.items()}


def _convert(state: dict[str, StoredTensor], keys: Any, path: Path) -> dict[str, StoredTensor]:
    """Diffusers' names, whichever of the two the file has."""
    try:
        return to_diffusers(state, keys) if is_native(state, keys) else state
    except KeyMapError as error:
        raise TrainingError(f"{path.name} does not fit this family: {error}") from error


def _heads(path: Path) -> int:
    """Attention heads of a CogVideoX transformer file, of which only one tensor is looked at. Raises
    TrainingError."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            keys = file.keys()  # an opened safetensors file cannot be iterated over
            name = next((key for key in keys if strip_prefix(key) == "patch_embed.proj.weight"), None)
            if name is None:
                raise TrainingError(
                    f"{path.name} is not a CogVideoX transformer: it has no 'patch_embed.proj.weight'."
                )
            return file.get_slice(name).get_shape()[0] // 64
    except (safetensors.SafetensorError, OSError) as error:
        raise TrainingError(f"{path.name} is not a readable safetensors file ({error}).") from error


def _sizes(
    config_of: Callable[[Mapping[str, Tensor]], dict[str, Any]],
    state: dict[str, StoredTensor],
    keys: KeyMap,
    path: Path,
) -> dict[str, Any]:
    """A model's arguments read off the shapes of its tensors, given under diffusers' names. Raises
    TrainingError where some of those are missing, as in a LoRA's file."""
    shapes = {key: torch.empty(value.shape, device="meta") for key, value in state.items()}
    try:
        return config_of(to_native(shapes, keys) if keys else shapes)
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"{path.name} is not a whole model: it has no {error}; a LoRA goes to --init."
        ) from error


def _fill(
    model_type: type,
    config: dict[str, Any],
    state: Mapping[str, StoredTensor],
    path: Path,
    dtype: torch.dtype,
) -> nn.Module:
    """A model of `config` with the weights of `state`, in `dtype` but for the parts that diffusers keeps in
    float32. Raises TrainingError where they do not fit."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # tables that no file holds are computed
        model = model_type(**config)
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    fill(model, state, path, dtype, keep)
    for name, value in model.named_buffers():
        if value.is_floating_point() and not keep & set(name.split(".")):
            value.data = value.data.to(dtype)
    return model
