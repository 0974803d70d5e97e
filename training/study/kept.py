"""What a study keeps on disk: folders by the base, measures with the settings they depend on, trained
weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from ...encoders.base import digest_of
from ...methods.weights import WeightsError, read_info, write_atomically
from ..backbones import Backbone, load
from ..backbones.keys import to_diffusers
from ..console import TrainingError, saving

FALLBACK_WRONG = 0.5
"""Share of wrong clips behind a base whose file does not say it."""


def base_file() -> Path:
    """The base's transformer as it ships."""
    return load.TOY_WEIGHTS / "toy_dit.safetensors"


def base_folder(out: Path) -> Path:
    """A folder of runs, named after the base model's file: runs of another base never go on, nor count."""
    return out / f"base-{digest_of([base_file()])}"


def base_wrong() -> float:
    """Share of corrupted clips that the base learned from, as its file says."""
    try:
        return float(read_info(base_file()).recipe.get("wrong", FALLBACK_WRONG))
    except WeightsError:
        return FALLBACK_WRONG


def keep(path: Path, values: Mapping[str, Any], basis: Mapping[str, Any]) -> None:
    """Writes measures with the settings they depend on. Raises TrainingError where the disk is full."""
    with saving(path.name, "the runs are safe"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**values, "settings": basis}, indent=2).encode())


def kept(path: Path, basis: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measures of an earlier call with the same settings; None where there are none, so that no table mixes
    two."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        same = values.pop("settings") == json.loads(json.dumps(basis))
    except (OSError, ValueError, KeyError):
        return None
    return values if same else None


def exported(folder: Path) -> Path | None:
    """The whole transformer that a run has exported, if it has."""
    return next(folder.glob("*-full.safetensors"), None)


def load_trained(backbone: Backbone, folder: Path) -> None:
    """Puts the exported weights of a run into the backbone; refuses a LoRA."""
    path = exported(folder)
    if path is None:
        raise TrainingError(f"{folder} holds no exported full fine-tune; comparing works on those.")
    load_weights_into(backbone, path)


def load_weights_into(backbone: Backbone, path: Path) -> None:
    """Puts a native transformer file's weights into the backbone. Raises TrainingError where they do not
    fit."""
    try:
        state = to_diffusers(safetensors.torch.load_file(path), backbone.dit_keys)
        backbone.dit.load_state_dict({key: value.float() for key, value in state.items()})
        backbone.dit.eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path} is no transformer of the toy world's ({reason}).") from error
