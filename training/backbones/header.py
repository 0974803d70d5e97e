"""A transformer's file or folder before anything is loaded: names, formats, shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors

from ..console import TrainingError
from .keys import strip_prefix
from .wan import first_frame_of

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Number format and shape of every tensor of a file, by name."""


@dataclass(frozen=True, kw_only=True)
class WanHeader:
    """Inputs of a Wan transformer."""

    first_frame: Literal["", "needed", "possible"]
    """As `Backbone.first_frame`."""
    vision: bool
    """Whether it reads CLIP's view of the first frame."""


def shapes_of(path: Path) -> Shapes:
    """The header of a safetensors file. Raises TrainingError where it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            keys = file.keys()  # an opened safetensors file cannot be iterated over
            slices = {strip_prefix(key): file.get_slice(key) for key in keys}
            return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise TrainingError(f"{path.name} is not a readable safetensors file ({error}).") from error


def wan_header(source: str | os.PathLike[str] | None, dit: Path | None) -> WanHeader | None:
    """Inputs of a Wan of a file, or of a local diffusers folder; None where that is not to be seen without
    loading (a hub id). Raises TrainingError for a model that cannot be trained, with the reason."""
    if dit is not None:
        return _of_shapes(shapes_of(dit), dit)
    config = Path(source or "") / "transformer" / "config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        return WanHeader(
            first_frame=first_frame_of(found.get("in_channels", 16), found.get("out_channels", 16)),
            vision=found.get("image_dim") is not None,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{config} is not a transformer's configuration ({error}).") from error


def check_expert(source: str | os.PathLike[str] | None, preset: str | None = None) -> None:
    """Raises TrainingError where a folder or hub id holds Wan 2.2's two experts, of which `transformer` alone
    is read, and the noise preset is not that one's; None: a training that asks one model at every noise."""
    both = "A14B" in str(source or "") or (source and (Path(source) / "transformer_2").is_dir())
    if not both or (preset or "").endswith("-high"):
        return
    if preset is None:
        raise TrainingError(
            f"{source} holds Wan 2.2's two experts, each for its part of the noise, and here one model "
            f"answers at all of it: use Wan 2.1 or Wan 2.2 5B."
        )
    raise TrainingError(
        f"{source} holds Wan 2.2's two experts, of which the high-noise one is read: give noise_preset "
        f"wan2.2-t2v-high or wan2.2-i2v-high to train that one, or the experts' files as dit and dit_low."
    )


def hunyuan_header(source: str | os.PathLike[str] | None) -> WanHeader | None:
    """The same of a local folder of HunyuanVideo 1.5, which says what it was made for; None of a file, which
    does not, and of a hub id."""
    config = Path(source or "") / "transformer" / "config.json"
    if not config.is_file():
        return None
    try:
        task = json.loads(config.read_text(encoding="utf-8")).get("task_type")
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{config} is not a transformer's configuration ({error}).") from error
    return WanHeader(first_frame="needed" if task == "i2v" else "", vision=task == "i2v")


def _of_shapes(shapes: Shapes, path: Path) -> WanHeader | None:
    """The same of a file's shapes, under native or diffusers' names; None for what is no whole Wan."""
    patch = shapes.get("patch_embedding.weight")
    last = shapes.get("head.head.weight") or shapes.get("proj_out.weight")
    if patch is None or last is None or len(patch[1]) != 5:
        return None
    _, channels, *sides = patch[1]
    out = last[1][0] // (sides[0] * sides[1] * sides[2])
    vision = any(key.startswith(("img_emb.", "condition_embedder.image_embedder.")) for key in shapes)
    return WanHeader(first_frame=first_frame_of(channels, out), vision=vision)
