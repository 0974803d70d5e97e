"""The toy world's nodes: stock objects that stock nodes work on, text of every kind, and scores with their
refusals."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import pytest
import torch
from latent_physics.nodes.host import spaces

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_patcher
import comfy.sd
import folder_paths
from latent_physics import toyworld as worlds
from latent_physics.nodes import lamo
from latent_physics.nodes import toyworld as toy
from torch import Tensor

import nodes as stock

pytestmark = pytest.mark.comfy
BALL = "a large red ball thrown to the right, bouncing on the floor"
SMOKE = "a small blue puff of smoke expanding and drifting up"


def execute(node: Any, **arguments: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        return node.execute(**arguments).args


@pytest.fixture(autouse=True)
def previews(tmp_path, monkeypatch) -> None:
    """Previews go to a temporary folder."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of Load Toy World."""
    assert toy.LoadToyWorld.validate_inputs() is True
    return execute(toy.LoadToyWorld)


def encode(clip: Any, text: str) -> list[Any]:
    with torch.inference_mode():
        return stock.CLIPTextEncode().encode(clip, text)[0]


def tokens_of(clip: Any, text: str) -> Tensor:
    return encode(clip, text)[0][0]


def sampled(model: Any, clip: Any, text: str, *, seed: int = 3, batch: int = 1) -> Tensor:
    """Latents of nine frames, two steps of the stock KSampler."""
    start = {"samples": torch.zeros(batch, 16, 3, 8, 8)}
    with torch.inference_mode():
        done = stock.KSampler().sample(
            model, seed, 2, 3.0, "euler", "simple", encode(clip, text), encode(clip, ""), start
        )
    return done[0]["samples"]


def test_the_objects_are_those_of_the_stock_loaders(world) -> None:
    model, clip, vae = world
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert isinstance(clip, comfy.sd.CLIP)
    assert isinstance(vae, comfy.sd.VAE)
    assert spaces.latent_space(model) == "toy"
    assert model.get_model_object("model_sampling").shift == toy.SHIFT


def test_stock_nodes_sample_and_decode_it(world) -> None:
    model, clip, vae = world
    latent = sampled(model, clip, BALL, batch=2)
    assert latent.shape == (2, 16, 3, 8, 8)
    assert torch.equal(sampled(model, clip, BALL, batch=2), latent)
    assert not torch.allclose(sampled(model, clip, SMOKE, batch=2), latent)
    with torch.inference_mode():
        images = stock.VAEDecode().decode(vae, {"samples": latent})[0]
        again = stock.VAEEncode().encode(vae, images[:9])[0]["samples"]
    assert images.shape == (18, 64, 64, 3)
    assert 0 <= images.min() < images.max() <= 1
    assert again.shape == (1, 16, 3, 8, 8)


