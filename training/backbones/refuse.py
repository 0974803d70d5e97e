"""Model files that look like a backbone's and are not, told by their true name before anything is built from
them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..console import TrainingError

SCALED = ("scale_weight", "weight_scale", "weight_scale_2", "scaled_fp8")
"""Ends of the names of scales that fp8 and nvfp4 files keep beside their weights."""
PACKED = {"qweight": "packed integers", "weight.absmax": "bitsandbytes", "weight.quant_map": "bitsandbytes"}
"""Ends of names that other quantisers use."""
WAN22_CHANNELS, WAN22_PATCHED_PIXELS = 48, 12
"""Wan 2.2 5B: channels of its latents, and of the 2x2 pixel patches that its VAE reads."""


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


def refuse_wan22(state: Mapping[str, Any], path: Path) -> None:
    """Raises TrainingError for the transformer or the VAE of Wan 2.2 5B, under native or diffusers' names."""
    channels = [state[key].shape[1] for key in ("patch_embedding.weight",) if key in state]
    channels += [state[key].shape[0] for key in ("conv2.weight", "post_quant_conv.weight") if key in state]
    pixels = [
        state[key].shape[1] for key in ("encoder.conv1.weight", "encoder.conv_in.weight") if key in state
    ]
    if WAN22_CHANNELS in channels or WAN22_PATCHED_PIXELS in pixels:
        raise TrainingError(
            f"{path.name} is of Wan 2.2 5B (TI2V), whose latents have {WAN22_CHANNELS} channels at a "
            f"sixteenth of the size; this "
            "trainer knows those of Wan 2.1 and Wan 2.2 14B (16 channels): use their files."
        )
