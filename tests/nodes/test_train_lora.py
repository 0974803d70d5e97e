"""Train Physics LoRA: it trains through ComfyUI's own network, and what it puts out is what was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
import comfy.sd
import comfy.supported_models
import folder_paths
import safetensors.torch
from latent_physics.methods.video_models import MODELS
from latent_physics.nodes import toyworld, train_lora
from latent_physics.nodes.host import lora_training, native
from latent_physics.nodes.host.latents import cache_latent, prompt_tokens
from latent_physics.training.backbones.keys import to_native
from latent_physics.training.backbones.wan import WanBackbone
from latent_physics.training.data.batches import pad_tokens
from latent_physics.training.tasks.noise import PRESETS

from . import tiny_models
from .conftest import build

pytestmark = pytest.mark.comfy
WIDTH = 4096
"""Width of umT5's tokens, which ComfyUI expects of every Wan file."""
CASES = {"toy": (128, 16, "WAN21_T2V"), "wan2.1": (384, 16, "WAN21_T2V"), "wan2.2": (384, 48, "WAN22_T2V")}
"""Latent space -> width, channels and class of a tiny model of it."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: Any) -> Any:
    """Latent space -> a MODEL of seeded random weights, as Load Diffusion Model makes it of a file."""
    folder = tmp_path_factory.mktemp("models")

    def made(space: str, dtype: torch.dtype = torch.float32) -> Any:
        path = folder / f"{space}-{dtype}.safetensors"
        if not path.is_file():
            dim, channels, kind = CASES[space]
            sizes = {"dim": dim, "num_heads": dim // 128, "num_layers": 2, "ffn_dim": 64, "text_dim": WIDTH}
            sizes |= {"in_dim": channels, "out_dim": channels, "freq_dim": 256}
            config = {"image_model": "wan2.1", "model_type": "t2v", **sizes}
            state = build(getattr(comfy.supported_models, kind)(config)).model.diffusion_model.state_dict()
            safetensors.torch.save_file({name: value.to(dtype) for name, value in state.items()}, path)
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model(str(path))

    return made


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output and temporary folders, empty."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "output"


def moving(channels: int = 16, clips: int = 2, frames: int = 5, size: int = 4) -> torch.Tensor:
    """Clips whose frames shift by one place per frame."""
    first = torch.randn(clips, channels, size, size, generator=torch.Generator().manual_seed(3))
    return torch.stack([first.roll(step, dims=-1) for step in range(frames)], dim=2)


def prompts(count: int = 1) -> list[Any]:
    tokens = torch.randn(count, 6, WIDTH, generator=torch.Generator().manual_seed(7))
    tokens[:, 4:] = 0
    return [[tokens[row : row + 1], {}] for row in range(count)]


def run(model: Any, **changes: Any) -> tuple[Any, ...]:
    settings = {"drift": 0.4, "steps": 4, "learning_rate": 1e-2, "rank": 4, "noise": "none", "seed": 0}
    arguments = {"latent": {"samples": moving()}, "positive": prompts(), **settings, **changes}
    with torch.inference_mode():
        return train_lora.TrainPhysicsLora.execute(model=model, **arguments).args


def loaded(model: Any, lora: dict[str, torch.Tensor], strength: float = 1.0) -> Any:
    """The MODEL with the LoRA, by the stock node."""
    from comfy_extras.nodes_train import LoraModelLoader

    with torch.inference_mode():
        return LoraModelLoader.execute(model, lora, strength).args[0]


def said(model: Any, noisy: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Velocity of a MODEL as it samples, by ComfyUI's `apply_model`."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        model.pre_run()
        x0 = model.model.apply_model(noisy, sigma, c_crossattn=tokens)
        model.cleanup()
        return (noisy - x0) / sigma.view(-1, 1, 1, 1, 1)


def asked(channels: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A noisy latent, its noise levels and a prompt of the network's whole length."""
    generator = torch.Generator().manual_seed(11)
    noisy = torch.randn(2, channels, 3, 4, 4, generator=generator)
    tokens = torch.randn(2, 512, WIDTH, generator=generator) * 0.1
    return noisy, torch.tensor([0.4, 0.9]), tokens


