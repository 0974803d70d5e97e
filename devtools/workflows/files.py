"""Model files that the graphs name: what ComfyUI's own templates fetch, and where it goes."""

from __future__ import annotations

from .format import ModelFile

HUB = "https://huggingface.co"


def packed(repository: str, folder: str, name: str, inside: str = "split_files/") -> ModelFile:
    """A file of a repository whose folders are named as ComfyUI's below models."""
    return ModelFile(name, f"{HUB}/{repository}/resolve/main/{inside}{folder}/{name}", folder)


_WAN21, _WAN22 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
UMT5 = packed(_WAN21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
WAN_VAE = packed(_WAN21, "vae", "wan_2.1_vae.safetensors")
WAN_SMALL = packed(_WAN21, "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
WAN_5B = packed(_WAN22, "diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors")
WAN_5B_VAE = packed(_WAN22, "vae", "wan2.2_vae.safetensors")
EXPERTS = ("high", "low")
"""Wan 2.2's experts by the noise they take, in the order in which they sample."""
WAN_T2V, WAN_I2V = (
    tuple(
        packed(_WAN22, "diffusion_models", f"wan2.2_{kind}_{expert}_noise_14B_fp8_scaled.safetensors")
        for expert in EXPERTS
    )
    for kind in ("t2v", "i2v")
)
WAN_T2V_LORA, WAN_I2V_LORA = (
    tuple(
        packed(_WAN22, "loras", f"wan2.2_{kind}_lightx2v_4steps_lora_{version}_{expert}_noise.safetensors")
        for expert in EXPERTS
    )
    for kind, version in (("t2v", "v1.1"), ("i2v", "v1"))
)
CAUSAL = packed(
    "TalmajM/causal_forcing_framewise_ComfyUI_repackaged",
    "diffusion_models",
    "causal_forcing-framewise.safetensors",
)

T5 = ModelFile(
    "t5xxl_fp16.safetensors",
    f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors",
    "text_encoders",
)
COG_VAE = packed("Comfy-Org/void-model", "vae", "cogvideox_vae.safetensors", "")
COG = "cogvideox1.5_5b_t2v_bf16.safetensors"
"""Nobody repackages this one for ComfyUI; the workflow's note says what the file has to hold."""

_HUNYUAN = "Comfy-Org/HunyuanVideo_1.5_repackaged"
HUNYUAN_T2V = packed(_HUNYUAN, "diffusion_models", "hunyuanvideo1.5_720p_t2v_fp16.safetensors")
HUNYUAN_I2V = packed(_HUNYUAN, "diffusion_models", "hunyuanvideo1.5_720p_i2v_fp16.safetensors")
HUNYUAN_VAE = packed(_HUNYUAN, "vae", "hunyuanvideo15_vae_fp16.safetensors")
QWEN = packed(_HUNYUAN, "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
BYT5 = packed(_HUNYUAN, "text_encoders", "byt5_small_glyphxl_fp16.safetensors")
SIGCLIP = ModelFile(
    "sigclip_vision_patch14_384.safetensors",
    f"{HUB}/Comfy-Org/sigclip_vision_384/resolve/main/sigclip_vision_patch14_384.safetensors",
    "clip_vision",
)

_H3 = "Comfy-Org/MiniMax-H3"
H3 = packed(_H3, "diffusion_models", "minimax_h3_fl2va_pruned_int8_convrot.safetensors", "")
H3_TEXT = packed(_H3, "text_encoders", "qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors", "")
H3_VAE = packed(_H3, "vae", "minimax_h3_video_vae_fp16.safetensors", "")
H3_SOUND = packed(_H3, "vae", "minimax_h3_audio_vae_fp32.safetensors", "")

LTX = ModelFile(
    "ltx-2.3-22b-dev-fp8.safetensors",
    f"{HUB}/Lightricks/LTX-2.3-fp8/resolve/main/ltx-2.3-22b-dev-fp8.safetensors",
    "checkpoints",
)
LTX_LORA = packed(
    "Comfy-Org/ltx-2.3",
    "loras",
    "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors",
)
LTX_UPSCALER = ModelFile(
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    f"{HUB}/Lightricks/LTX-2.3/resolve/main/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    "latent_upscale_models",
)
GEMMA = packed("Comfy-Org/ltx-2", "text_encoders", "gemma_3_12B_it_fp4_mixed.safetensors")
