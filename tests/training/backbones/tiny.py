"""Tiny models of the real architectures with random weights, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from latent_physics.training.backbones.keys import (
    COGVIDEOX_DIT,
    HUNYUAN15_DIT,
    HUNYUAN15_VAE,
    LTX23_CONNECTOR,
    LTX23_DIT,
    WAN_DIT,
    WAN_VAE,
    to_native,
)
from safetensors.torch import save_file
from torch import nn


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn anew, so that zero- or one-initialised parts cannot hide a swapped key."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 0.1 if value.ndim < 2 or "table" in name else value[0].numel() ** -0.5
            centre = (
                1
                if name.endswith("gamma") or ("norm" in name and name.endswith("weight") and value.ndim == 1)
                else 0
            )
            value.copy_(torch.randn(value.shape, generator=generator) * spread + centre)
    return model.eval()


WAN_STYLES = {
    "t2v": {},
    "i2v": {"in_channels": 36},  # Wan 2.2 14B
    "i2v-clip": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 128},  # Wan 2.1
    "5b": {"in_channels": 48, "out_channels": 48},
}
"""What tells the Wan models apart, in diffusers' arguments."""


def wan_dit(layers: int = 2, text_dim: int = 4096, style: str = "t2v") -> nn.Module:
    """Dim 128, one head: the smallest Wan that ComfyUI recognises, in a style of WAN_STYLES."""
    from diffusers import WanTransformer3DModel

    size = {
        "num_attention_heads": 1,
        "attention_head_dim": 128,
        "num_layers": layers,
        "ffn_dim": 256,
        "text_dim": text_dim,
    }
    return randomised(WanTransformer3DModel(**size, **WAN_STYLES[style]))


def wan_vae(width: int = 12) -> nn.Module:
    from diffusers import AutoencoderKLWan

    return randomised(AutoencoderKLWan(base_dim=width, z_dim=16))


def wan22_vae(width: int = 8) -> nn.Module:
    """The VAE of Wan 2.2 5B, narrow; the decoder is wider than the encoder, as there."""
    from diffusers import AutoencoderKLWan

    return randomised(AutoencoderKLWan(base_dim=width, decoder_base_dim=12, **WAN22))


WAN22 = {
    "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
    "scale_factor_spatial": 16,
}  # fmt: skip


def clip_vision(folder: Path, width: int = 160, image_size: int = 28) -> Path:
    """A file as ComfyUI's models/clip_vision holds it: two heads of 80, three layers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=width // 80,
        image_size=image_size, patch_size=14, hidden_act="gelu", projection_dim=32,
    )  # fmt: skip
    model = randomised(CLIPVisionModel(config))
    state = {f"vision_model.{key}": value for key, value in model.state_dict().items()}
    save_file(state | {"visual_projection.weight": torch.zeros(32, width)}, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def cog_dit(style: str = "2b", text_dim: int = 4096) -> nn.Module:
    """Three heads of 64; "2b" (position table), "5b" (rotary) or "1.5" (rotary, two frames a patch)."""
    from diffusers import CogVideoXTransformer3DModel

    size = {"num_attention_heads": 3, "num_layers": 2, "text_embed_dim": text_dim}
    if style == "2b":
        size |= {"sample_height": 60, "sample_width": 90}
    if style == "5b":
        size |= {"use_rotary_positional_embeddings": True, "sample_height": 8, "sample_width": 12}
    if style == "1.5":
        size |= {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False,
        "sample_height": 96,
                 "sample_width": 170, "sample_frames": 81}  # fmt: skip
    return randomised(CogVideoXTransformer3DModel(**size))


def cog_vae() -> nn.Module:
    from diffusers import AutoencoderKLCogVideoX

    down, up = ("CogVideoXDownBlock3D",) * 4, ("CogVideoXUpBlock3D",) * 4
    return randomised(
        AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=down,
            up_block_types=up,
            layers_per_block=1,
            norm_num_groups=2,
        )
    )


def hunyuan_dit(**changes) -> nn.Module:
    """One head of 128, two blocks, two refiner blocks: the smallest that ComfyUI recognises."""
    from diffusers import HunyuanVideo15Transformer3DModel

    size = {"num_attention_heads": 1, "num_layers": 2, "task_type": "t2v"}
    return randomised(HunyuanVideo15Transformer3DModel(**(size | changes)))


def hunyuan_vae() -> nn.Module:
    from diffusers import AutoencoderKLHunyuanVideo15

    return randomised(AutoencoderKLHunyuanVideo15(block_out_channels=(32, 32, 64, 64, 64)))


WORDS = ["a", "red", "ball", "falls", "and", "bounces", "on", "the", "floor"]


def ltx_state() -> dict[str, Any]:
    """A native file's tensors: a transformer of two blocks with both streams, the connectors of both."""
    from diffusers import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d
    from latent_physics.training.backbones.ltx2 import OF_2_3

    dit = LTX2VideoTransformer3DModel(
        num_attention_heads=32, attention_head_dim=8, cross_attention_dim=256, num_layers=2,
        audio_num_attention_heads=32, audio_attention_head_dim=4, audio_cross_attention_dim=128, **OF_2_3,
    )  # fmt: skip
    state = to_native(randomised(dit).state_dict(), LTX23_DIT)
    for start, heads in (("video", 4), ("audio", 2)):
        connector = LTX2ConnectorTransformer1d(
            num_attention_heads=heads, attention_head_dim=64, rope_type="split", gated_attention=True
        )
        weights = to_native(randomised(connector).state_dict(), LTX23_CONNECTOR)
        state |= {f"{start}_embeddings_connector.{key}": value for key, value in weights.items()}
    return state