def test_the_lora_on_the_stock_loader_is_what_was_trained(load, output, monkeypatch) -> None:
    """The velocity of the trained network, and that of a MODEL with the LoRA, which samples on."""
    trained: list[torch.Tensor] = []
    noisy, sigma, tokens = asked()

    def remember(loop: Any, settings: Any) -> Any:
        with torch.no_grad():
            trained.append(loop.task.backbone.predict(noisy, sigma, tokens))
        return lora_training.lora_of(loop, settings)

    monkeypatch.setattr(train_lora, "lora_of", remember)
    model = load("toy")
    plain = said(model, noisy, sigma, tokens)
    lora, plot, info = run(model, steps=6)
    with_lora = said(loaded(model, lora), noisy, sigma, tokens)
    assert torch.allclose(with_lora, trained[0], atol=1e-4)
    assert (with_lora - plain).abs().max() > 1e-2
    assert torch.equal(said(model, noisy, sigma, tokens), plain)  # the MODEL on the wire is what it was
    assert plot.ndim == 4
    assert "LoRA of 20 layers" in info
    assert not list(output.rglob("*"))


@pytest.mark.parametrize("space", CASES)
def test_every_layer_of_every_trained_class_is_patched_and_named_as_the_command_names_it(load, space, output):
    model, channels = load(space), CASES[space][1]
    lora, _, info = run(model, latent={"samples": moving(channels, size=8 if channels == 48 else 4)}, steps=1)
    ours = {
        f"blocks.{block}.{layer}.lora_A.weight": 0 for block in (0, 1) for layer in WanBackbone.lora_targets
    }
    native_names = to_native({name: torch.zeros(1) for name in ours}, WanBackbone.dit_keys)
    found = {name.removeprefix(native.PREFIX) for name in lora if name.endswith("lora_A.weight")}
    assert found == set(native_names)
    assert len(loaded(model, lora).patches) == len(found)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in lora.values())
    assert "denoise" in info
    assert "drift" in info


def test_the_velocity_that_is_trained_is_the_one_that_is_sampled_with_the_wires_lora_and_shift(load, output):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    plain = load("wan2.1")
    lora, _, _ = run(plain)
    with torch.inference_mode():
        model = ModelSamplingSD3().patch(loaded(plain, lora), 5.0)[0]
    noisy, sigma, tokens = asked()
    with native.trained_copy(model) as copy, torch.no_grad():
        backbone = native.backbone_of(copy, checkpointing=False)
        velocity = backbone.predict(noisy, sigma, tokens)
    assert backbone.shift == 5.0
    assert torch.allclose(velocity, said(model, noisy, sigma, tokens), atol=2e-5)
    assert not torch.allclose(velocity, said(plain, noisy, sigma, tokens), atol=1e-3)
    assert not comfy.model_management.in_training


def test_the_toy_worlds_prompts_are_trained_as_they_are_sampled(output) -> None:
    with torch.inference_mode():
        model, clip, _ = toyworld.LoadToyWorld.execute().args
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a small blue ball falls to the floor"))
    noisy, sigma, _ = asked()
    (tokens,) = prompt_tokens(positive, 1)
    assert len(tokens) < positive[0][0].shape[1]
    with native.trained_copy(model) as copy, torch.no_grad():
        velocity = native.backbone_of(copy, checkpointing=False).predict(
            noisy, sigma, *pad_tokens([tokens] * 2)
        )
    assert torch.allclose(velocity, said(model, noisy, sigma, positive[0][0].expand(2, -1, -1)), atol=2e-5)


def test_it_learns_its_clips(load, output) -> None:
    """Held-out clips are of the same kind; both losses fall."""
    _, _, info = run(load("toy"), latent={"samples": moving(clips=20)}, steps=20, batch=4)
    (line,) = [line for line in info.splitlines() if line.startswith("denoising error")]
    before, after = (float(word) for word in line.split() if word[0].isdigit())
    assert after < 0.9 * before


