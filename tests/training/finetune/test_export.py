"""Exported files in ComfyUI's own loaders: how many patches apply, and what the patched model says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from latent_physics.methods.weights import read_info
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.cogvideox import COGVIDEOX_DIT
from latent_physics.training.backbones.keys import WAN_DIT, to_native
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.loop.loop import train
from latent_physics.training.tasks.export import (
    ExportConfig,
    export,
    lora_to_diffusers,
    position_table,
    read_lora,
    without_folder,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SHAPES = {"toy": (3, 4, 4), "cogvideox": (1, 8, 90)}
"""CogVideoX-2B's fixed position table fits latents 90 wide."""


def trained(folder: Path, family: str, tune: TuneConfig, **settings):
    """A short run with a rate high enough to leave visible weights."""
    (folder / "data").mkdir(parents=True)
    length = 226 if family == "cogvideox" else 5
    data = tiny_run.clips(folder / "data", [SHAPES[family]] * 2, family, length=length, width=4096)
    run = tiny_run.make_run(
        folder / "run",
        data,
        tune=tune,
        family=family,
        width=4096,
        steps=2,
        batch=1,
        rate=3e-2,
        held_out=0,
        **settings,
    )
    train(run, progress=ProgressLine("test", io.StringIO()))
    return run


def base_file(path: Path, family: str) -> Path:
    """The untrained model as a native file."""
    dit = tiny_run.backbone(family, 4096).dit
    state = to_native(dit.state_dict(), COGVIDEOX_DIT if family == "cogvideox" else WAN_DIT)
    if family == "cogvideox":
        state["patch_embed.pos_embedding"] = dit.patch_embed.pos_embedding
    save_file(state, path)
    return path


@torch.inference_mode()
def answers(run, family: str, model) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and ComfyUI's output for the same input."""
    backbone = run.task.backbone
    backbone.dit.eval()
    latent = torch.randn(1, 16, *SHAPES[family])
    tokens = torch.randn(1, backbone.text_length, 4096)
    t = torch.tensor([500]) if family == "cogvideox" else torch.tensor([0.5])
    return backbone.predict(latent, t, tokens), model.diffusion_model(latent, torch.tensor([500.0]), tokens)


@pytest.mark.comfy
@pytest.mark.parametrize(("family", "rslora"), [("toy", False), ("toy", True), ("cogvideox", False)])
def test_load_lora_applies_every_patch_and_gives_our_output(comfy, family, rslora, tmp_path):
    run = trained(tmp_path, family, TuneConfig(rank=4, alpha=12, rslora=rslora))
    path = export(ExportConfig(run=tmp_path / "run"))
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    base = comfy.sd.load_diffusion_model(str(base_file(tmp_path / "base.safetensors", family)))
    patched, _ = comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0)
    modules = sum(key.endswith(".alpha") for key in lora)
    assert modules == (20 if family == "toy" else 8)
    assert len(patched.patches) == modules
    plain = answers(run, family, base.model)
    assert (plain[0] - plain[1]).abs().max() > 1e-3  # without the file the two differ
    patched.patch_model(device_to=torch.device("cpu"))
    ours, theirs = answers(run, family, patched.model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.comfy
@pytest.mark.parametrize("family", ["toy", "cogvideox"])
def test_load_diffusion_model_takes_a_full_fine_tune(comfy, family, tmp_path):
    run = trained(tmp_path, family, TuneConfig(mode="full"))
    path = export(ExportConfig(run=tmp_path / "run", dtype="float32"))
    model = comfy.sd.load_diffusion_model(str(path)).model
    ours, theirs = answers(run, family, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_file_says_how_it_was_made_and_goes_on(tmp_path):
    run = trained(tmp_path, "toy", TuneConfig(rank=4, alpha=12), ema=0.5)
    path = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "out.safetensors"))
    info = read_info(path)
    assert (info.kind, info.latent_space, info.config["rank"]) == ("lora", "toy", 4)
    assert info.recipe["step"] == 2
    assert info.recipe["averaged"]
    assert set(info.recipe) >= {"recipe", "objectives", "base", "tune", "trainer", "versions"}
    with safe_open(path, "pt") as file:
        json.loads(file.metadata()["latent_physics"])
    state = load_file(path)
    assert all(value.item() == 12 for key, value in state.items() if key.endswith(".alpha"))
    again = read_lora(path, "wan", "toy", TuneConfig(rank=4, alpha=12))
    values = {
        key.replace(".default.", "."): value
        for key, value in run.task.backbone.dit.named_parameters()
        if "lora_" in key
    }
    assert again.keys() == values.keys()
    raw = load_file(export(ExportConfig(run=tmp_path / "run", out=tmp_path / "raw.safetensors", raw=True)))
    for key, value in lora_to_diffusers(raw, "wan").items():
        assert torch.equal(value, values[key])
    assert any(not torch.equal(raw[key], state[key]) for key in raw)


def test_a_file_does_not_say_where_things_lie():
    words = ["soft_trd", "weight=0.5", "motion_head=/home/someone/head.safetensors"]
    assert [without_folder(word) for word in words] == [
        "soft_trd",
        "weight=0.5",
        "motion_head=head.safetensors",
    ]
    assert without_folder("models/dit.safetensors") == "dit.safetensors"
    assert without_folder("THUDM/CogVideoX-2b") == "THUDM/CogVideoX-2b"


def test_position_table_is_the_models_own():
    dit = tiny_run.backbone("cogvideox").dit
    torch.testing.assert_close(position_table(dit.config), dit.patch_embed.pos_embedding)


def test_wrong_files_are_one_sentence(tmp_path):
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        export(ExportConfig(run=tmp_path))
    trained(tmp_path, "toy", TuneConfig(rank=4))
    path = export(ExportConfig(run=tmp_path / "run"))
    with pytest.raises(TrainingError, match="is a LoRA for latent space toy; this backbone's is cogvideox"):
        read_lora(path, "cogvideox", "cogvideox", TuneConfig(rank=4))
    with pytest.raises(TrainingError, match="has rank 4, the run's LoRA has 8"):
        read_lora(path, "wan", "toy", TuneConfig(rank=8))
    with pytest.raises(TrainingError, match="does not fit a cogvideox model"):
        lora_to_diffusers(load_file(path), "cogvideox")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x")
    with pytest.raises(TrainingError, match="not a readable safetensors"):
        read_lora(broken, "wan", "toy", TuneConfig(rank=4))


def test_a_lora_starts_as_nothing(tmp_path):
    """Before the first step the model with its adapter is the model without it."""
    plain, tuned = (tiny_run.backbone() for _ in range(2))
    attach(tuned, TuneConfig(rank=4))
    latent, tokens, t = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 8, tiny_run.WIDTH), torch.tensor([0.4])
    with torch.no_grad():
        torch.testing.assert_close(plain.predict(latent, t, tokens), tuned.predict(latent, t, tokens))
