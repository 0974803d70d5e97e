"""Weights in float8 with a scale beside them, as ComfyUI's files of text encoders store them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..console import TrainingError

SCALES = (".scale_weight", ".weight_scale")
"""Suffixes of a layer's scale after its name, in files of before and of now."""
Value = TypeVar("Value")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MARKS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""Further tensors of such files: scales of activations, which only fp8 products need, and names of
formats."""


def is_scaled(state: Mapping[str, Any]) -> bool:
    """Whether a file's weights are float8 with scales beside them; nvfp4's and others' are not."""
    scaled = [key[: key.rindex(".")] + ".weight" for key in state if key.endswith(SCALES)]
    return bool(scaled) and all(key in state and state[key].dtype in FLOAT8 for key in scaled)


def scales_in(state: Mapping[str, Value]) -> dict[str, Value]:
    """The scales of a file by the name of their weight."""
    return {key[: key.rindex(".")] + ".weight": value for key, value in state.items() if key.endswith(SCALES)}


def unmarked(state: Mapping[str, Value]) -> dict[str, Value]:
    """The state without scales and without what is for fp8 products alone."""
    return {key: value for key, value in state.items() if not key.endswith((*SCALES, *MARKS))}


def unscaled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every weight times its scale, in float32, and without what is for fp8 products alone.

    A scale is one number, or one per row of its weight. Raises TrainingError where a scale has no weight or
    does not fit it.
    """
    plain = unmarked(state)
    for key in (key for key in state if key.endswith(SCALES)):
        weight, scale = key[: key.rindex(".")] + ".weight", state[key].float()
        if weight not in plain:
            raise TrainingError(
                f"{key} scales {weight}, which the file does not hold; use an undamaged file."
            )
        rows = len(plain[weight])
        if scale.numel() not in (1, rows):
            raise TrainingError(
                f"{key} holds {scale.numel()} scales for the {rows} rows of {weight}; use the fp16 file."
            )
        plain[weight] = plain[weight].float() * scale.reshape(-1, *[1] * (plain[weight].ndim - 1))
    return plain