def word_tokenizer(words: list[str]) -> Any:
    """A tokenizer of whole words, which ends a text with </s>; words in <| |> are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([word for word in words if word.startswith("<|")])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def text_encoder(folder: Path, family: str) -> int:
    """Writes `text_encoder` and `tokenizer` subfolders; returns the width."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    word_tokenizer(WORDS).save_pretrained(folder / "tokenizer")
    config, model = (T5Config, T5EncoderModel) if family == "cogvideox" else (UMT5Config, UMT5EncoderModel)
    size = {
        "vocab_size": 16,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }
    randomised(model(config(**size))).save_pretrained(folder / "text_encoder")
    return 32


def diffusers_folder(folder: Path, family: str) -> Path:
    """A whole tiny pipeline as a diffusers folder."""
    width = text_encoder(folder, family)
    dit, vae = (
        (cog_dit(text_dim=width), cog_vae())
        if family == "cogvideox"
        else (wan_dit(text_dim=width), wan_vae())
    )
    dit.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    return folder


def native_files(folder: Path, family: str = "wan") -> dict[str, Path]:
    """Native transformer (and, for Wan, VAE) files."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "hunyuan15":
        save_file(to_native(hunyuan_dit().state_dict(), HUNYUAN15_DIT), folder / "dit.safetensors")
        save_file(to_native(hunyuan_vae().state_dict(), HUNYUAN15_VAE), folder / "vae.safetensors")
        return {"dit": folder / "dit.safetensors", "vae": folder / "vae.safetensors"}
    if family == "cogvideox":
        model = cog_dit()
        state = to_native(model.state_dict(), COGVIDEOX_DIT) | {
            "patch_embed.pos_embedding": model.patch_embed.pos_embedding
        }
        save_file(state, folder / "dit.safetensors")
        return {"dit": folder / "dit.safetensors"}
    save_file(to_native(wan_dit().state_dict(), WAN_DIT), folder / "dit.safetensors")
    save_file(to_native(wan_vae().state_dict(), WAN_VAE), folder / "vae.safetensors")
    return {"dit": folder / "dit.safetensors", "vae": folder / "vae.safetensors"}


def toy_weights(folder: Path) -> Path:
    """A folder as toyworld/weights, of the smallest models."""
    from latent_physics.toyworld.text import ToyTextEncoder

    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_native(wan_dit().state_dict(), WAN_DIT), folder / "toy_dit.safetensors")
    save_file(to_native(wan_vae(4).state_dict(), WAN_VAE), folder / "toy_vae.safetensors")
    torch.manual_seed(0)
    ToyTextEncoder().save(folder / "toy_text.safetensors", {})
    return folder
