"""Load Physics Critic, Physics Critic, Keep Most Plausible and Best-of-N Sampler with the toy world's
models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from latent_physics.nodes.host.critics import ranking_title

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.samplers
import execution
import folder_paths
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from latent_physics import toyworld as worlds
from latent_physics.nodes import alignment, best_of_n, critics, lamo, pila
from latent_physics.nodes import toyworld as toy
from latent_physics.nodes.host import files
from latent_physics.nodes.host.critics import AUTOMATIC
from latent_physics.nodes.host.encoders import FOLDER
from torch import Tensor

import nodes as stock

pytestmark = pytest.mark.comfy
VJEPA, VIDEOMAE, PREDICTOR = (
    "toy/toy_vjepa2.safetensors",
    "toy/toy_videomae.safetensors",
    "toy/toy_predictor_order2.safetensors",
)
BALL = "a large red ball thrown to the right, bouncing on the floor"


def execute(node: Any, **arguments: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        return node.execute(**arguments).args


@pytest.fixture(autouse=True)
def previews(tmp_path, monkeypatch) -> None:
    """Previews go to a temporary folder."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture(scope="module")
def geometry() -> Any:
    return execute(critics.LoadPhysicsCritic, name=VIDEOMAE, method=AUTOMATIC)[0]


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of Load Toy World."""
    return execute(toy.LoadToyWorld)


def images_of(clips: Tensor) -> Tensor:
    """`B 3 T H W` -> IMAGE, one clip after another."""
    return clips.movedim(1, -1).flatten(0, 1)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return images_of(worlds.sample("rigid_body", 1, 5)[0])


def still(images: Tensor) -> Tensor:
    return images[:1].expand_as(images)


# --- loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "critic", "reads"),
    [
        (VJEPA, AUTOMATIC, "surprise", "frames"),
        (VJEPA, "trajectory geometry", "geometry", "frames"),
        (VIDEOMAE, AUTOMATIC, "geometry", "frames"),
        (PREDICTOR, AUTOMATIC, "motion", "latent"),
    ],
)
def test_a_file_gives_the_critic_it_is_good_for(name: str, method: str, critic: str, reads: str) -> None:
    assert critics.LoadPhysicsCritic.validate_inputs(name, method, "8") is True
    (found,) = execute(critics.LoadPhysicsCritic, name=name, method=method)
    assert (found.critic.name, found.reads) == (critic, reads)
    assert name in critics.LoadPhysicsCritic.define_schema().inputs[0].options


@pytest.mark.parametrize(
    ("name", "method", "contexts", "sentence"),
    [
        (VIDEOMAE, "causal surprise", "8", "cannot predict: causal surprise needs V-JEPA 2"),
        (VIDEOMAE, "motion consistency", "8", "needs a motion predictor"),
        (PREDICTOR, "causal surprise", "8", "is a motion predictor"),
        (VJEPA, "geometry", "8", "method is 'geometry'; it must be one of: "),
        ("toy/toy_vae.safetensors", AUTOMATIC, "8", "toy_vae"),
        ("gone.safetensors", AUTOMATIC, "8", "is not in models/latent_physics"),
        (f"{FOLDER}/gone.safetensors", AUTOMATIC, "8", f"is not in models/{FOLDER}"),
        (VJEPA, AUTOMATIC, "eight", "write numbers of frames"),
        (VJEPA, AUTOMATIC, "16", "even numbers from 2 to 14"),
        (VJEPA, AUTOMATIC, "", "even numbers from 2 to 14"),
    ],
)
def test_what_cannot_judge_is_refused_before_it_runs(
    name: str, method: str, contexts: str, sentence: str
) -> None:
    assert sentence in str(critics.LoadPhysicsCritic.validate_inputs(name, method, contexts))


def test_settings_reach_causal_surprise() -> None:
    (found,) = execute(
        critics.LoadPhysicsCritic,
        name=VJEPA,
        method=AUTOMATIC,
        rate=8.0,
        distance="l1",
        contexts="4, 8",
        stride=4,
    )
    critic = found.critic
    assert (critic.rate, critic.distance, critic.contexts, critic.stride) == (8.0, "l1", (4, 8), 4)


def test_dinov2_folder_judges_by_geometry(tmp_path, monkeypatch, real: Tensor) -> None:
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    for name in (files.FOLDER, FOLDER):
        folder_paths.folder_names_and_paths.pop(name, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / FOLDER / "dino")
    name = f"{FOLDER}/dino/model.safetensors"
    assert critics.LoadPhysicsCritic.validate_inputs(name, AUTOMATIC, "8") is True
    assert "cannot predict" in critics.LoadPhysicsCritic.validate_inputs(name, "causal surprise", "8")
    (found,) = execute(critics.LoadPhysicsCritic, name=name, method=AUTOMATIC)
    score, *_ = execute(critics.PhysicsCriticNode, critic=found, fps=16.0, images=real[:8])
    assert 0 < score < 1


# --- Physics Critic -----------------------------------------------------------------------------------------


def test_physics_critic_shows_score_curve_heat_and_parts(geometry: Any, real: Tensor) -> None:
    both = torch.cat([real, still(real)])
    score, plausibility, gate, curve, overlay, table = execute(
        critics.PhysicsCriticNode, critic=geometry, fps=16.0, images=both, clips=2
    )
    rows = [json.loads(line) for line in table.splitlines()]
    assert gate == 1
    assert score == pytest.approx(plausibility)
    assert rows[0]["score"] == pytest.approx(score, abs=1e-6)
    assert rows[1]["gate"] == rows[1]["score"] == 0, "a still video"
    assert rows[1]["plausibility"] == pytest.approx(1, abs=1e-3), "stillness is perfectly regular"
    assert set(rows[0]["parts"]) == {
        "step_variation",
        "turning",
        "turning_variation",
        "acceleration",
        "residual",
    }
    assert curve.shape[0] == 1
    assert curve.std() > 0.01
    assert overlay.shape == both.shape
    assert not torch.equal(overlay[:33], both[:33])


def test_motion_consistency_judges_the_latent(world: Any, real: Tensor) -> None:
    _, clip, vae = world
    (critic,) = execute(critics.LoadPhysicsCritic, name=PREDICTOR, method=AUTOMATIC)
    with torch.inference_mode():
        latent = stock.VAEEncode().encode(vae, real)[0]
        prompt = stock.CLIPTextEncode().encode(clip, BALL)[0]
    for images in (None, real):
        score, _, gate, _, overlay, table = execute(
            critics.PhysicsCriticNode, critic=critic, fps=16.0, latent=latent, images=images, positive=prompt
        )
        assert 0 < score < 1
        assert gate == 1
        assert json.loads(table)["parts"].keys() == {"l_guide", "unexpected_share"}
        assert overlay.shape[-1] == 3


def test_physics_critic_says_what_is_missing(geometry: Any, real: Tensor) -> None:
    (motion,) = execute(critics.LoadPhysicsCritic, name=PREDICTOR, method=AUTOMATIC)
    node = critics.PhysicsCriticNode
    with pytest.raises(ValueError, match="judges images: wire the decoded video"):
        execute(node, critic=geometry, fps=16.0)
    with pytest.raises(ValueError, match="judges latents: wire the sampler's output"):
        execute(node, critic=motion, fps=16.0, images=real)
    with pytest.raises(ValueError, match="no whole number of frames of 2 clips"):
        execute(node, critic=geometry, fps=16.0, images=real, clips=2)
    with pytest.raises(ValueError, match="fps is 0"):
        execute(node, critic=geometry, fps=0.0, images=real)
    with pytest.raises(ValueError, match="needs 5 frames or more and was given 4"):
        execute(node, critic=geometry, fps=16.0, images=real[:4])
    with pytest.raises(ValueError, match="clip 1 of 1 holds NaN"):
        execute(node, critic=geometry, fps=16.0, images=real * float("nan"))


@pytest.mark.parametrize("node", [critics.PhysicsCriticNode, best_of_n.BestOfNSampler])
def test_a_rate_left_at_0_is_refused_before_anything_runs(node: Any) -> None:
    assert "fps is 0" in node.validate_inputs(fps=0.0)
    assert node.validate_inputs(fps=16.0) is True
    assert node.validate_inputs() is True, "a rate that another node gives"


def test_comfyui_checks_keep_most_plausible_by_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it checks a prompt: a node that takes lists is handed lists, and complains in one sentence."""
    keeps, loads = "LatentPhysicsKeepMostPlausible", "LatentPhysicsLoadPhysicsCritic"
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, keeps, critics.KeepMostPlausible)
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, loads, critics.LoadPhysicsCritic)
    settings = {"name": PREDICTOR, "method": AUTOMATIC, "rate": 0.0, "distance": "cosine", "stride": 2}
    picture = {"width": 64, "height": 64, "batch_size": 9, "color": 0}
    options = {"clips": 1, "seed": 0, "prompt": "", "keep_all": False}

    def faults(fps: Any) -> list[Any]:
        graph = {
            "critic": {"class_type": loads, "inputs": {**settings, "contexts": "8"}},
            "images": {"class_type": "EmptyImage", "inputs": picture},
            "keep": {
                "class_type": keeps,
                "inputs": {"critic": ["critic", 0], "images": ["images", 0], "fps": fps, **options},
            },
        }
        return asyncio.run(execution.validate_inputs("prompt", graph, "keep", {}))[1]

    assert faults(16.0) == []
    assert [fault["details"] for fault in faults(0.0)] == [f"fps - {critics.NO_FPS}"]
    assert critics.KeepMostPlausible.validate_inputs(fps=(None,)) is True, "a rate that another node gives"


