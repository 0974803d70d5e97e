"""The key maps: same weights and input give ComfyUI's and diffusers' models the same output; real
configurations map whole."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan, CogVideoXTransformer3DModel, WanTransformer3DModel
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones.keys import (
    COGVIDEOX_DIT,
    WAN22_VAE,
    WAN_DIT,
    WAN_VAE,
    KeyMapError,
    is_native,
    to_diffusers,
    to_native,
)

randomised = tiny.randomised

WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
WAN_14B_I2V = WAN_14B | {"in_channels": 36}
WAN_14B_I2V_CLIP = WAN_14B_I2V | {"image_dim": 1280, "added_kv_proj_dim": 5120}
WAN_5B = {
    "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48,
}  # fmt: skip
WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
COG_2B = {"num_attention_heads": 30, "num_layers": 30}
COG_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
COG_15_5B = COG_5B | {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 96,
    "sample_width": 170,
    "sample_frames": 81,
}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.comfy
@torch.inference_mode()
def test_wan_dit_gives_the_same_output(comfy):
    ours = randomised(
        WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, num_layers=2, ffn_dim=256, text_dim=4096
        )
    )
    theirs = comfy.ldm.wan.model.WanModel(
        dim=128, ffn_dim=256, num_heads=1, num_layers=2, operations=comfy.ops.disable_weight_init
    ).eval()
    theirs.load_state_dict(to_native(ours.state_dict(), WAN_DIT))
    latent, text, t = torch.randn(2, 16, 3, 8, 6), torch.randn(2, 7, 4096), torch.tensor([700.0, 31.0])
    close(ours(latent, t, text, return_dict=False)[0], theirs(latent, t, text))


@pytest.mark.comfy
@pytest.mark.parametrize("width", [12, 16])
@torch.inference_mode()
def test_wan_vae_gives_the_same_output(comfy, width):
    ours = randomised(AutoencoderKLWan(base_dim=width, z_dim=16))
    theirs = comfy.ldm.wan.vae.WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True]).eval()
    theirs.load_state_dict(to_native(ours.state_dict(), WAN_VAE))
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    latent = ours.encode(video).latent_dist.mode()
    close(latent, theirs.encode(video))
    close(ours.decode(latent, return_dict=False)[0], theirs.decode(latent).clamp(-1, 1))


@pytest.mark.comfy
@torch.inference_mode()
def test_wan22_vae_gives_the_same_output(comfy):
    import comfy.ldm.wan.vae2_2

    ours = tiny.wan22_vae()
    theirs = comfy.ldm.wan.vae2_2.WanVAE(
        dim=8, dec_dim=12, z_dim=48, temperal_downsample=[False, True, True]
    ).eval()
    theirs.load_state_dict(to_native(ours.state_dict(), WAN22_VAE))
    video = torch.rand(1, 3, 9, 32, 64) * 2 - 1
    latent = ours.encode(video).latent_dist.mode()
    assert latent.shape == (1, 48, 3, 2, 4)
    close(latent, theirs.encode(video))
    close(ours.decode(latent, return_dict=False)[0], theirs.decode(latent).clamp(-1, 1))


@pytest.mark.comfy
@pytest.mark.parametrize("style", ["2b", "5b", "1.5"])
@torch.inference_mode()
def test_cogvideox_dit_gives_the_same_output(comfy, style):
    size = {
        "num_attention_heads": 3,
        "num_layers": 2,
        "sample_height": 8,
        "sample_width": 12,
        "sample_frames": 9,
    }
    if style == "5b":
        size |= {"use_rotary_positional_embeddings": True}
    if style == "1.5":
        size |= {
            "use_rotary_positional_embeddings": True,
            "patch_size_t": 2,
            "patch_bias": False,
            "sample_frames": 13,
        }
    ours = randomised(CogVideoXTransformer3DModel(**size))
    state = to_native(ours.state_dict(), COGVIDEOX_DIT)
    if style == "2b":
        state["patch_embed.pos_embedding"] = ours.patch_embed.pos_embedding
        size |= {"use_learned_positional_embeddings": True}
    theirs = comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(
        **size, operations=comfy.ops.disable_weight_init
    ).eval()
    theirs.load_state_dict(state)
    latent, text = torch.randn(2, 16, 4 if style == "1.5" else 3, 8, 12), torch.randn(2, 226, 4096)
    t = torch.tensor([700, 31])
    rotary = None
    if style != "2b":
        frames = 2 if style == "1.5" else 3
        rotary = theirs._get_rotary_emb(4, 6, frames, device=torch.device("cpu"))
    out = ours(latent.transpose(1, 2), text, t, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2)
    close(out, theirs(latent, t, text))


@pytest.mark.comfy
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("wan", WAN_1_3B),
        ("wan", WAN_14B),
        ("wan", WAN_14B_I2V),
        ("wan", WAN_14B_I2V_CLIP),
        ("wan", WAN_5B),
        ("vae", {}),
        ("vae22", {}),
        ("cog", COG_2B),
        ("cog", COG_5B),
        ("cog", COG_15_5B),
    ],
)
def test_real_models_map_whole(comfy, family, config):
    """On the meta device: every key maps both ways and every shape agrees."""
    import comfy.ldm.wan.vae2_2

    operations = comfy.ops.disable_weight_init
    with torch.device("meta"):
        if family == "wan":
            ours, maps = WanTransformer3DModel(**config), WAN_DIT
            heads = config["num_attention_heads"]
            size = {
                "dim": heads * 128,
                "num_heads": heads,
                "ffn_dim": config["ffn_dim"],
                "num_layers": config["num_layers"],
                "in_dim": config.get("in_channels", 16),
                "out_dim": config.get("out_channels", 16),
                "model_type": "i2v" if "image_dim" in config else "t2v",
            }
            theirs = comfy.ldm.wan.model.WanModel(**size, operations=operations)
        elif family == "vae22":
            ours, maps = AutoencoderKLWan(base_dim=160, decoder_base_dim=256, **tiny.WAN22), WAN22_VAE
            theirs = comfy.ldm.wan.vae2_2.WanVAE(
                dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True]
            )
        elif family == "vae":
            ours, maps = AutoencoderKLWan(base_dim=96, z_dim=16), WAN_VAE
            theirs = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
        else:
            ours, maps = CogVideoXTransformer3DModel(**config), COGVIDEOX_DIT
            theirs = comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(**config, operations=operations)
    native = to_native(ours.state_dict(), maps)
    assert {key: value.shape for key, value in native.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert list(to_diffusers(native, maps)) == list(ours.state_dict())


def test_lora_keys_and_prefixes_map_too():
    key = "blocks.3.attn2.to_out.0.lora_A.weight"
    assert to_native({key: 1}, WAN_DIT) == {"blocks.3.cross_attn.o.lora_A.weight": 1}
    assert to_diffusers({"diffusion_model.blocks.3.cross_attn.o.lora_A.weight": 1}, WAN_DIT) == {key: 1}
    assert to_diffusers({"model.diffusion_model.head.modulation": 1}, WAN_DIT) == {"scale_shift_table": 1}


def test_families_are_told_apart():
    with torch.device("meta"):
        cog = CogVideoXTransformer3DModel(
            num_attention_heads=3, num_layers=1, use_rotary_positional_embeddings=True
        ).state_dict()
        wan = WanTransformer3DModel(num_attention_heads=1, num_layers=1, ffn_dim=64).state_dict()
    assert not is_native(wan, WAN_DIT)
    assert is_native(to_native(wan, WAN_DIT), WAN_DIT)
    for state in (cog, to_native(cog, COGVIDEOX_DIT)):
        with pytest.raises(KeyMapError, match="not a weight of this model family"):
            is_native(state, WAN_DIT)


@pytest.mark.comfy
@torch.inference_mode()
def test_stock_loaders_take_exported_files(comfy, tmp_path):
    """What Load Diffusion Model and Load VAE call: every weight lands, and the VAE gives diffusers'
    latent."""
    from safetensors.torch import save_file

    dit = randomised(
        WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, num_layers=2, ffn_dim=256, text_dim=4096
        )
    )
    save_file(to_native(dit.state_dict(), WAN_DIT), tmp_path / "dit.safetensors")
    model = comfy.sd.load_diffusion_model(str(tmp_path / "dit.safetensors"))
    loaded = model.model.diffusion_model.state_dict()
    for key, value in to_native(dit.state_dict(), WAN_DIT).items():
        torch.testing.assert_close(loaded[key].float(), value, rtol=1e-6, atol=1e-6)
    ours = randomised(AutoencoderKLWan(base_dim=12, z_dim=16))
    save_file(to_native(ours.state_dict(), WAN_VAE), tmp_path / "vae.safetensors")
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tmp_path / "vae.safetensors"), safe_load=True))
    vae.throw_exception_if_invalid()
    frames = torch.rand(5, 16, 16, 3)
    latent = ours.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1).latent_dist.mode()
    close(latent, vae.encode(frames))
