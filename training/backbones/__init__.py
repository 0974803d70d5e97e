"""Backbones: what the trainer fine-tunes. One file per family; the toy backbone is the wan family at another
size.

`load_backbone` is the one way in. A source is a diffusers folder, a hub id, or native files (the ones ComfyUI
loads):

    load_backbone("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", device="cuda", dtype=torch.bfloat16)
    load_backbone("wan", {"dit": "wan2.1_t2v_1.3B_bf16.safetensors", "vae": "wan_2.1_vae.safetensors",
                          "text": "umt5_xxl_fp16.safetensors"})
    load_backbone("toy")
"""

from __future__ import annotations

from .base import Activation, Backbone, Noised
from .load import FAMILIES, load_backbone

__all__ = ["FAMILIES", "Activation", "Backbone", "Noised", "load_backbone"]
