"""CogVideoX as Trained against diffusers: the 2B model's schedule, 5B's positions, and 1.5 as it is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")
pytest.importorskip("diffusers", reason="needs the extra [train]")

from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from latent_physics.methods.cogvideox import rotary_positions
from latent_physics.nodes.cogvideox import CogVideoXAsTrained
from latent_physics.training.backbones.keys import COGVIDEOX_DIT, to_native

from .conftest import TEXT, build

pytestmark = pytest.mark.comfy
SIZE = {
    "num_attention_heads": 3, "attention_head_dim": 64, "time_embed_dim": 32, "text_embed_dim": TEXT,
    "num_layers": 2, "max_text_seq_length": 6,
}  # fmt: skip
STYLES = {
    "2b": {"sample_height": 8, "sample_width": 12, "sample_frames": 13},
    "5b": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}


def pair(style):
    """(diffusers' network, ComfyUI's MODEL with the same weights)."""
    from comfy.supported_models import CogVideoX_T2V

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = CogVideoXTransformer3DModel(**SIZE, **STYLES[style]).eval()
        for name, parameter in ours.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2)
            if "attn1.norm" in name:
                parameter.data.fill_(2.0)  # attention that looks somewhere, or positions would not matter
    state, more = to_native(ours.state_dict(), COGVIDEOX_DIT), dict(STYLES[style])
    if style == "2b":
        state["patch_embed.pos_embedding"] = ours.patch_embed.pos_embedding
        more["use_learned_positional_embeddings"] = True
    model = build(CogVideoX_T2V({"image_model": "cogvideox", **SIZE, **more}))
    model.model.diffusion_model.load_state_dict(state)
    return ours, model


def crops(height, width):
    return get_resize_crop_region_for_grid((height, width), 45, 30)


@pytest.mark.parametrize(("height", "width"), [(30, 45), (8, 12), (45, 30), (20, 20), (48, 85), (6, 40)])
def test_positions_are_those_of_the_published_pipeline(height, width):
    theirs = get_3d_rotary_pos_embed(64, crops(height, width), (height, width), temporal_size=3)
    for ours, published in zip(rotary_positions(3, height, width, 64), theirs, strict=True):
        assert torch.allclose(ours, published, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("style", STYLES)
def test_a_network_says_what_it_says_in_diffusers(style):
    ours, model = pair(style)
    latent = torch.randn(1, 16, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 6, TEXT, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([700])
    rotary = None
    if style == "5b":
        rotary = get_3d_rotary_pos_embed(64, crops(4, 6), (4, 6), temporal_size=4)
    elif style == "1.5":
        base = ours.config.sample_height // 2, ours.config.sample_width // 2
        rotary = get_3d_rotary_pos_embed(64, None, (4, 6), temporal_size=2, grid_type="slice", max_size=base)
    wanted = ours(latent.transpose(1, 2), text, t, image_rotary_emb=rotary, return_dict=False)[0]
    network, patched = model.model.diffusion_model, CogVideoXAsTrained.execute(model).args[0]
    plain = network(latent, t, text)
    patched.patch_model()
    try:
        right = network(latent, t, text)
    finally:
        patched.unpatch_model()
    error = (right - wanted.transpose(1, 2)).abs().max() / wanted.abs().max()
    off = (plain - wanted.transpose(1, 2)).abs().max() / wanted.abs().max()
    assert error < 1e-5
    assert (off > 1e-3) == (style == "5b"), "ComfyUI's own 5B is what the node is for"
    assert torch.equal(network(latent, t, text), plain), "the model itself stays as it was"


@pytest.mark.parametrize(("style", "shift"), [("2b", 3.0), ("5b", 1.0), ("1.5", 1.0)])
def test_noise_levels_are_those_of_the_published_scheduler(style, shift):
    _, model = pair(style)
    patched, info = CogVideoXAsTrained.execute(model).args
    alpha = CogVideoXDDIMScheduler(snr_shift_scale=shift, rescale_betas_zero_snr=True).alphas_cumprod.double()
    published = ((1 - alpha) / alpha).sqrt()[:-1]
    sigmas = patched.get_model_object("model_sampling").sigmas.double()
    assert torch.allclose(sigmas[:-1], published, rtol=1e-2)
    assert torch.isfinite(sigmas).all()
    before = model.get_model_object("model_sampling").sigmas.double()
    assert torch.equal(before, sigmas) == (style != "2b")
    if style == "2b":
        assert torch.allclose(before[0] * 3**0.5, sigmas[0], rtol=1e-2)  # SNR over 3: sigma times its root
    assert info.startswith({"2b": "2B", "5b": "1.0 5B", "1.5": "1.5"}[style])


def test_other_models_are_refused(wan):
    with pytest.raises(ValueError, match="was given a WAN21: wire a CogVideoX model"):
        CogVideoXAsTrained.execute(wan)
