"""Every video model of the table, tiny and random but of ComfyUI's own class: what works on one works on
all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
from latent_physics.methods.lamo import drift_heatmap
from latent_physics.methods.video_models import MODELS, SPACES
from latent_physics.nodes import heatmaps, lamo, train
from latent_physics.nodes.host import spaces
from latent_physics.nodes.views import figures

from . import tiny_models

pytestmark = pytest.mark.comfy
SOUND = {"LTXAV": (1, 8, 6, 16), "MiniMaxH3": (1, 32, 2, 7)}
"""Shape of the sound that is nested with the video."""
ROWS = {name: model for model in reversed(MODELS.values()) for name in model.classes}
"""Class -> its first row."""
ONE = sorted(ROWS)


@pytest.fixture(scope="module")
def tiny() -> Any:
    built: dict[str, Any] = {}
    return lambda name: built[name] if name in built else built.setdefault(name, tiny_models.make(name))


OPTIONS = {
    name: {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    for name in ("LTXV", "CosmosT2V", "CosmosI2V", "GenmoMochi")
}
"""What a class asks of its conditioning beside the tokens."""


def start(name: str, seed: int | None = None) -> Any:
    """An empty latent of the class, or one of noise."""
    model = ROWS[name]
    return tiny_models.latent(SPACES[model.space].channels, SOUND.get(name), seed)


def run(model: Any, name: str, sample: Any, conditioning: Any) -> torch.Tensor:
    """Two steps without CFG, the video and its sound as the sampler leaves them."""
    prompts = [conditioning(seed, **OPTIONS.get(name, {})) for seed in (1, 2)]
    if name == "WAN21_CausalAR_T2V":
        return in_blocks(model, *prompts)
    return sample(model, *prompts, latent=start(name), steps=2, cfg=1.0)


def in_blocks(model: Any, positive: list[Any], negative: list[Any]) -> torch.Tensor:
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 1})
    empty = start("WAN21_CausalAR_T2V")
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(empty, 5)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        return comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, positive, negative, empty, disable_pbar=True, seed=5
        )


def parts(latent: Any) -> list[torch.Tensor]:
    return list(latent.unbind()) if getattr(latent, "is_nested", False) else [latent]


def guide(model: Any, predictor: Any, strength: float = 25.0) -> Any:
    (guided,) = lamo.LaMoGuidance.execute(model, predictor, strength, 1.0, start=1.0).args
    return guided


@pytest.mark.parametrize("name", ONE)
def test_guidance_changes_the_video_and_strength_0_changes_nothing(
    tiny, make_predictor, sample, conditioning, name
):
    model, space = tiny(name), ROWS[name].space
    assert spaces.latent_space(model) == space
    assert ROWS[name] in spaces.video_models(model)
    assert type(model.model.latent_format).__name__ == SPACES[space].latent_format
    predictor = make_predictor(SPACES[space].channels, space)
    plain = parts(run(model, name, sample, conditioning))
    guided = parts(run(guide(model, predictor), name, sample, conditioning))
    off = parts(run(guide(model, predictor, strength=0.0), name, sample, conditioning))
    assert all(torch.isfinite(part).all() for part in plain + guided)
    assert (guided[0] - plain[0]).abs().max() > 1e-4
    assert all(torch.equal(one, other) for one, other in zip(plain, off, strict=True))


@pytest.mark.parametrize("name", SOUND)
def test_sound_is_left_alone_where_it_is_not_attended_to(tiny, make_predictor, sample, conditioning, name):
    """In one step the sound is what the model says before anything is corrected; afterwards the network's
    joint attention hears the corrected video."""
    model, space = tiny(name), ROWS[name].space
    predictor = make_predictor(SPACES[space].channels, space)
    prompts = [conditioning(seed) for seed in (1, 2)]
    plain, guided = (
        parts(sample(one, *prompts, latent=start(name), steps=1, cfg=1.0))
        for one in (model, guide(model, predictor))
    )
    assert (guided[0] - plain[0]).abs().max() > 1e-4
    assert (guided[1] - plain[1]).abs().max() <= 1e-6


def never_loaded(monkeypatch: Any) -> None:
    """Fails a test where ComfyUI loads a model."""
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_without_its_video_is_one_sentence_before_loading(
    tiny, make_predictor, sample, conditioning, monkeypatch, name
):
    model, space = tiny(name), ROWS[name].space
    guided = guide(model, make_predictor(SPACES[space].channels, space))
    never_loaded(monkeypatch)
    prompts = [conditioning(seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"is an image, or a sound without its video: sample a video latent"):
        sample(guided, *prompts, latent=torch.zeros(SOUND[name]), steps=1, cfg=1.0)


@pytest.mark.parametrize("order", [1, 2])
def test_blocks_too_short_even_with_what_came_before_are_one_sentence_before_loading(
    tiny, make_predictor, conditioning, monkeypatch, order
):
    """A block has the frames before it as context: only a video that is too short as a whole has no pair."""
    name = "WAN21_CausalAR_T2V"
    model, predictor = tiny(name), make_predictor(16, "wan2.1", order=order)
    guided, frames = guide(model, predictor), predictor.lag(0) + order - 1
    never_loaded(monkeypatch)
    monkeypatch.setitem(globals(), "start", lambda *_: torch.zeros(1, 16, frames, 8, 8))
    with pytest.raises(ValueError, match=rf"needs at least {frames + 1} latent frames"):
        run(guided, name, None, conditioning)


@pytest.mark.parametrize("space", [space for space in SPACES if space != "cogvideox1.5"])
def test_a_predictor_trained_in_the_graph_is_accepted(
    tiny, sample, conditioning, space, tmp_path, monkeypatch
):
    """Without prompts, so that the width of another text encoder does not matter. CogVideoX's 5B models are
    told by a width that is not tiny."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    name = next(name for name in ONE if ROWS[name].space == space)
    clips = torch.randn(2, SPACES[space].channels, 5, 4, 4, generator=torch.Generator().manual_seed(3))
    predictor = train.TrainMotionPredictor.execute(
        space, "", "toy", 1, 2, steps=1, minutes=0.0, seed=0, batch=2, latent={"samples": clips}
    ).args[0]
    guided = run(guide(tiny(name), predictor), name, sample, conditioning)
    assert all(torch.isfinite(part).all() for part in parts(guided))


@pytest.mark.parametrize("name", ONE)
def test_heatmaps_look_at_latents_as_the_model_samples_them(tiny, name, monkeypatch):
    """The format that a space names is the one that the model's own latents go through."""
    model, latent, space = tiny(name), start(name, seed=4), ROWS[name].space
    monkeypatch.setattr(figures, "preview_video", lambda *_: None)
    maps = heatmaps.MotionDriftHeatmap.execute({"samples": latent}, 2, 0.7, False, latent_space=space).args[1]
    wanted, _ = drift_heatmap(model.model.process_latent_in(parts(latent)[0]), 2, skip=heatmaps.SKIP)
    assert torch.allclose(maps, wanted.flatten(0, 1), atol=1e-6)
