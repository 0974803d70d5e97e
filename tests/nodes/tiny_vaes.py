"""A small random VAE file of each model that only ComfyUI encodes, of ComfyUI's own class.

ComfyUI reads LTX's sizes and Wan 2.1's width off the file. It fixes those of Wan 2.2 5B, HunyuanVideo 1.5 and
MiniMax H3 in its loader; there the class is told to be small while a test runs, and all else is as it is.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latent_physics.training.backbones.load import TOY_WEIGHTS
from safetensors.torch import save_file

LTX = {
    "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "patch_size": 4,
    "norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False,
    "encoder_base_channels": 8, "decoder_base_channels": 8,
    "encoder_blocks": [["compress_all", {}]] * 3,
    "decoder_blocks": [["compress_all", {}]] * 3 + [["res_x", {"num_layers": 1}]],
}  # fmt: skip
HUNYUAN = {
    "in_channels": 3, "out_channels": 3, "z_channels": 32, "block_out_channels": [32, 32, 32, 32, 64],
    "num_res_blocks": 1, "ffactor_spatial": 16, "ffactor_temporal": 4, "downsample_match_channel": True,
    "upsample_match_channel": True,
}  # fmt: skip
H3 = {"ch": 32, "ch_mult": (1, 1, 1, 1, 1, 1), "num_res_blocks": 1}
H3_DECODER = {"num_layers": 4, "heads": 1}


def shrink(monkeypatch: Any) -> None:
    """Makes the classes whose sizes ComfyUI fixes small."""
    import comfy.ldm.hunyuan_video.vae_refiner as refiner
    import comfy.ldm.minimax.vae as minimax
    import comfy.ldm.wan.vae2_2 as wan

    encoder, decoder, plain, vit = refiner.Encoder, refiner.Decoder, wan.WanVAE, minimax.ViT3DDecoder
    small = {"block_out_channels": HUNYUAN["block_out_channels"], "num_res_blocks": 1}
    monkeypatch.setattr(refiner, "Encoder", lambda **given: encoder(**{**given, **small}))
    monkeypatch.setattr(refiner, "Decoder", lambda **given: decoder(**{**given, **small}))
    sizes = {"dim": 8, "dec_dim": 8, "num_res_blocks": 1}
    monkeypatch.setattr(wan, "WanVAE", lambda **given: plain(**{**given, **sizes}))
    monkeypatch.setattr(minimax, "ViT3DDecoder", partial(vit, **H3_DECODER))
    monkeypatch.setattr(minimax, "MiniMaxH3VideoVAE", partial(minimax.MiniMaxH3VideoVAE, **H3))


def network(name: str) -> Any:
    """The VAE of a model, small."""
    if name.startswith("ltx"):
        from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

        return VideoVAE(config=LTX)
    if name == "wan2.2-5b":
        import comfy.ldm.wan.vae2_2 as wan

        return wan.WanVAE(dim=8, z_dim=48, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True])
    if name == "h3":
        import comfy.ldm.minimax.vae as minimax

        return minimax.MiniMaxH3VideoVAE()
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    place = "comfy.ldm.hunyuan_video.vae_refiner"
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"},
        encoder_config={"target": f"{place}.Encoder", "params": HUNYUAN},
        decoder_config={"target": f"{place}.Decoder", "params": HUNYUAN},
    )


def write(name: str, folder: Path) -> Path:
    """The VAE file of a row of the table; `shrink` comes first. LTX's lies in a checkpoint, as Lightricks
    ships it."""
    if name == "wan2.1":
        return TOY_WEIGHTS / "toy_vae.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in network(name).state_dict().items():
        if "temb_proj" in key:
            continue  # ComfyUI's block has it, the published file has not
        spread = 0.5 / max(value[0].numel(), 1) ** 0.5 if value.ndim > 1 else 0.0
        drawn = torch.randn(value.shape, generator=generator) * spread + (1.0 if value.ndim < 2 else 0.0)
        state[key] = drawn.contiguous() if value.is_floating_point() else value
    path, metadata = folder / f"{name}.safetensors", {}
    if name.startswith("ltx"):
        state = {f"vae.{key}": value for key, value in state.items()}
        state["model.diffusion_model.other"] = torch.zeros(1)
        metadata = {"config": json.dumps({"vae": LTX})}
    save_file(state, path, metadata=metadata)
    return path
