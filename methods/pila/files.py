"""Adapter files: safetensors whose metadata names the architecture, its sizes and the version of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..weights import WeightsError, WeightsInfo, load_weights, save_weights
from .adapter import PilaAdapter
from .config import PilaConfig

KIND = "pila_adapter"
VERSION = 2
"""Version of the configuration. From 2 on the prompt embedding is normalised, learned logits are bounded, and
no penalty shrank the correction."""

Build = Callable[[str, PilaConfig, Any], PilaAdapter]
"""Makes an adapter from the name of its architecture, its sizes, and the namespace of its layers."""

SWITCHES = {
    "plain_adapter": (True, "PlainAdapter"),
    "afe": (False, "GenericFields"),
    "flow_correction": (False, "NoCorrection"),
    "moe_operator": (False, "NoExperts"),
    "routing": (False, "UniformRouter"),
    "kinematic_anchor": (False, "ScaffoldFields"),
}
"""Version 1's ablation switches that change the architecture: the value that does, and the
architecture's name now."""
FIXED = {
    "tie_duplicates": True, "expert_sees_feature": False, "correction_limit": 10.0
}  # fmt: skip
"""Options of version 1 that are no more, with the one value that any recipe gave them."""


def save_adapter(
    path: str | os.PathLike[str],
    adapter: PilaAdapter,
    latent_space: str,
    recipe: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes an adapter as one safetensors file, all or nothing. Raises OSError."""
    config = {**asdict(adapter.config), "architecture": adapter.architecture, "version": VERSION}
    info = WeightsInfo(kind=KIND, latent_space=latent_space, config=config, recipe=recipe or {})
    save_weights(path, {key: value.to(dtype) for key, value in adapter.state_dict().items()}, info)


def load_adapter(
    path: str | os.PathLike[str], operations: Any = nn, build: Build | None = None
) -> tuple[PilaAdapter, WeightsInfo]:
    """An adapter on the CPU, float32, in evaluation mode, without gradients, and the file's metadata.

    `build` makes the adapter; without it only the method itself is known, no ablation. Raises WeightsError
    where the file is missing, damaged, of another kind or a later version, or its tensors do not fit its own
    configuration. Draws nothing from the random generators.
    """
    state, info = load_weights(path, KIND)
    name = os.path.basename(path)
    try:
        config = current_config(info)
        architecture = config.pop("architecture")
        with torch.device("meta"):
            adapter = (build or build_method)(architecture, PilaConfig(**config), operations)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name} has an adapter configuration that cannot be built ({error}).") from error
    try:
        adapter.to_empty(device="cpu").load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{name} does not hold the tensors its configuration promises ({detail})."
        ) from error
    return adapter.eval().requires_grad_(False), info


def build_method(architecture: str, config: PilaConfig, operations: Any = nn) -> PilaAdapter:
    """The method itself. Raises ValueError for the name of an ablation."""
    if architecture != PilaAdapter.architecture:
        raise ValueError(
            f"its architecture is {architecture!r}, an ablation; it must be {PilaAdapter.architecture!r}"
        )
    return PilaAdapter(config, operations)


def current_config(info: WeightsInfo) -> dict[str, Any]:
    """A file's configuration as this version's `PilaConfig` takes it, and "architecture". Raises ValueError
    for a later version, and for options of version 1 that are no more."""
    config = dict(info.config)
    version = config.pop("version", 1)
    if version not in (1, VERSION):
        raise ValueError(f"version is {version!r}; this pack reads 1 to {VERSION}: update it")
    return config if version == VERSION else _from_version_1(config, info.recipe)


def _from_version_1(config: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in FIXED.items():
        found = config.pop(name, value)
        if found != value:
            raise ValueError(f"{name} is {found!r}; this pack reads adapters with {value!r}")
    switches = config.pop("ablation", {})
    architectures = [
        name for switch, (value, name) in SWITCHES.items() if switches.get(switch, not value) == value
    ]
    if len(architectures) > 1:
        raise ValueError(
            f"it combines the ablations {', '.join(architectures)}; this pack reads adapters with one"
        )
    return {
        **config,
        "architecture": (architectures or [PilaAdapter.architecture])[0],
        "normalise_prompt": False,
        "bound_logits": False,
        "ungated_penalty": float(recipe.get("correction_weight", 0.0)),
    }