def test_settings_that_another_node_gives_are_no_fault() -> None:
    """ComfyUI hands None over for a wired widget while it checks a graph and asks what has changed."""
    check = critics.LoadPhysicsCritic.validate_inputs
    assert check(PREDICTOR, AUTOMATIC, None) is True
    assert check(None, AUTOMATIC, "8") is True
    assert check(PREDICTOR, None, "8") is True
    assert "write numbers of frames" in check(None, None, "eight")
    for node in (critics.LoadPhysicsCritic, alignment.LoadVideoEncoder, lamo.LoadMotionPredictor):
        assert node.fingerprint_inputs(name=None) == node.fingerprint_inputs(name=None)
        assert node.fingerprint_inputs(name="absent") == "missing"
    for node in (alignment.LoadVideoEncoder, lamo.LoadMotionPredictor, pila.LoadPilaAdapter):
        assert node.validate_inputs(name=None) is True
    assert pila.PilaCorrectionNode.validate_inputs(start=None, end=0.5) is True
    assert pila.PilaCorrectionNode.validate_inputs(start=0.5, end=None) is True


# --- Keep Most Plausible ------------------------------------------------------------------------------------


def keep(
    critic: Any,
    images: list[Tensor],
    clips: int = 1,
    seed: list[int] | None = None,
    keep_all: bool = False,
    latent: list[dict[str, Any]] | None = None,
) -> Any:
    return execute(
        critics.KeepMostPlausible,
        critic=[critic],
        images=images,
        fps=[16.0],
        clips=[clips],
        seed=seed or [100],
        prompt=["a ball"],
        keep_all=[keep_all],
        latent=latent,
    )


