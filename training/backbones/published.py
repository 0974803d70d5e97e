"""Sizes of published transformers by their hub id, so that a run can be planned without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAN_1_3B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
WAN22_5B = {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "ffn_dim": 14336,
    "num_layers": 30,
}
COGVIDEOX_2B = {"num_attention_heads": 30, "attention_head_dim": 64, "num_layers": 30}
COGVIDEOX_5B = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
"""Arguments of diffusers' transformer classes, from the models' published config.json; the rest is the
default."""
HUNYUAN15 = {"num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 54, "task_type": "t2v"}
LTX23 = {
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 48,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "rope_type": "split",
}
TOY = {
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "ffn_dim": 512,
    "num_layers": 6,
    "text_dim": 64,
    "freq_dim": 256,
}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": WAN_1_3B,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": WAN_14B,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": WAN_14B,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": WAN22_5B,
    "THUDM/CogVideoX-2b": COGVIDEOX_2B,
    "THUDM/CogVideoX-5b": COGVIDEOX_5B,
    "diffusers/LTX-2.3-Distilled-Diffusers": LTX23,
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": HUNYUAN15,
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": HUNYUAN15,
}
