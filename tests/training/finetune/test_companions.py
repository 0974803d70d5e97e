"""The parts beside the transformer: how often they are loaded, what is in memory with what, what is kept."""

from __future__ import annotations

import io
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from latent_physics.methods.weights import read_info
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.tests.training.grpo.tiny_policy import make_config
from latent_physics.tests.training.grpo.tiny_policy import run as run_policy
from latent_physics.toyworld.text import ToyTextEncoder
from latent_physics.training.backbones import load, load_backbone
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.backbones.wan import WanBackbone
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.data.format import CacheConfig
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.processes import OneProcess
from latent_physics.training.tasks.companions import FILE, Companions
from latent_physics.training.tasks.finetune import FinetuneConfig, finetune


def quiet() -> ProgressLine:
    return ProgressLine("test", io.StringIO())


@pytest.fixture
def loaded(monkeypatch) -> Counter:
    """Number of times that each part was read from its file, by whatever function. A transformer must find
    the text encoder freed."""
    found, alive, real = Counter(), [], load._from_files

    def counting(family, source, parts, *others):
        if "dit" in parts:
            assert not [text for text in alive if text() is not None], "the text encoder is still in memory"
        found.update(parts)
        pieces = real(family, source, parts, *others)
        alive.extend(weakref.ref(pieces[name]) for name in parts if name == "text")
        return pieces

    monkeypatch.setattr(load, "_from_files", counting)
    return found


def videos(folder: Path) -> Path:
    folder.mkdir()
    for index in range(3):
        frames = np.random.default_rng(index).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
        imageio.imwrite(folder / f"{index}.mp4", frames, fps=8, codec="libx264")
        (folder / f"{index}.txt").write_text(f"a red ball falls {index}")
    return folder


def settings(out: Path, steps: int = 1, **more) -> FinetuneConfig:
    trainer = TrainerConfig(
        steps=steps, validate_every=1, save_every=1, held_out=0.4, prompt_dropout=0.5, learning_rate=1e-3,
        tensorboard=False,
    )  # fmt: skip
    size = {"width": 32, "height": 32, "frames": 5}
    return FinetuneConfig(
        out=out, backbone="toy", trainer=trainer, tune=TuneConfig(rank=2), export=False, **size | more
    )


def test_a_run_from_videos_loads_each_part_once_for_captions_dropout_and_previews(tmp_path, loaded):
    config = settings(tmp_path / "run", videos=[videos(tmp_path / "videos")], samples=["a ball"])
    finetune(config, progress=quiet())
    assert loaded == {"text": 1, "vae": 1, "dit": 1}
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["000001-0.mp4"]
    finetune(replace(config, trainer=replace(config.trainer, steps=2)), progress=quiet())
    assert loaded == {"text": 1, "vae": 2, "dit": 2}, "a resumed run embeds nothing again"


def test_a_run_on_cached_clips_embeds_dropout_and_previews_in_one_pass(tmp_path, loaded):
    data = tmp_path / "data"
    data.mkdir()
    tiny_run.clips(data, shapes=[(2, 4, 4)] * 4, width=4096)
    finetune(settings(tmp_path / "run", data=data, samples=["a ball"]), progress=quiet())
    assert loaded == {"text": 1, "vae": 1, "dit": 1}


def test_a_run_that_shows_and_drops_nothing_loads_the_transformer_alone(tmp_path, loaded):
    data = tmp_path / "data"
    data.mkdir()
    tiny_run.clips(data, shapes=[(2, 4, 4)] * 4, width=4096)
    config = settings(tmp_path / "run", data=data)
    finetune(replace(config, trainer=replace(config.trainer, prompt_dropout=0.0)), progress=quiet())
    assert loaded == {"dit": 1}


def test_drawn_clips_and_previews_share_encoder_and_vae(tmp_path, loaded):
    config = settings(tmp_path / "run", toy_clips=4, samples=["a ball"])
    finetune(config, progress=quiet())
    assert loaded == {"text": 1, "vae": 1, "dit": 1}


