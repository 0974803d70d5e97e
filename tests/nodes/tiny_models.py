"""A tiny random model of every class of the table of video models, built from ComfyUI's own classes."""

from __future__ import annotations

from typing import Any

import torch

from .conftest import TEXT, build, hunyuan_config, ltxv_config

WAN = {"image_model": "wan2.1", "dim": 384, "num_heads": 3, "num_layers": 1, "ffn_dim": 32, "freq_dim": 16}
"""Wider than the toy world's, so that its latents are Wan's."""
COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 1, "num_heads": 1, "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8, "crossattn_emb_channels": TEXT,
}  # fmt: skip


def wan(kind: str, into: int, **more: Any) -> dict[str, Any]:
    return {**WAN, "model_type": kind, "in_dim": into, "out_dim": 16, "text_dim": TEXT, **more}


def cogvideox(into: int) -> dict[str, Any]:
    return {
        "image_model": "cogvideox", "in_channels": into, "num_attention_heads": 1, "attention_head_dim": 64,
        "time_embed_dim": 32, "text_embed_dim": TEXT, "num_layers": 1, "max_text_seq_length": 6,
        "use_rotary_positional_embeddings": True,
    }  # fmt: skip


def hunyuan(**more: Any) -> dict[str, Any]:
    return {**hunyuan_config().unet_config, **more}


def sizes(name: str) -> dict[str, Any]:
    """What ComfyUI would read off a file of class `name`, small."""
    av = ltxv_config().unet_config
    return {
        "WAN21_T2V": lambda: wan("t2v", 16),
        "WAN21_CausalAR_T2V": lambda: wan("t2v", 16, causal_ar=True),
        "WAN21_I2V": lambda: wan("i2v", 36),
        "WAN21_FunControl2V": lambda: wan("i2v", 48),
        "WAN21_Camera": lambda: wan("camera", 32),
        "WAN22_Camera": lambda: wan("camera_2.2", 36),
        "WAN21_Vace": lambda: wan("vace", 16, vace_layers=1, vace_in_dim=96),
        "WAN21_HuMo": lambda: wan("humo", 36),
        "WAN22_S2V": lambda: wan("s2v", 16),
        "WAN22_Animate": lambda: wan("animate", 36),
        "WAN21_SCAIL": lambda: wan("scail", 20),
        "WAN21_SCAIL2": lambda: wan("scail2", 20),
        "WAN22_WanDancer": lambda: wan("wandancer", 36),
        "WAN22_T2V": lambda: wan("t2v", 48, out_dim=48),
        "LTXV": lambda: av,
        "LTXAV": lambda: {
            **av, "image_model": "ltxav", "audio_num_attention_heads": 1, "audio_attention_head_dim": 64,
            "audio_cross_attention_dim": 64, "connector_attention_head_dim": TEXT,
            "connector_num_attention_heads": 1, "connector_num_layers": 1,
        },
        "MiniMaxH3": lambda: {
            "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1,
            "num_attention_heads": 1, "attention_head_dim": 64, "ffn_hidden_size": 32, "text_dim": TEXT,
            "timestep_input_dim": 16, "time_embed_hidden_size": 16, "time_embed_dim": 16,
            "rope_inv_freq_len": 8,
        },
        "HunyuanVideo": hunyuan,
        "HunyuanVideoI2V": lambda: hunyuan(in_channels=33),
        "HunyuanVideoSkyreelsI2V": lambda: hunyuan(in_channels=32),
        "HunyuanVideo15": lambda: hunyuan(
            in_channels=65, out_channels=32, vision_in_dim=16, vec_in_dim=None, patch_size=[1, 1, 1]
        ),
        "HunyuanVideo15_SR_Distilled": lambda: hunyuan(
            in_channels=98, out_channels=32, vision_in_dim=16, vec_in_dim=None, patch_size=[1, 1, 1]
        ),
        "Kandinsky5": lambda: {
            "image_model": "kandinsky5", "in_text_dim": TEXT, "in_text_dim2": TEXT, "time_dim": 16,
            "model_dim": 64, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 1,
        },
        "CosmosT2V": lambda: cosmos1(16),
        "CosmosI2V": lambda: cosmos1(17),
        "CosmosT2IPredict2": lambda: {**COSMOS, "image_model": "cosmos_predict2", "in_channels": 16},
        "CosmosI2VPredict2": lambda: {**COSMOS, "image_model": "cosmos_predict2", "in_channels": 17},
        "CogVideoX_T2V": lambda: cogvideox(16),
        "CogVideoX_I2V": lambda: cogvideox(32),
        "CogVideoX_Inpaint": lambda: cogvideox(48),
        "GenmoMochi": lambda: {
            "image_model": "mochi_preview", "depth": 1, "patch_size": 2, "num_heads": 1,
            "hidden_size_x": 64, "hidden_size_y": 32, "mlp_ratio_x": 192.0,
            "mlp_ratio_y": 192.0,  # ComfyUI insists on its hidden sizes
            "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
            "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
            "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True,
            "t5_feat_dim": TEXT, "t5_token_length": 6, "rope_theta": 10000.0,
        },
    }[name]()  # fmt: skip


def cosmos1(into: int) -> dict[str, Any]:
    return {
        **COSMOS, "image_model": "cosmos", "in_channels": into, "block_config": "FA-CA-MLP",
        "block_x_format": "THWBD", "affline_emb_norm": True, "pos_emb_learnable": False,
        "pos_emb_interpolation": "crop", "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable",
    }  # fmt: skip


def make(name: str) -> Any:
    """A MODEL of ComfyUI's class `name`, of seeded random weights."""
    import comfy.supported_models

    model = build(getattr(comfy.supported_models, name)(sizes(name)))
    for table, values in model.model.diffusion_model.named_buffers():
        if table.endswith(("inv_freq", "adaln_t_table")):  # read from the file by ComfyUI; memory here
            values.copy_(torch.rand(values.shape, generator=torch.Generator().manual_seed(0)))
    return model


def latent(channels: int, sound: tuple[int, ...] | None, seed: int | None = None) -> Any:
    """A latent `1 C 5 8 8`, empty or of noise, nested with its sound where the model has one."""
    import comfy.nested_tensor

    def tensor(*shape: int) -> torch.Tensor:
        if seed is None:
            return torch.zeros(shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    video = tensor(1, channels, 5, 8, 8)
    return video if sound is None else comfy.nested_tensor.NestedTensor((video, tensor(*sound)))
