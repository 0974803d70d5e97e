"""Model files that look like a backbone's and are not are refused by their true name, before anything is
built."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.refuse import check_layout
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
    ("tensors", "words"),
    [
        ({"a.weight_scale_inv": torch.ones(1)}, r"a\.weight_scale_inv \(F32\)"),
        ({"a.weight": torch.zeros(4, dtype=torch.uint8)}, r"a\.weight \(U8\)"),
        ({"a.qscale": torch.ones(1), "a.zero_point": torch.ones(1)}, r"a\.zero_point \(F32\)"),
    ],
)
def test_a_layout_that_nobody_knows_is_told_from_the_header(tmp_path, tensors, words):
    path = tmp_path / "model.safetensors"
    save_file(WEIGHT | tensors, path)
    with pytest.raises(TrainingError, match=rf"^model\.safetensors holds {words}, a layout .*bf16 file\.$"):
        check_layout(path)


def test_known_layouts_pass_and_known_quantisers_keep_their_names(tmp_path):
    path = tmp_path / "model.safetensors"
    plain = {"a.weight": torch.zeros(4).to(torch.float8_e4m3fn), "blocks.0.scale_shift_table": torch.zeros(2)}
    save_file(WEIGHT | plain, path)
    check_layout(path)
    save_file(WEIGHT | {"a.comfy_quant": as_bytes({"format": "nvfp4"})}, path)
    with pytest.raises(TrainingError, match=r"quantised layer by layer \(nvfp4\)"):
        check_layout(path)
    path.write_bytes(b"x")
    with pytest.raises(TrainingError, match=r"model\.safetensors is not a readable safetensors file"):
        check_layout(path)


def test_a_folder_of_two_experts_is_trained_on_the_noise_of_the_one_that_is_read(tmp_path):
    from latent_physics.training.backbones.header import check_expert

    (tmp_path / "transformer_2").mkdir()
    for source in (tmp_path, "Wan-AI/Wan2.2-T2V-A14B-Diffusers"):
        for preset in ("none", "wan2.2-t2v-low", "wan2.1-480p"):
            with pytest.raises(TrainingError, match="two experts, of which the high-noise one is read"):
                check_expert(source, preset)
        check_expert(source, "wan2.2-i2v-high")
    for source in (None, "Wan-AI/Wan2.1-T2V-14B-Diffusers", tmp_path / "transformer_2"):
        check_expert(source, "none")


def test_trainings_that_ask_one_model_at_every_noise_refuse_two_experts_by_the_same_check(tmp_path, capsys):
    from latent_physics.training.commands.pila import main
    from latent_physics.training.tasks.finetune import FinetuneConfig
    from latent_physics.training.tasks.finetune import check as check_finetune
    from latent_physics.training.tasks.grpo.settings import GrpoConfig
    from latent_physics.training.tasks.grpo.settings import check as check_grpo

    (tmp_path / "transformer_2").mkdir()
    source = str(tmp_path)
    with pytest.raises(TrainingError, match=r"answers at all of it: use Wan 2\.1 or Wan 2\.2 5B"):
        check_grpo(GrpoConfig(source=source, rewards=["motion"], prompts=tmp_path))
    assert main(["--out", f"{source}/run", "--cache", f"{source}/none", "--source", source]) == 1
    assert "one model answers at all of it" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="of which the high-noise one is read"):
        check_finetune(FinetuneConfig(source=source, data=tmp_path))
