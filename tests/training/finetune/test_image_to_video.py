"""Fine-tuning image-to-video models: what a run needs, gives and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latent_physics.tests.training.finetune import exported, tiny_run
from latent_physics.training.backbones.keys import WAN_DIT, to_native
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import TrainingError
from latent_physics.training.data.clip import read_clip
from latent_physics.training.data.loaders import BOTH, loaders
from latent_physics.training.tasks.denoise import DenoisingTask
from latent_physics.training.tasks.finetune import FinetuneConfig, cache_settings, finetune
from latent_physics.training.tasks.finetune import check as check_config
from safetensors.torch import save_file


def config(folder: Path, style: str, **settings) -> FinetuneConfig:
    """A run on clips that hold no first frame, of a model in a file."""
    dit = folder / f"{style}.safetensors"
    save_file(to_native(tiny_run.tiny.wan_dit(style=style).state_dict(), WAN_DIT), dit)
    return FinetuneConfig(backbone="wan", dit=dit, data=folder / "data", out=folder / "run", **settings)


def test_a_run_without_first_frames_ends_before_the_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    tiny_run.clips(tmp_path / "data", [(3, 4, 4)] * 2, "wan2.1", width=exported.WIDTH)
    monkeypatch.setattr(
        "latent_physics.training.tasks.finetune.load_dit", lambda config: pytest.fail("loaded")
    )
    for style, words in (
        ("i2v", "its first frame, which this image-to-video"),
        ("i2v-clip", "--clip-vision"),
    ):
        with pytest.raises(TrainingError, match=words) as caught:
            finetune(config(tmp_path, style))
        assert "\n" not in str(caught.value)


def test_what_a_model_cannot_do_is_told_from_its_header(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(TrainingError, match=r"first_frame is 0\.3, a share for models that can do with and"):
        check_config(config(tmp_path, "t2v", first_frame=0.3))
    with pytest.raises(TrainingError, match="this model needs a first frame too: leave samples out"):
        check_config(config(tmp_path, "i2v", samples=["a ball"]))
    made = config(tmp_path, "5b", first_frame=0.3, samples=["a ball"])
    check_config(made)
    save_file({"a.weight_scale_inv": torch.ones(1)}, made.dit)
    with pytest.raises(TrainingError, match="a layout of quantised weights that this trainer does not know"):
        check_config(made)


def test_5b_is_given_the_share_of_first_frames_that_was_asked_for_and_pictures_none(tmp_path):
    shapes = [(3, 4, 4)] * 6 + [(1, 4, 4)] * 2
    (tmp_path / "data").mkdir()
    run = tiny_run.make_run(
        tmp_path / "run",
        tiny_run.clips(tmp_path / "data", shapes, "wan2.2"),
        tune=TuneConfig(rank=2),
        family="wan-5b",
        held_out=0,
    )
    old = run.task
    task = DenoisingTask(old.backbone, old.clips, about=old.about, first_frame=0.5)
    given, pictures = [], 0
    for number in range(40):
        batch, t, eps = task.draw(number, torch.Generator().manual_seed(number))
        if batch.latent.shape[2] == 1:
            assert batch.first is None
            pictures += 1
        else:
            given += batch.first.given.tolist()
        if number < 2:
            assert task.module(batch, t, eps)["denoise"].isfinite()
    assert pictures == 10  # videos and pictures in one set
    assert 0.3 < sum(given) / len(given) < 0.7
    with pytest.raises(TrainingError, match="a share for models that can do with and without"):
        DenoisingTask(tiny_run.backbone("wan"), clips_of(tmp_path), first_frame=0.5)


def clips_of(folder: Path):
    from latent_physics.training.data.batches import TrainingClips

    (folder / "wan").mkdir()
    return TrainingClips(tiny_run.clips(folder / "wan", latent_space="wan2.1"), batch=1, seed=0)


def test_first_frames_survive_the_cache_and_reach_the_batch(tmp_path):
    first = exported.first_of("wan-i2v-clip")
    folder = tiny_run.clips(tmp_path, [(3, 4, 4)] * 2, "wan2.1", first=first)
    from latent_physics.training.data.batches import TrainingClips

    clips = TrainingClips(folder, batch=2, seed=0)
    clips.check_first_frames(vision=True)
    batch = clips.read([0, 1])
    assert torch.equal(batch.to("cpu").first.vision[1], first["vision"])
    assert torch.equal(batch.first.latent[0], first["latent"])
    assert read_clip(clips.entries[0].path).first.keys() == {"latent", "vision"}


def test_caching_with_the_models_own_files_sees_the_first_frame_with_clip(tmp_path):
    """Transformer, VAE, text encoder and CLIP as files: a clip is given what the transformer's header asks
    for."""
    files = tiny_run.tiny.native_files(tmp_path / "files")
    vision = tiny_run.tiny.clip_vision(tmp_path)
    encoders = {"vae": files["vae"], "text": tmp_path / "no.safetensors", "clip_vision": vision}
    made = config(tmp_path, "i2v-clip", **encoders)
    _, load_vae = loaders(cache_settings(replace(made, data=None), BOTH))
    first = load_vae().encode_first_frame(torch.rand(1, 3, 5, 16, 16))
    assert (first.latent.shape, first.vision.shape) == ((1, 16, 2, 2, 2), (1, 5, 160))
    assert cache_settings(made, BOTH).clip_vision is None  # clips that are cached already
