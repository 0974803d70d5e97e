"""The clips that every ComfyUI has: which are taken, at what size, and what is said where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from latent_physics.methods.video_models import MODELS, SPACES
from latent_physics.methods.weights import read_info
from latent_physics.training.commands.predictor import main
from latent_physics.training.console import TrainingError
from latent_physics.training.data import first
from latent_physics.training.data.videos import decode
from PIL import Image

installed = pytest.mark.skipif(not first.template_clips(), reason="no template package is installed")


def animation(path, milliseconds, frames=5):
    pictures = [Image.new("RGB", (16, 16), (40 * number, 0, 0)) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds)
    return path


@pytest.mark.parametrize(("milliseconds", "rate"), [(40, 25.0), ([30, 50, 30, 50, 40], 25.0), (100, 10.0)])
def test_the_rate_is_that_of_the_decoded_frames(tmp_path, milliseconds, rate):
    clip = animation(tmp_path / "clip.webp", milliseconds)
    times = [frame.time for frame in decode(clip)]
    assert first.frame_rate(clip) == pytest.approx(rate)
    if isinstance(milliseconds, int):
        assert (len(times) - 1) / times[-1] == pytest.approx(rate)


def test_a_still_has_no_rate(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "still.webp")
    assert first.frame_rate(tmp_path / "still.webp") == 0


def test_clips_of_video_models_are_taken_each_name_once_and_none_too_slow(tmp_path, monkeypatch):
    names = [
        "video_a_t2v-1.webp", "video_a_t2v-2.webp", "3d_mesh-1.webp", "api_b_i2v-1.webp", "video_slow-1.webp",
    ]  # fmt: skip
    clips = [animation(tmp_path / name, 100 if "slow" in name else 40) for name in names]
    (tmp_path / "again").mkdir()
    clips.append(animation(tmp_path / "again" / names[0], 40))
    monkeypatch.setattr(first, "template_clips", lambda: clips)
    found = first.first_clips("ltxav")
    assert [clip.name for clip in found.clips] == [names[0], names[3]]
    assert [entry.reason for entry in found.left_out] == [
        "video_slow-1.webp has 10 frames per second, 22.5 are needed."
    ]
    assert len(first.first_clips("cogvideox").clips) == len(first.first_clips("toy").clips) == 3


def test_none_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(first, "template_clips", list)
    with pytest.raises(TrainingError, match=r"^no clip of ComfyUI's template packages .* of your own\.$"):
        first.first_clips("wan2.1")


@installed
@pytest.mark.parametrize("space", ["wan2.1", "ltxav", "minimax_h3", "hunyuan_video1.5", "mochi"])
def test_about_fifty_are_there_for_every_model(space):
    assert len(first.first_clips(space).clips) >= 45


@pytest.mark.parametrize("space", SPACES)
def test_their_size_is_one_that_every_vae_takes(space):
    width, height, frames = first.first_size(space)
    assert SPACES[space].frames.fits(frames)
    for model in (model for model in MODELS.values() if model.space == space):
        assert width % model.side_multiple == height % model.side_multiple == 0


# --- latent-physics predictor --first -----------------------------------------------------------------------


def test_one_command_caches_them_and_trains_a_small_predictor(tmp_path, monkeypatch, capsys):
    names = [f"video_{number}_t2v-1.webp" for number in range(3)]
    clips = [moving_animation(tmp_path / name, seed) for seed, name in enumerate(names)]
    monkeypatch.setattr(first, "template_clips", lambda: clips)
    out = tmp_path / "run"
    arguments = ["--first", "toy", "--out", str(out), "--steps", "2", "--batch", "2", "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "0.5M parameters" in said  # the toy recipe
    assert "usable below" in said
    info = read_info(out / "motion_predictor.safetensors")
    assert (info.latent_space, info.config["prompted"]) == ("toy", False)
    assert info.recipe["fps"] == pytest.approx(25)
    assert info.recipe["seconds_per_latent_frame"] is None  # the toy world has no rate
    before = (out / "clips").stat().st_mtime_ns
    assert main([*arguments[:5], "3", *arguments[6:]]) == 0  # resumed
    assert (out / "clips").stat().st_mtime_ns == before
    assert "3 clips were there before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either cache"),
        (["--cache", "x", "--first", "toy"], "give either cache"),
        (["--first", "ltx9"], "first is 'ltx9'; choose one of toy, wan2.1"),
        (["--first", "h3"], "model 'h3' is encoded by its VAE's file"),
    ],
)
def test_what_a_first_predictor_lacks_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(first, "template_clips", lambda: [animation(tmp_path / "video_t2v-1.webp", 30)])
    assert main([*arguments, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def moving_animation(path, seed):
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    frames = [Image.fromarray(np.roll(noise, 3 * step, axis=1)) for step in range(17)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    return path
