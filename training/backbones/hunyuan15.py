"""HunyuanVideo 1.5, text- and image-to-video: flow matching, sigma in [0, 1]; video and words attend to one
another in blocks of two streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .first_frame import FirstFrame
from .flow import TIMESTEPS, FlowBackbone
from .keys import HUNYUAN15_DIT, HUNYUAN15_VAE, count_modules
from .two_streams import KeyMaskedAttention, nothing_masked

SCALE = 1.03682
"""Scale of the latents: ComfyUI's HunyuanVideo15 format, and the VAE's own scaling_factor."""
GLYPH_WIDTH = 1472
"""Channels of a byT5 token. Words that stand in quotes are read by byT5 too; its tokens are kept among
Qwen's, filled up with zeros, by which they are told apart."""
SIGLIP_TOKENS = 729
"""Number of tokens of a picture, as SigLIP sees it."""
RENAMED = (
    ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
    ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
    ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
    ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
    ("time_in.mlp.0.", "time_in.in_layer."),
    ("time_in.mlp.2.", "time_in.out_layer."),
    ("_mod.linear.", "_mod.lin."),
    ("_attn_qkv.", "_attn.qkv."),
    ("_attn_proj.", "_attn.proj."),
    ("_attn_q_norm.", "_attn.norm.query_norm."),
    ("_attn_k_norm.", "_attn.norm.key_norm."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_norm.scale", "_norm.weight"),
)
"""Names in files of the original release, and those that ComfyUI gives them on loading."""


class HunyuanVideo15Backbone(FlowBackbone):
    """HunyuanVideo 1.5. Clips that keep their first frame train image-to-video, all others text-to-video: the
    transformer is the same, and a file does not say which of the two it was made for."""

    family = "hunyuan15"
    dit_class = "HunyuanVideo15Transformer3DModel"
    vae_class = "AutoencoderKLHunyuanVideo15"
    dit_keys = HUNYUAN15_DIT
    vae_keys = HUNYUAN15_VAE
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj",
        "ff_context.net.2",
    )  # fmt: skip
    block_list = "transformer_blocks"
    leaves_unused = True  # words after the last block; the image's embedder without a first frame
    text_length = 1000
    usual_shift = 7.0
    latent_channels = 32
    spatial_stride = 16
    patch = 1

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        if self.dit is not None:
            check_config(self.dit.config)
            for block in self.blocks:
                block.attn.set_processor(KeyMaskedAttention())

    @property
    def cond_dim(self) -> int:
        if self.dit is not None:
            return self.dit.config.text_embed_dim
        return self.text.width if self.text is not None else 3584

    def first_shapes(self, latent_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        if self.dit.config.task_type != "i2v":
            return {}
        channels, _, height, width = latent_shape
        vision = (SIGLIP_TOKENS, self.dit.config.image_embed_dim)
        return {"latent": (channels, 1, height, width), "vision": vision}

    def normalise(self, latent: Tensor) -> Tensor:
        return latent * SCALE

    def denormalise(self, latent: Tensor) -> Tensor:
        return latent / SCALE

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = self._part("text")(list(prompts), self.text_length)
        return (tokens * mask.unsqueeze(-1)).to(self.dtype), mask

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return super().pool(tokens, mask & ~is_glyph(tokens))

    def encode_first_frame(self, video: Tensor) -> FirstFrame:
        """The first frame alone, encoded (HunyuanVideo15ImageToVideo), and what SigLIP saw in it."""
        vision = self.vision(video[:, :, 0]).float() if self.vision is not None else None
        return FirstFrame(latent=self.encode_video(video[:, :, :1]), vision=vision)

    def predict(
        self,
        noisy: Tensor,
        t: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        first: FirstFrame | None = None,
        rates: Tensor | None = None,
    ) -> Tensor:
        dit = self._part("dit")
        self._grid = self.patch_grid(noisy.shape)
        tokens = tokens.to(noisy.device, self.dtype)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        time = t.to(noisy.device, torch.float32) * TIMESTEPS
        if dit.config.task_type == "i2v" and (first is None or first.latent is None):
            raise TrainingError(
                "this HunyuanVideo 1.5 makes videos of a first frame, which these clips lack; cache them "
                "again with --first-frame."
            )
        vision = first.vision.to(tokens) if first is not None and first.vision is not None else None
        seen = beside_first(noisy, first).to(self.dtype)
        return run(dit, seen, time, tokens, mask.to(tokens.device), vision).to(noisy.dtype)

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        return tuple(latent_shape[2:])


def beside_first(noisy: Tensor, first: FirstFrame | None) -> Tensor:
    """Input of the transformer, `B 65 T H W`: noise, the first frame's latent and zeros after it, and a mask
    that is 1 there; all zeros in text-to-video (ComfyUI's `HunyuanVideo15.concat_cond`)."""
    given, mask = torch.zeros_like(noisy), torch.zeros_like(noisy[:, :1])
    if first is not None and first.latent is not None:
        given[:, :, :1] = first.latent[:, :, :1].to(noisy)
        mask[:, :, 0] = 1
    return torch.cat([noisy, given, mask], dim=1)


def is_glyph(tokens: Tensor) -> Tensor:
    """Mask of the rows of `B L D` that are byT5's, or padding: `B L`."""
    return (tokens[..., GLYPH_WIDTH:] == 0).all(dim=-1)


def run(
    dit: nn.Module, seen: Tensor, time: Tensor, tokens: Tensor, mask: Tensor, vision: Tensor | None = None
) -> Tensor:
    """diffusers' `HunyuanVideo15Transformer3DModel.forward`, for words that are not padded to one length and
    blocks with `KeyMaskedAttention`.

    seen `B 65 T H W`, time `B` (0 to 1000), tokens `B L D` of Qwen and byT5, mask `B L`, vision `B N 1152`.
    diffusers' own sorts words by boolean masks, whose results have sizes that only values tell, adds 729
    masked tokens where there is no image, and masks all pairs of tokens: 2.3 GiB at 848x480 and 121 frames,
    which no fast attention takes.
    """
    positions = dit.rope(seen)
    hidden = dit.x_embedder(seen)
    temb = dit.time_embed.timestep_embedder(dit.time_embed.time_proj(time).to(hidden.dtype))
    words, mask = words_of(dit, tokens, mask, time, vision)
    mask = None if nothing_masked(mask) else mask
    for block in dit.transformer_blocks:
        if torch.is_grad_enabled() and dit.gradient_checkpointing:
            hidden, words = dit._gradient_checkpointing_func(block, hidden, words, temb, mask, positions)
        else:
            hidden, words = block(hidden, words, temb, mask, positions)
    out = dit.proj_out(dit.norm_out(hidden, temb))
    return out.transpose(1, 2).unflatten(2, seen.shape[2:])


def words_of(
    dit: nn.Module, tokens: Tensor, mask: Tensor, time: Tensor, vision: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All that the video attends to beside itself, `B N C`, and which of it counts, `B N`."""
    glyph = is_glyph(tokens)
    kinds = dit.cond_type_embed.weight.to(tokens.dtype)
    prompt = refined(dit.context_embedder, tokens, mask & ~glyph, time) + kinds[0]
    quoted = dit.context_embedder_2(tokens[..., :GLYPH_WIDTH]) + kinds[1]
    words = torch.where(glyph.unsqueeze(-1), quoted, prompt)
    if vision is None:
        return words, mask
    image = dit.image_embedder(vision) + kinds[2]
    seen = torch.ones(image.shape[:2], dtype=torch.bool, device=mask.device)
    return torch.cat([image, words], dim=1), torch.cat([seen, mask], dim=1)


def refined(refiner: nn.Module, tokens: Tensor, mask: Tensor, time: Tensor) -> Tensor:
    """diffusers' token refiner, with a mask of keys alone: a row without any key has no gradient."""
    share = mask.unsqueeze(-1).to(tokens.dtype)
    pooled = (tokens * share).sum(dim=1) / share.sum(dim=1).clamp(min=1)
    temb = refiner.time_text_embed(time, pooled)
    hidden = refiner.proj_in(tokens)
    keys = None if nothing_masked(mask) else mask[:, None, None, :]
    for block in refiner.token_refiner.refiner_blocks:
        hidden = block(hidden, temb, keys)
    return hidden


def check_config(config: Any) -> None:
    """Raises TrainingError for the models of the family that this trainer cannot train."""
    if config.use_meanflow:
        raise TrainingError(
            "this HunyuanVideo 1.5 model is told a second time, that of the next step (it was distilled to "
            "few steps, or enlarges videos), which training draws none of; use the plain 480p or 720p model."
        )
    if config.in_channels != 2 * config.out_channels + 1:
        raise TrainingError(
            f"this HunyuanVideo 1.5 model takes {config.in_channels} channels for {config.out_channels} of "
            f"latents: it enlarges a video that cached clips do not hold; use the plain 480p or 720p model."
        )


def dit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' HunyuanVideo15Transformer3DModel arguments read off the shapes of a native state dict."""
    width, channels, patch_t, patch, _ = state["img_in.proj.weight"].shape
    return {
        "in_channels": channels,
        "out_channels": state["final_layer.linear.weight"].shape[0] // (patch_t * patch * patch),
        "num_attention_heads": width // 128,
        "attention_head_dim": 128,
        "num_layers": count_modules(state, "double_blocks"),
        "num_refiner_layers": count_modules(state, "txt_in.individual_token_refiner.blocks"),
        "mlp_ratio": state["double_blocks.0.img_mlp.0.weight"].shape[0] / width,
        "patch_size": patch,
        "patch_size_t": patch_t,
        "text_embed_dim": state["txt_in.input_embedder.weight"].shape[1],
        "text_embed_2_dim": state["byt5_in.fc1.weight"].shape[1],
        "image_embed_dim": state["vision_in.proj.0.weight"].shape[0],
        "use_meanflow": "time_r_in.in_layer.weight" in state,
        "task_type": "t2v",
    }


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' AutoencoderKLHunyuanVideo15 arguments read off the shapes of a native state dict."""
    levels = range(count_modules(state, "encoder.down"))
    return {
        "latent_channels": state["decoder.conv_in.conv.weight"].shape[1],
        "block_out_channels": [state[f"encoder.down.{n}.block.0.conv2.conv.weight"].shape[0] for n in levels],
        "layers_per_block": count_modules(state, "encoder.down.0.block"),
        "scaling_factor": SCALE,
    }
