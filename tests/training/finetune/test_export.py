"""What an exported file says of itself, and how it is read back; `test_export_formats` loads it elsewhere."""

from __future__ import annotations

import io
import json

import pytest
import torch
from latent_physics.methods.weights import read_info
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.tests.training.finetune.exported import trained
from latent_physics.training.backbones.formats import lora_to_diffusers, position_table
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.loop.loop import train
from latent_physics.training.tasks.export import (
    ExportConfig,
    export,
    read_lora,
    without_folder,
)
from safetensors import safe_open
from safetensors.torch import load_file


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


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_weights_are_exported_where_they_are_kept(ema, tmp_path):
    """Of two validations the first is the better one: the file is that step's, and `raw` takes the last
    weights."""
    (tmp_path / "data").mkdir()
    data = tiny_run.clips(tmp_path / "data")
    settings = {"steps": 4, "keep": "best", "ema": ema, "validate_every": 2, "save_every": 2}
    run = tiny_run.make_run(tmp_path / "run", data, **settings)
    scores = iter([0.0, 1.0])
    run.task.score = lambda found: next(scores)
    train(run, progress=ProgressLine("test", io.StringIO()))
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for raw, state, step in ((False, "best", 2), (True, "model", 4)):
        path = export(ExportConfig(run=tmp_path / "run", out=tmp_path / f"{state}.safetensors", raw=raw))
        assert read_info(path).recipe["step"] == step
        assert read_info(path).recipe["averaged"] == (bool(ema) and not raw)
        found = lora_to_diffusers(load_file(path), "wan")
        for key, value in found.items():
            assert torch.equal(value, saved[f"{state}/dit.{key.replace('.weight', '.default.weight')}"])
    assert any(not torch.equal(value, saved[key.replace("best/", "model/")])
               for key, value in saved.items() if key.startswith("best/"))  # fmt: skip


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
