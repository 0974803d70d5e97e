"""Model files that look like a backbone's and are not are refused by their true name, before anything is
built."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.text import from_native_file
from latent_physics.training.console import TrainingError
from safetensors.torch import save_file

WEIGHT = {"patch_embedding.weight": torch.zeros(8, 16, 1, 2, 2)}


def as_bytes(value: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


QUANTISED = {
    "scaled": ({"blocks.0.ffn.0.scale_weight": torch.ones(1)}, {}, "scaled fp8 weights"),
    "scales": ({"blocks.0.ffn.0.weight_scale": torch.ones(1)}, {}, "scaled fp8 weights"),
    "layers": (
        {"blocks.0.ffn.0.comfy_quant": as_bytes({"format": "nvfp4"})},
        {},
        r"quantised layer by layer \(nvfp4\)",
    ),
    "mixed": (
        {
            "a.comfy_quant": as_bytes({"format": "float8_e4m3fn"}),
            "b.comfy_quant": as_bytes({"format": "int8_tensorwise"}),
        },
        {},
        r"layer by layer \(float8_e4m3fn, int8_tensorwise\)",
    ),
    "metadata": (
        {},
        {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "mxfp8"}}})},
        r"layer by layer \(mxfp8\)",
    ),
    "odd": ({"a.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, {}, r"layer by layer \(unknown format\)"),
    "bitsandbytes": ({"a.weight.absmax": torch.ones(2)}, {}, r"layer by layer \(bitsandbytes\)"),
}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("part", ["dit", "vae", "text"])
def test_quantised_files_are_refused_by_name(tmp_path, kind, part):
    tensors, metadata, words = QUANTISED[kind]
    if part == "text" and kind == "metadata":
        tensors = {"a.comfy_quant": as_bytes({"format": "mxfp8"})}
    path = tmp_path / "model.safetensors"
    save_file({**WEIGHT, **tensors}, path, metadata=metadata or None)
    read_text = partial(from_native_file, path, None, torch.float32)
    load = read_text if part == "text" else partial(load_backbone, "wan", {part: path}, parts=(part,))
    with pytest.raises(
        TrainingError, match=rf"^model\.safetensors holds .*{words}.*; use the fp16 or bf16 file\.$"
    ):
        load()


@pytest.mark.parametrize(
    ("part", "name", "shape"),
    [
        ("dit", "patch_embedding.weight", (8, 48, 1, 2, 2)),
        ("dit", "model.diffusion_model.patch_embedding.weight", (8, 48, 1, 2, 2)),
        ("vae", "conv2.weight", (48, 48, 1, 1, 1)),
        ("vae", "post_quant_conv.weight", (48, 48, 1, 1, 1)),
        ("vae", "encoder.conv1.weight", (8, 12, 3, 3, 3)),
    ],
)
def test_wan_2_2_5b_is_refused_by_name(tmp_path, part, name, shape):
    path = tmp_path / "wan.safetensors"
    save_file({name: torch.zeros(shape)}, path)
    with pytest.raises(
        TrainingError, match=r"^wan\.safetensors is of Wan 2\.2 5B \(TI2V\), .* use their files\.$"
    ):
        load_backbone("wan", {part: path}, parts=(part,))