def test_keep_most_plausible_ranks_a_batch_and_never_the_still_one(geometry: Any, real: Tensor) -> None:
    shuffled = real[torch.randperm(33, generator=torch.Generator().manual_seed(1))]
    best, seed, number, picture, table, ranked = keep(
        geometry, [torch.cat([shuffled, still(real), real])], clips=3, keep_all=True
    )
    assert torch.equal(best, real)
    assert (seed, number) == (102, 3)
    rows = [json.loads(line) for line in table.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["seed"] for row in rows] == [102, 100, 101]
    assert all(row["prompt"] == "a ball" for row in rows)
    assert rows[2]["score"] == 0
    assert len(ranked) == 3
    assert torch.equal(ranked[0], best)
    assert picture.std() > 0.01


def test_keep_most_plausible_takes_a_list_with_seeds_of_its_own(geometry: Any, real: Tensor) -> None:
    best, seed, number, _, _, ranked = keep(geometry, [still(real), real], seed=[7, 3])
    assert torch.equal(best, real)
    assert (seed, number, len(ranked)) == (3, 2, 1)
    with pytest.raises(ValueError, match="2 seeds were given for 1 videos"):
        keep(geometry, [real], seed=[7, 3])


def test_keep_most_plausible_gives_the_video_whose_latent_won(world: Any, real: Tensor) -> None:
    """Two videos in a batch, judged by their latents; with clips left at 1 a rank would name no video."""
    (motion,) = execute(critics.LoadPhysicsCritic, name=PREDICTOR, method=AUTOMATIC)
    shuffled = real[torch.randperm(33, generator=torch.Generator().manual_seed(1))]
    with torch.inference_mode():
        found = [stock.VAEEncode().encode(world[2], clip)[0]["samples"] for clip in (shuffled, real)]
    latent, batch = {"samples": torch.cat(found)}, [torch.cat([shuffled, real])]
    best, seed, number, *_ = keep(motion, batch, clips=2, latent=[latent])
    assert torch.equal(best, real)
    assert (seed, number) == (101, 2)
    for clips in (1, 3):
        with pytest.raises(ValueError, match=f"holds 2 videos and clips is {clips}: set clips to 2"):
            keep(motion, batch, clips=clips, latent=[latent])