def test_a_policy_loads_each_part_once_and_resumed_no_text_encoder(tmp_path, loaded):
    run_policy(make_config(tmp_path, steps=1))
    assert loaded == {"text": 1, "vae": 1, "dit": 1}
    run_policy(make_config(tmp_path, steps=2))
    assert loaded == {"text": 1, "vae": 2, "dit": 2}


# --- the prompts themselves ---------------------------------------------------------------------------------


def companions(folder: Path, prompts: list[str], **encoders) -> Companions:
    config = CacheConfig(out=folder, backbone="toy", device="cpu", **encoders)
    made = Companions(config, prompts, folder / FILE, quiet())
    made.gather(OneProcess())
    return made


def test_tokens_are_the_encoders_own_kept_to_the_bit_and_padded_with_nothing(tmp_path, loaded):
    words = ["a red ball falls", "", "a ring"]
    fresh = companions(tmp_path, words)
    again = companions(tmp_path, words)
    assert loaded["text"] == 1
    tokens, mask = load_backbone("toy", parts=("text",)).embed_prompts(words)
    for row, word in enumerate(words):
        one, other = (made.take([word]).tokens[0] for made in (fresh, again))
        assert torch.equal(one, other)
        expected = tokens[row][mask[row]] if word else torch.zeros(1, tokens.shape[2])
        torch.testing.assert_close(one, expected)
    padded, there = again.take(words).batch([0, 2])
    assert padded.shape == (2, 4, 4096)
    assert there.tolist() == [[True] * 4, [True, True, False, False]]
    assert not padded[1, 2:].any()


def test_a_new_prompt_is_embedded_alone_and_kept_with_the_others(tmp_path, loaded, monkeypatch):
    companions(tmp_path, ["a ball", "a ring"])
    asked, real = [], WanBackbone.embed_prompts
    monkeypatch.setattr(
        WanBackbone, "embed_prompts", lambda self, words: asked.extend(words) or real(self, words)
    )
    companions(tmp_path, ["a puff", "a ring"])
    assert asked == ["a puff"]
    assert read_info(tmp_path / FILE).recipe["prompts"] == ["a puff", "a ring"]


def test_tokens_of_another_encoder_and_damaged_files_are_embedded_anew(tmp_path, loaded):
    shipped = companions(tmp_path, ["a ball"]).take(["a ball"]).tokens[0]
    torch.manual_seed(0)
    ToyTextEncoder().save(tmp_path / "text.safetensors", {})
    files = {"text": tmp_path / "text.safetensors", "vae": load.TOY_WEIGHTS / "toy_vae.safetensors"}
    other = companions(tmp_path, ["a ball"], **files).take(["a ball"]).tokens[0]
    assert not torch.allclose(shipped, other)
    assert loaded["text"] == 2
    (tmp_path / FILE).write_bytes(b"cut")
    assert torch.equal(companions(tmp_path, ["a ball"], **files).take(["a ball"]).tokens[0], other)
    assert loaded["text"] == 3


class OtherProcess(OneProcess):
    """A process that waits for the main one, which embeds while it does."""

    is_main_process = False

    def __init__(self, meanwhile) -> None:
        super().__init__()
        self.wait_for_everyone = meanwhile


def test_other_processes_read_what_the_main_one_embedded(tmp_path, loaded):
    config = CacheConfig(out=tmp_path, backbone="toy", device="cpu")
    waiting = Companions(config, ["a ball"], tmp_path / FILE, quiet())
    waiting.gather(OtherProcess(lambda: companions(tmp_path, ["a ball"])))
    assert loaded["text"] == 1
    assert waiting.take(["a ball"]).tokens[0].shape == (2, 4096)
    apart = Companions(config, ["a ball"], tmp_path / "elsewhere" / FILE, quiet())
    apart.gather(OtherProcess(lambda: None))  # on a machine that does not see the run's folder
    assert torch.equal(apart.take(["a ball"]).tokens[0], waiting.take(["a ball"]).tokens[0])
    assert not (tmp_path / "elsewhere").exists()


def test_files_that_do_not_go_together_are_told_before_anything_is_loaded(tmp_path, loaded):
    with pytest.raises(TrainingError, match="vae and text go together"):
        finetune(settings(tmp_path, videos=[tmp_path], vae=tmp_path / "vae.safetensors"), progress=quiet())
    assert not loaded
