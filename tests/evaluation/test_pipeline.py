"""A real diffusers pipeline, tiny and random, as the generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.generate import generate
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.sources import PipelineSource, load_pipeline
from latent_physics.tests.training.backbones import tiny


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    """A WanPipeline as diffusers saves it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import AutoTokenizer, UMT5EncoderModel

    parts = tmp_path_factory.mktemp("parts")
    width = tiny.text_encoder(parts, "wan")
    folder = tmp_path_factory.mktemp("wan")
    WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(parts / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(parts / "text_encoder"),
        transformer=tiny.wan_dit(text_dim=width),
        vae=tiny.wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return folder


def test_wan_makes_a_clip_that_its_seed_decides(wan: Path, tmp_path: Path, make_plan) -> None:
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0}
    settings = {"source": str(wan), "dtype": "float32", "device": "cpu", "fps": 8, "call": call}
    arms = {"plain": {}, "steps": {"num_inference_steps": 3}}
    plan = make_plan("own", ["a red ball falls"], arms=arms, pipeline=settings, baselines=False)
    shares: list[float] = []
    films = []
    for name in ("first", "second"):
        manifest = Manifest(tmp_path / name, "own")
        generate(plan, manifest, [PipelineSource(plan)], say=lambda share, text: shares.append(share))
        record = manifest.records["plain", "1", 1, 0]
        assert (record.frames, record.fps, record.width, record.height) == (5, 8.0, 32, 32)
        films.append(manifest.file_of(record).read_bytes())
    other = manifest.file_of(manifest.records["steps", "1", 1, 0]).read_bytes()
    assert films[0] == films[1]
    assert films[0] != other
    assert {round(share, 2) for share in shares} >= {0.25, 0.5, 1.0}


def test_an_unknown_setting_of_the_call_is_one_sentence(wan: Path, tmp_path: Path, make_plan) -> None:
    settings = {"source": str(wan), "dtype": "float32", "device": "cpu", "fps": 8, "call": {"frames": 5}}
    plan = make_plan("own", ["a"], arms={"plain": {}}, pipeline=settings, baselines=False)
    with pytest.raises(EvaluationError, match=r"does not take these settings .*frames"):
        generate(plan, Manifest(tmp_path, "own"), [PipelineSource(plan)])


def test_a_lora_that_fits_nothing_is_one_sentence(wan: Path, tmp_path: Path, make_plan) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"diffusion_model.nowhere.lora_A.weight": torch.zeros(4, 8)}, path)
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
    settings = {"source": str(wan), "dtype": "float32", "device": "cpu", "fps": 8, "call": call}
    plan = make_plan("own", ["a"], arms={"lora": {"lora": str(path)}}, pipeline=settings, baselines=False)
    with pytest.raises(EvaluationError, match="does not fit the pipeline"):
        generate(plan, Manifest(tmp_path, "own"), [PipelineSource(plan)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "half"}, "dtype is 'half'"), ({"device": "cuda:7"}, "torch sees no GPU")],
)
def test_a_dtype_or_device_that_is_none_is_told_before_loading(settings, message, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EvaluationError, match=message):
        load_pipeline({"source": "nowhere", "device": "cpu", **settings})