def test_stock_loaders_read_the_same_files(world, monkeypatch) -> None:
    """As if a user copied toy_dit and toy_vae into his own model folders."""
    folders = dict(folder_paths.folder_names_and_paths)
    for kind in ("diffusion_models", "vae"):
        folders[kind] = ([str(toy.SHIPPED_FOLDER)], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    model, _, vae = world
    loaded = stock.UNETLoader().load_unet("toy_dit.safetensors", "default")[0]
    assert type(loaded.model) is type(model.model)
    assert_same_weights(loaded.model.diffusion_model, model.model.diffusion_model)
    other = stock.VAELoader().load_vae("toy_vae.safetensors")[0]
    assert_same_weights(other.first_stage_model, vae.first_stage_model)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected = other.state_dict()
    found = one.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_shipped_predictors_guide_it(world) -> None:
    model, clip, _ = world
    plain = sampled(model, clip, BALL)
    names = [name for name in lamo.files.list_files("motion_predictor") if name.startswith("toy/")]
    assert len(names) == 2
    for name in names:
        predictor, info = execute(lamo.LoadMotionPredictor, name=name)
        assert "toy latents" in info
        guided = {
            strength: sampled(
                execute(
                    lamo.LaMoGuidance, model=model, predictor=predictor, strength=strength, active=1.0, lag=1
                )[0],
                clip,
                BALL,
            )
            for strength in (0.0, 5.0)
        }
        assert torch.equal(guided[0.0], plain)
        assert torch.isfinite(guided[5.0]).all()
        assert not torch.equal(guided[5.0], plain)


def test_words_outside_the_vocabulary_are_one_unknown_word(world) -> None:
    clip = world[1]
    unknown = tokens_of(clip, "zyzzyva")
    assert torch.isfinite(unknown).all()
    assert torch.equal(tokens_of(clip, "quokka"), unknown)
    assert not torch.equal(tokens_of(clip, "ball"), unknown)


def test_the_empty_prompt_is_no_tokens_at_all(world) -> None:
    for text in ("", "  ", "123 !?", "\u7403"):
        ((tokens, options),) = encode(world[1], text)
        assert tokens.shape == (1, 24, 4096)
        assert not tokens.any()
        assert not options["attention_mask"].any()


def test_case_punctuation_and_weights_do_not_matter(world) -> None:
    plain = tokens_of(world[1], "red ball")
    for text in ("Red, BALL!", "(red:1.3) ball", "red\nball"):
        assert torch.equal(tokens_of(world[1], text), plain)


def test_a_long_prompt_is_cut(world) -> None:
    words = (BALL.replace(",", "") + " ") * 4
    assert torch.equal(tokens_of(world[1], words), tokens_of(world[1], " ".join(words.split()[:24])))


def test_what_stock_nodes_ask_of_a_clip(world) -> None:
    clip = world[1]
    rows = clip.tokenize("red ball", return_word_ids=True)["toy"]
    assert all(len(entry) == 3 for entry in rows[0])
    words = [
        word for _, word in clip.tokenizer.untokenize(clip.tokenize("red quokka ball")["toy"][0]) if word
    ]
    assert words == ["red", "?", "ball"]
    last = stock.CLIPSetLastLayer().set_last_layer(clip, -1)[0]
    assert torch.equal(tokens_of(last, BALL), tokens_of(clip, BALL))


def test_missing_weights_are_said_in_a_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(toy, "SHIPPED_FOLDER", tmp_path)
    answer = toy.LoadToyWorld.validate_inputs()
    assert isinstance(answer, str)
    assert "\n" not in answer
    assert "toy_vae.safetensors" in answer


# --- Law Score ----------------------------------------------------------------------------------------------


def as_images(clips: Tensor) -> Tensor:
    """Clips `B 3 T H W` as VAE Decode gives them: `B*T H W 3`."""
    return clips.movedim(1, -1).flatten(0, 1)


def score(
    images: Tensor, world: str = toy.FROM_PROMPT, prompt: str = "", frames: int = 33
) -> tuple[Any, ...]:
    return execute(toy.LawScore, images=images, world=world, prompt=prompt, frames=frames)


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_real_clips_score_like_real_clips_and_shuffled_ones_do_not(name: str) -> None:
    clips, prompts = worlds.sample(name, 6, seed=11)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    still = clips[:1, :, :1].expand(-1, -1, 33, -1, -1)
    images = as_images(torch.cat([clips, clips[:, :, order], still]))
    law, adherence, dynamic_degree, plot, table = score(images, name, prompts[0])
    rows = json.loads(table)
    assert rows["world"] == name
    assert mean(rows["law"][:6]) > 0.85
    assert mean(rows["law"][6:12]) < 0.3
    assert rows["adherence"][0] > 0.9
    assert 0.5 < mean(rows["dynamic_degree"][:6]) < 2
    assert rows["dynamic_degree"][12] == 0
    assert law == pytest.approx(mean(rows["law"]), abs=1e-3)
    assert adherence == pytest.approx(mean(rows["adherence"]), abs=1e-3)
    assert dynamic_degree == pytest.approx(mean(rows["dynamic_degree"]), abs=1e-3)
    assert plot.ndim == 4
    assert plot.shape[-1] == 3


def test_the_world_is_read_from_the_prompt() -> None:
    clips, prompts = worlds.sample("fluid", 1, seed=2)
    assert json.loads(score(as_images(clips), prompt=prompts[0])[-1])["world"] == "fluid"
    transparent = torch.cat([as_images(clips), torch.ones(33, 64, 64, 1)], dim=-1)
    assert score(transparent, prompt=prompts[0])[:3] == pytest.approx(
        score(as_images(clips), prompt=prompts[0])[:3]
    )


def test_a_ball_that_blinks_has_a_score() -> None:
    """From whichever frame on: right after a contact there is then nothing left to measure a rebound with."""
    clips, prompts = worlds.sample("rigid_body", 1, seed=11)
    empty = torch.from_numpy(worlds.WORLDS["rigid_body"].background)[None, :, None]
    blinking = clips.repeat(20, 1, 1, 1, 1)
    for clip in range(20):
        blinking[clip : clip + 1, :, 4 + clip :: 2] = empty
    rows = json.loads(score(as_images(blinking), prompt=prompts[0])[-1])
    assert all(0 <= law < 1 for law in rows["law"])


BAD = {
    "another size": (torch.rand(33, 32, 48, 3), BALL, 33, "64"),
    "no whole number of clips": (torch.rand(40, 64, 64, 3), BALL, 33, "40 images"),
    "fewer images than a clip": (torch.rand(20, 64, 64, 3), BALL, 33, "20 images"),
    "no world in the prompt": (torch.rand(33, 64, 64, 3), "a cat on a sofa", 33, "'a cat on a sofa'"),
    "no prompt": (torch.rand(33, 64, 64, 3), "", 33, "''"),
    "clips too short": (torch.rand(10, 64, 64, 3), BALL, 10, "12 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence(case: str) -> None:
    images, prompt, frames, value = BAD[case]
    with pytest.raises(ValueError) as refused:
        score(images, prompt=prompt, frames=frames)
    text = str(refused.value)
    assert value in text
    assert "\n" not in text
    assert text.endswith(".")
