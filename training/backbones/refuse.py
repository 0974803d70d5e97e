"""Model files that look like a backbone's and are not, told by their true name before anything is built from
them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from ..console import TrainingError
from .header import shapes_of
from .keys import strip_prefix

SCALED = ("scale_weight", "weight_scale", "weight_scale_2", "scaled_fp8")
"""Ends of the names of scales that fp8 and nvfp4 files keep beside their weights."""
KNOWN_FORMATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""Number formats of weights that mean what they say."""
SCALE = re.compile(r"(^|[._])scales?$|scale_inv$|zero_points?$")
"""Names of what other layouts keep beside a weight."""
PACKED = {"qweight": "packed integers", "weight.absmax": "bitsandbytes", "weight.quant_map": "bitsandbytes"}
"""Ends of names that other quantisers use."""


def refuse_quantised(state: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Raises TrainingError for weights that are stored quantised: they cannot be trained on, nor read without
    their scales."""
    formats = {_format(value) for key, value in state.items() if key.endswith("comfy_quant")}
    formats |= _metadata_formats(metadata or {})
    formats |= {name for end, name in PACKED.items() if any(key.endswith(end) for key in state)}
    remedy = "which cannot be trained on; use the fp16 or bf16 file."
    if formats:
        raise TrainingError(
            f"{path.name} holds weights quantised layer by layer ({', '.join(sorted(formats))}), {remedy}"
        )
    if any(key.endswith(SCALED) for key in state):
        raise TrainingError(f"{path.name} holds scaled fp8 weights, {remedy}")


def _format(value: Any) -> str:
    """The format that ComfyUI writes beside a quantised layer: JSON as bytes."""
    try:
        return str(json.loads(bytes(value.tolist()))["format"])
    except (ValueError, KeyError, TypeError):
        return "unknown format"


def _metadata_formats(metadata: Mapping[str, str]) -> set[str]:
    """The same from a file's metadata, where newer files list their layers."""
    try:
        layers = json.loads(metadata.get("_quantization_metadata", "{}")).get("layers", {})
        return {str(layer.get("format", "unknown format")) for layer in layers.values()}
    except (ValueError, AttributeError):
        return {"unknown format"}


def check_layout(path: Path) -> None:
    """Raises TrainingError, from the header alone, for a file whose weights are stored in a way that this
    trainer does not read: what `refuse_quantised` names, and any layout that it does not know."""
    shapes = shapes_of(path)
    marks = [key for key in shapes if key.endswith("comfy_quant")]
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = {strip_prefix(key): key for key in file.keys()}  # noqa: SIM118 (a file is no dictionary)
        tensors = {key: file.get_tensor(names[key]) for key in marks}
    refuse_quantised(dict.fromkeys(shapes) | tensors, path, metadata)
    odd = sorted(
        f"{key} ({form})"
        for key, (form, _) in shapes.items()
        if form not in KNOWN_FORMATS or SCALE.search(key)
    )
    if odd:
        raise TrainingError(
            f"{path.name} holds {odd[0]}, a layout of quantised weights that this trainer does not know; use "
            f"the fp16 or bf16 file."
        )