def test_a_seed_gives_one_lora_with_and_without_checkpointing(load, output) -> None:
    one, again, other, kept = (
        run(load("toy"), **changes)[0] for changes in ({}, {}, {"seed": 1}, {"checkpointing": False})
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.allclose(one[name], kept[name], atol=1e-5) for name in one)


def test_a_cancelled_run_goes_on_from_its_checkpoint_bit_for_bit(load, output, monkeypatch) -> None:
    whole = run(load("toy"), steps=6)[0]
    cancelled = comfy.model_management.InterruptProcessingException

    def stop_at_3() -> Any:
        def show(report: Any) -> None:
            if report.step == 3:
                raise cancelled

        return show

    with monkeypatch.context() as patch:
        patch.setattr(train_lora, "progress_bar", stop_at_3)
        with pytest.raises(cancelled):
            run(load("toy"), steps=6, run="mine")
    assert not comfy.model_management.in_training
    assert (output / "latent_physics" / "mine" / "checkpoint.safetensors").is_file()
    lora, _, info = run(load("toy"), steps=6, run="mine")
    assert all(torch.equal(whole[name], lora[name]) for name in whole)
    assert "6 steps" in info
    with pytest.raises(ValueError, match="other settings"):
        run(load("toy"), steps=6, run="mine", rank=8)
    with pytest.raises(ValueError, match="cannot be the run's folder name"):
        run(load("toy"), run="../mine")


def test_needs_no_package_that_only_the_commands_need(load, output, monkeypatch) -> None:
    for name in ("accelerate", "diffusers", "peft", "transformers", "tyro"):
        for module in [found for found in sys.modules if found.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    assert run(load("toy"), steps=1)[0]


def test_bfloat16_weights_are_trained_through_with_a_float32_lora(load, output) -> None:
    lora, _, _ = run(load("toy", torch.bfloat16), steps=2)
    assert all(torch.isfinite(value).all() for value in lora.values())
    assert any(value.any() for name, value in lora.items() if name.endswith("lora_A.weight"))


OTHERS = sorted(
    {name for model in MODELS.values() for name in model.classes if hasattr(comfy.supported_models, name)}
    - set(native.TRAINED)
)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_model_is_refused_in_a_sentence_before_anything_is_loaded(name, monkeypatch, output):
    monkeypatch.setattr(train_lora, "cache_latent", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=f"this MODEL is {name}: latent-physics finetune trains") as refused:
        run(tiny_models.make(name))
    assert ". " not in str(refused.value)


def test_a_model_that_no_file_can_be_read_again_for_is_refused(wan, output) -> None:
    with pytest.raises(ValueError, match="cannot load it a second time"):
        run(wan)


def test_prompts_of_a_latent_are_kept_without_their_padding(tmp_path) -> None:
    from latent_physics.training.data.clip import read_clip

    cache_latent({"samples": moving()}, "toy", prompts(2), WIDTH, tmp_path)
    clips = [read_clip(path) for path in sorted(tmp_path.iterdir())]
    assert [clip.tokens.shape for clip in clips] == [(4, WIDTH)] * 2
    assert torch.equal(clips[1].tokens, prompts(2)[1][0][0, :4])
    assert clips[0].info.key != clips[1].info.key
    with pytest.raises(ValueError, match="3 prompts for 2 clips"):
        cache_latent({"samples": moving()}, "toy", prompts(3), WIDTH, tmp_path)
    (tmp_path / "none").mkdir()
    cache_latent({"samples": moving()}, "toy", None, WIDTH, tmp_path / "none")
    assert all(not len(read_clip(path).tokens) for path in (tmp_path / "none").iterdir())


def test_presets_are_those_of_the_command() -> None:
    assert set(lora_training.NOISE) == {
        name for name in PRESETS if "i2v" not in name and not name.startswith("hunyuan")
    }
