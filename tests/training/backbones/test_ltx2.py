"""LTX-2.3's video stream: predictions, words and LoRAs are those of ComfyUI's model without sound."""

from __future__ import annotations

import json

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.formats import lora_for_diffusers, lora_to_native
from latent_physics.training.backbones.keys import LTX23_CONNECTOR, LTX23_DIT, to_diffusers, to_native
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.backbones.ltx2 import OF_2_3
from latent_physics.training.console import TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import ClipInfo, write_clip
from latent_physics.training.loop.optim import trainable
from latent_physics.training.tasks.denoise import DenoisingTask
from latent_physics.training.tasks.finetune import FinetuneConfig, check
from safetensors.torch import save_file

SIZES = {
    "num_attention_heads": 32, "attention_head_dim": 8, "cross_attention_dim": 256, "num_layers": 2,
    "audio_num_attention_heads": 32, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 128,
    "caption_channels": 256, "connector_num_attention_heads": 4, "connector_attention_head_dim": 64,
    "audio_connector_num_attention_heads": 2, "connector_apply_gated_attention": True,
    "apply_gated_attention": True, "cross_attention_adaln": True, "caption_proj_before_connector": True,
    "caption_projection_first_linear": False, "rope_type": "split", "use_middle_indices_grid": True,
    "causal_temporal_positioning": True, "frequencies_precision": "float64",
}  # fmt: skip
"""A file's own description of its transformer, which ComfyUI reads."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ltx") / "ltx.safetensors"
    state = {f"model.diffusion_model.{key}": value for key, value in tiny.ltx_state().items()}
    state |= {"vae.x": torch.zeros(1), "text_embedding_projection.y": torch.zeros(1)}
    save_file(state, path, metadata={"config": json.dumps({"transformer": SIZES})})
    return path


@pytest.fixture
def ours(file):
    return load_backbone("ltx23", {"dit": file}, parts=("dit",))


def question() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 128, 3, 4, 5, generator=generator)
    return latent, torch.tensor([0.5]), torch.randn(1, 9, 384, generator=generator)


def comfyui(comfy, file):
    state, metadata = comfy.utils.load_torch_file(str(file), return_metadata=True)
    state = {
        key.removeprefix("model.diffusion_model."): value for key, value in state.items() if "model." in key
    }
    return comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata)


def answer(model, latent, t, tokens, rate=25):
    words = model.diffusion_model.preprocess_text_embeds(tokens.clone(), unprocessed=True)
    return model.diffusion_model([latent.clone()], (t, t), words, transformer_options={}, frame_rate=rate)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.comfy
@torch.inference_mode()
def test_it_predicts_what_comfyui_predicts_without_sound(comfy, ours, file):
    """Through the stock loader: the same words after the connector, the same velocity."""
    theirs = comfyui(comfy, file).model
    latent, t, tokens = question()
    words = theirs.diffusion_model.preprocess_text_embeds(tokens.clone(), unprocessed=True)
    close(ours.words(tokens, None), words[..., :256])
    close(ours.predict(latent, t, tokens), answer(theirs, latent, t, tokens))
    slow = ours.predict(latent, t, tokens, rates=torch.tensor([8.0]))
    assert (slow - ours.predict(latent, t, tokens)).abs().max() > 1e-3
    close(slow, answer(theirs, latent, t, tokens, rate=8))


def test_a_clip_is_trained_at_its_own_frames_per_second(ours, tmp_path):
    """Frames stand in seconds: one micro-batch of clips at 8 and 25 fps, and of one that does not say."""
    generator = torch.Generator().manual_seed(0)
    for number, rate in enumerate((8.0, 25.0, 0.0)):
        info = ClipInfo(
            source=f"{number}.mp4", source_hash=str(number), key=str(number), caption="", caption_from="none",
            window=0, last=True, start=0.0, frames=17, width=64, height=64, fps=rate,
        )  # fmt: skip
        latent, words = (torch.randn(size, generator=generator) for size in ((128, 3, 2, 2), (9, 384)))
        path = tmp_path / f"{number}.safetensors"
        write_clip(path, latent, words.mean(0), info, ours.latent_space, tokens=words)
    clips, placed = TrainingClips(tmp_path, batch=3, seed=0), []
    task = DenoisingTask(ours, clips)
    hook = ours.dit.rope.register_forward_pre_hook(lambda rope, given: placed.append(given[0]))
    with torch.no_grad():
        task.module(*task.draw(0, generator))
    hook.remove()
    rates = clips.read(clips.chosen(0)).rates
    assert sorted(rates.tolist()) == [0.0, 8.0, 25.0]
    for row, rate in enumerate(rates.tolist()):  # the last latent frame ends with frame 17
        assert float(placed[0][row, 0].max()) == pytest.approx(17 / (rate or 25.0))


@torch.inference_mode()
def test_padded_prompts_are_answered_like_each_alone(ours):
    latent, _, tokens = question()
    both, t = torch.cat([tokens, tokens + 1]), torch.tensor([0.3, 0.8])
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    out = ours.predict(latent.expand(2, -1, -1, -1, -1), t, both, mask)
    close(out[:1], ours.predict(latent, t[:1], tokens))
    close(out[1:], ours.predict(latent, t[1:], both[1:, :4]))


@pytest.mark.comfy
def test_a_lora_of_the_video_is_patched_whole_in_both_programs(comfy, ours, file, tmp_path):
    tune = TuneConfig(rank=2, alpha=3)
    attach(ours, tune)
    values = trainable(ours.dit)
    assert all("audio" not in key for key in values)
    for value in values.values():
        value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.2
    native = {key: value.detach() for key, value in lora_to_native(values, "ltx23", tune).items()}
    patched = comfy.sd.load_lora_for_models(comfyui(comfy, file), None, native, 1.0, 0)[0]
    assert len(patched.patches) == 2 * 10
    patched.patch_model(device_to=torch.device("cpu"))
    with torch.inference_mode():
        expected = ours.predict(*question())
        close(expected, answer(patched.model, *question()))
        other = load_backbone("ltx23", {"dit": file}, parts=("dit",))
        assert (other.predict(*question()) - expected).abs().max() > 1e-3
        state = {key: value.detach().contiguous() for key, value in lora_for_diffusers(values, tune).items()}
        save_file(state, tmp_path / "lora.safetensors")
        other.dit.load_lora_adapter(str(tmp_path / "lora.safetensors"))
        close(other.predict(*question()), expected)


def test_real_blocks_map_whole():
    """One of 48 at real size on the meta device, and its connector: every key maps both ways."""
    from diffusers import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d

    with torch.device("meta"):
        dit = LTX2VideoTransformer3DModel(num_layers=1, **OF_2_3).state_dict()
        connector = LTX2ConnectorTransformer1d(32, 128, 1, gated_attention=True).state_dict()
    for state, maps in ((dit, LTX23_DIT), (connector, LTX23_CONNECTOR)):
        assert to_diffusers(to_native(state, maps), maps).keys() == state.keys()
    assert to_native(dit, LTX23_DIT)["transformer_blocks.0.attn2.to_k.weight"].shape == (4096, 4096)


def test_what_cannot_be_done_is_one_sentence(tmp_path):
    data = tmp_path / "clips"
    for settings, words in (
        ({"videos": [tmp_path]}, "are encoded by ComfyUI's own loaders"),
        ({"data": data, "samples": ["a ball"]}, "cache --model ltx2.3 --tokens"),
        ({"data": data, "tune": TuneConfig(mode="full")}, "train a LoRA"),
    ):
        with pytest.raises(TrainingError, match=words):
            check(FinetuneConfig(backbone="ltx23", **settings))
    state = {key: value for key, value in tiny.ltx_state().items() if "connector" not in key}
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(TrainingError, match=r"has no connector of LTX-2\.3"):
        load_backbone("ltx23", {"dit": tmp_path / "bare.safetensors"}, parts=("dit",))
