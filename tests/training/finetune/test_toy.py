"""The toy teachers' training and the comparison command, at their smallest."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from latent_physics.encoders import load_teacher
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import load
from latent_physics.training.console import ProgressLine, StopRequest
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.log import read_log
from latent_physics.training.study import compare
from latent_physics.training.tasks.finetune import ERRORS
from latent_physics.training.tasks.toy import encoders


def quiet() -> ProgressLine:
    return ProgressLine("test", io.StringIO())


def settings(tmp_path, **changes) -> encoders.ToyTeachersConfig:
    trainer = TrainerConfig(
        **(
            {
                "steps": 2,
                "batch": 2,
                "learning_rate": 1e-3,
                "validate_every": 2,
                "validation_clips": 1,
                "tensorboard": False,
            }
            | changes
        )
    )
    return encoders.ToyTeachersConfig(
        out=tmp_path / "runs", export=tmp_path, width=32, layers=1, trainer=trainer
    )


@pytest.mark.parametrize("name", ["videomae", "vjepa2"])
def test_toy_teachers_train_and_come_back(name, tmp_path):
    path = encoders.train_teacher(name, settings(tmp_path), StopRequest(), quiet())
    teacher = load_teacher(f"toy_{name}", path)
    features = teacher.features(torch.rand(1, 3, 32, 64, 64))
    assert features.shape == (1, 32, 16, 8, 8)
    assert torch.isfinite(features).all()
    assert len(read_log(tmp_path / "runs" / name / "log.csv")) == 2


def test_the_comparison_prints_a_table_and_is_resumed(tmp_path, monkeypatch):
    weights = tiny.toy_weights(tmp_path / "weights")
    monkeypatch.setattr(load, "TOY_WEIGHTS", weights)
    config = compare.CompareConfig(
        out=tmp_path / "out",
        recipes=["toy-plain", "toy-drift"],
        steps=1,
        clips=4,
        prompts=2,
        sampling_steps=1,
    )
    results = compare.compare(config, StopRequest(), quiet())
    assert list(results) == ["before", "toy-plain", "toy-drift"]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in compare.table(results, ["a", "b"]).splitlines()
    ]
    assert lines[0] == [
        "model",
        "law",
        "less plain",
        "adherence",
        "less plain",
        "dynamic degree",
        "less plain",
        "permanence",
        "less plain",
        "residual",
        "less plain",
    ]
    assert [line[0] for line in lines[2:]] == list(results)
    assert [line[2] != "" for line in lines[2:]] == [False, False, True]
    law = [results[name]["law"] for name in ("toy-drift", "toy-plain")]
    assert lines[4][2].startswith(f"{sum(a - b for a, b in zip(*law)) / 2:+.3f} [")
    scored = {path: path.stat().st_mtime_ns for path in config.out.rglob("*.json")}
    assert compare.compare(config, StopRequest(), quiet()) == results
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*.json")} == scored
    assert compare.toy_recipes()[0] == "toy-plain"
    more = compare.compare(
        replace(config, sampling_steps=2), StopRequest(), quiet()
    )  # other scores, not those on disk
    assert all(more[name] != results[name] for name in results)
    (weights / "toy_dit.safetensors").write_bytes((weights / "toy_dit.safetensors").read_bytes() + b" ")
    assert not compare.runs_of(config).exists()  # runs of another base model do not count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipes": ["toy-plain", "tsa-2b"]},
            "recipe tsa-2b is a full fine-tune of cogvideox; comparing works on full",
        ),
        ({"recipes": ["toy-none"]}, "'toy-none' is unknown"),
        ({"prompts": 1}, "prompts is 1"),
    ],
)
def test_what_cannot_be_compared_is_told_before_the_first_run(changes, message, tmp_path):
    with pytest.raises((compare.TrainingError, *ERRORS), match=message):
        compare.compare(compare.CompareConfig(out=tmp_path, **changes), StopRequest(), quiet())
    assert not list(tmp_path.iterdir())


def test_toy_clips_are_cached_clips_with_their_frames(tmp_path):
    from latent_physics.training.data.features import FrameSource
    from latent_physics.training.data.toy import write_toy_clip

    backbone = tiny_run.backbone()
    backbone.vae = tiny.wan_vae()
    clip = torch.rand(3, 5, 32, 32)
    tokens, mask = torch.randn(6, 32), torch.tensor([True] * 4 + [False] * 2)
    for name in ("a", "b"):
        write_toy_clip(tmp_path / f"{name}.safetensors", backbone, clip, "a ball", tokens, mask)
    clips = TrainingClips(tmp_path, batch=1, seed=0)
    batch = clips.read([0])
    assert batch.tokens.shape == (1, 4, 32)
    assert batch.latent.shape == (1, 16, 2, 4, 4)
    torch.testing.assert_close(FrameSource(tmp_path, []).read(clips.entries[0]), clip, atol=1 / 254, rtol=0)