def test_one_candidate_is_kept_and_the_table_says_so(geometry: Any, real: Tensor) -> None:
    best, seed, number, _, table, _ = keep(geometry, [real])
    assert torch.equal(best, real)
    assert (seed, number, len(table.splitlines())) == (100, 1, 1)
    assert "nothing to choose from" in ranking_title(geometry, 1)


# --- Best-of-N Sampler --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(world: Any) -> Any:
    """The inputs of SamplerCustomAdvanced for the toy world: 4 steps, 33 frames."""
    model, clip, _ = world
    with torch.inference_mode():
        prompts = [stock.CLIPTextEncode().encode(clip, text)[0] for text in (BALL, "")]

    def make(seed: int = 5) -> dict[str, Any]:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*prompts)
        guider.set_cfg(2.0)
        return {
            "noise": Noise_RandomNoise(seed),
            "guider": guider,
            "sampler": comfy.samplers.sampler_object("uni_pc"),
            "sigmas": comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4),
            "latent_image": {"samples": torch.zeros(1, 16, 9, 8, 8)},
        }

    return make


@pytest.mark.parametrize("name", [PREDICTOR, VIDEOMAE])
def test_best_of_n_gives_the_plain_samplers_clip_and_a_table(inputs: Any, world: Any, name: str) -> None:
    """Four seeds, halved after two of four steps, by a critic of latents and by one that needs the VAE."""
    (critic,) = execute(critics.LoadPhysicsCritic, name=name, method=AUTOMATIC)
    output, _, finished, seed, picture, table, seeds = execute(
        best_of_n.BestOfNSampler,
        **inputs(),
        critic=critic,
        fps=16.0,
        candidates=4,
        prune_first=0.5,
        prune_second=0.0,
        vae=None if name == PREDICTOR else world[2],
        prompt=BALL,
    )
    with torch.inference_mode():
        plain = SamplerCustomAdvanced.execute(**inputs(seed)).args[0]["samples"]
    assert torch.equal(output["samples"], plain)
    rows = [json.loads(line) for line in table.splitlines()]
    assert sorted(row["seed"] for row in rows) == [5, 6, 7, 8]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["dropped_at"] for row in rows] == [None, None, 2, 2]
    assert [len(row["looks"]) for row in rows] == [2, 2, 1, 1]
    assert rows[0]["prompt"] == BALL
    assert rows[0]["score"] >= rows[1]["score"]
    assert min(row["looks"][0]["score"] for row in rows[:2]) >= max(row["score"] for row in rows[2:])
    assert finished["samples"].shape == (2, 16, 9, 8, 8)
    assert torch.equal(finished["samples"][:1], plain)
    assert seeds == [row["seed"] for row in rows[:2]]
    with torch.inference_mode():
        second = SamplerCustomAdvanced.execute(**inputs(seeds[1])).args[0]["samples"]
    assert torch.equal(finished["samples"][1:], second), "a clip's seed is its own, not the winner's plus 1"
    assert picture.std() > 0.01


def test_best_of_n_refuses_what_its_critic_cannot_judge(inputs: Any, geometry: Any, monkeypatch) -> None:
    settings = {"fps": 16.0, "candidates": 2, "prune_first": 0.0, "prune_second": 0.0}
    with pytest.raises(ValueError, match="judges frames: wire the VAE"):
        execute(best_of_n.BestOfNSampler, **inputs(), critic=geometry, **settings)
    (motion,) = execute(critics.LoadPhysicsCritic, name=PREDICTOR, method=AUTOMATIC)
    object.__setattr__(motion, "space", "wan2.1")
    with pytest.raises(ValueError, match=r"trained on 'wan2\.1' latents, but this model's are 'toy'"):
        execute(best_of_n.BestOfNSampler, **inputs(), critic=motion, **settings)
