"""`latent-physics cache --model`: clips of models that ComfyUI alone can load, encoded by its own classes."""

from __future__ import annotations

import sys

import pytest
import torch
from latent_physics.methods.video_models import MODELS, SPACES

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.sd
from latent_physics.nodes.host import spaces
from latent_physics.training.backbones import comfyui
from latent_physics.training.commands import predictor
from latent_physics.training.commands.cache import main
from latent_physics.training.console import TrainingError
from latent_physics.training.data import loaders
from latent_physics.training.data.clips import Clips
from latent_physics.training.data.format import CacheConfig

from . import tiny_vaes
from .test_train_node import write_video

pytestmark = pytest.mark.comfy
FRAMES = {"wan2.1": 9, "wan2.2-5b": 9, "hunyuan_video1.5": 9, "ltx2.3": 17, "h3": 22}
"""Model -> frames of its test clips, at least three latent frames."""


@pytest.fixture
def vae_file(monkeypatch, tmp_path):
    """Model -> its VAE's file, of small random weights."""
    tiny_vaes.shrink(monkeypatch)
    return lambda name: tiny_vaes.write(name, tmp_path)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(2):
        write_video(folder / f"clip_{seed}.webp", seed, frames=24, size=64)
    return folder


@pytest.mark.parametrize("name", FRAMES)
def test_clips_of_every_model_are_encoded_in_its_own_space_and_trained_on(vae_file, videos, tmp_path, name):
    out, frames = tmp_path / "cache", FRAMES[name]
    arguments = ["--videos", str(videos), "--out", str(out), "--model", name, "--vae", str(vae_file(name))]
    arguments += ["--width", "64", "--height", "64", "--frames", str(frames), "--device", "cpu", "--fps", "0"]
    assert main(arguments) == 0
    clips, space = Clips.from_folder(out), SPACES[MODELS[name].space]
    assert clips.latent_space == space.name
    assert clips.channels == space.channels
    assert clips.size == (64 // space.pixels, 64 // space.pixels)
    assert clips.lengths == [space.frames.latent_frames(frames)] * 2
    assert clips.cond_dim == MODELS[name].prompt_width
    assert not clips.prompted
    run = ["--cache", str(out), "--out", str(tmp_path / "run"), "--recipe", "toy", "--steps", "2"]
    assert predictor.main([*run, "--device", "cpu", "--batch", "2"]) == 0


@pytest.mark.parametrize("name", FRAMES)
def test_a_latent_is_what_comfyuis_own_nodes_make_of_the_video(vae_file, name):
    """VAE Encode, then what the sampler does with a LATENT of the model's format."""
    path, video = vae_file(name), torch.rand(1, 3, FRAMES[name], 64, 64)
    made = comfyui.ComfyVideoEncoder(MODELS[name], path, "cpu").encode_video(video)
    with torch.inference_mode():
        stock = comfyui.load_vae(path, comfy.sd).encode(video[0].movedim(0, -1))
        wanted = spaces.latent_format(MODELS[name].space).process_in(stock)
    assert torch.isfinite(made).all()
    assert made.std() > 0
    torch.testing.assert_close(made, wanted.float())


@pytest.mark.parametrize(("name", "tolerance"), [("wan2.1", 1e-3), ("hunyuan_video1.5", 2e-2)])
def test_a_model_with_a_backbone_is_encoded_alike_without_comfyui(vae_file, monkeypatch, name, tolerance):
    video = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    config = CacheConfig(out="unused", model=name, vae=vae_file(name), device="cpu")
    by_comfyui = loaders.loaders(config)[1]().encode_video(video)
    monkeypatch.setattr(comfyui, "find_comfyui", lambda: False)
    backbone = loaders.loaders(config)[1]()
    assert not isinstance(backbone, comfyui.ComfyVideoEncoder)
    assert backbone.latent_space == MODELS[name].space
    torch.testing.assert_close(by_comfyui, backbone.encode_video(video).cpu(), rtol=1e-3, atol=tolerance)


def test_text_files_give_the_tokens_of_a_conditioning_wire(monkeypatch, tmp_path):
    """Captions of two lengths, with the mask that the encoder gives and without one."""
    seen = {}

    class Encoder:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, text):
            tokens = torch.full((1, len(text), 3584), 2.0)
            tokens[:, -1] = 0
            masked = {"attention_mask": torch.tensor([[1] * (len(text) - 2) + [0, 0]])}
            return [[tokens, masked if text.startswith("m") else {}]]

    def load_clip(ckpt_paths, clip_type):
        seen.update(paths=ckpt_paths, kind=clip_type)
        return Encoder()

    monkeypatch.setattr(comfy.sd, "load_clip", load_clip)
    model = MODELS["hunyuan_video1.5"]
    tokens, mask = comfyui.ComfyTextEncoder(model, ["a", "b"], "cpu").embed_prompts(["mask", "no mask"])
    assert seen == {"paths": ["a", "b"], "kind": comfy.sd.CLIPType.HUNYUAN_VIDEO_15}
    assert tokens.shape == (2, 7, 3584)
    assert mask.tolist() == [[True, True, *[False] * 5], [True] * 6 + [False]]
    with pytest.raises(TrainingError, match=r"3584 numbers per token, but LTX-2\.3 reads 6144"):
        comfyui.ComfyTextEncoder(MODELS["ltx2.3"], ["a"], "cpu").embed_prompts(["x"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vae": None}, "is encoded by its VAE's file"),
        ({"text_also": "x"}, "give text too"),
        ({"first_frame": True}, "made for backbone wan only"),
        ({"tokens": True}, "tokens are made by a text encoder"),
        ({"model": "ltx9"}, "model 'ltx9' is unknown"),
    ],
)
def test_what_a_model_cannot_be_given_is_said_before_anything_is_loaded(tmp_path, changes, sentence):
    settings = {"out": tmp_path, "model": "h3", "vae": "x", "device": "cpu", **changes}
    with pytest.raises(TrainingError, match=sentence):
        loaders.loaders(CacheConfig(**settings))


def test_without_comfyui_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui, "find_comfyui", lambda: False)
    with pytest.raises(TrainingError, match=r"^this model .* set COMFYUI_PATH .* Python\.$"):
        loaders.loaders(CacheConfig(out=tmp_path, model="h3", vae="x", device="cpu"))


def test_files_of_another_kind_are_one_sentence(vae_file, tmp_path):
    with pytest.raises(TrainingError, match="makes latents of 16 channels, but those of MiniMax H3 have 24"):
        comfyui.ComfyVideoEncoder(MODELS["h3"], vae_file("wan2.1"), "cpu")
    text = vae_file("wan2.1").parent / "toy_text.safetensors"
    for path in (text, tmp_path / "absent.safetensors"):
        with pytest.raises(TrainingError, match=f"ComfyUI cannot load {path.name} as a VAE"):
            comfyui.ComfyVideoEncoder(MODELS["wan2.1"], path, "cpu")
    with pytest.raises(TrainingError, match=r"ComfyUI cannot load absent\.safetensors as a text encoder"):
        comfyui.ComfyTextEncoder(MODELS["wan2.1"], [tmp_path / "absent.safetensors"], "cpu")


def test_comfyui_is_found_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "comfy")
    monkeypatch.setattr(comfyui.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert not comfyui.find_comfyui()
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "sd.py").touch()
    assert comfyui.find_comfyui()
    assert sys.path[-1] == str(tmp_path)
