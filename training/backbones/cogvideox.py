"""CogVideoX 1.0 (2B, 5B) and 1.5: DDPM with v-prediction and a zero terminal signal-to-noise ratio, integer
timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...methods.cogvideox import TIMESTEPS, alphas_cumprod
from ..console import TrainingError
from .base import Backbone, Noised
from .first_frame import FirstFrame
from .keys import COGVIDEOX_DIT, count_modules, strip_prefix

SCALE = {"cogvideox": 1.15258426, "cogvideox1.5": 0.7}
"""Latent scale by latent space: the 2B model's, and that of every 5B model (ComfyUI's CogVideoX and
CogVideoX1_5 formats)."""


class CogVideoXBackbone(Backbone):
    """CogVideoX text-to-video. All 226 tokens are attended to, padding included, so the prompt mask is all
    True."""

    family = "cogvideox"
    dit_class = "CogVideoXTransformer3DModel"
    vae_class = "AutoencoderKLCogVideoX"
    prediction = "v"
    dit_keys = COGVIDEOX_DIT
    vae_keys = ()  # ComfyUI's CogVideoX VAE carries diffusers' names.
    lora_targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    block_list = "transformer_blocks"
    text_length = 226

    def __init__(self, *, snr_shift: float = 3.0, **parts: Any) -> None:
        """`snr_shift` as in the model's own scheduler: 3 for 2B, 1 for 5B (see `alphas_cumprod`)."""
        super().__init__(**parts)
        if self.latent_space not in SCALE:
            raise TrainingError(
                f"latent space {self.latent_space!r} is not CogVideoX's; it must be one of "
                f"{', '.join(SCALE)}."
            )
        if self.dit is not None and self.dit.config.in_channels != self.latent_channels:
            raise TrainingError(
                f"this CogVideoX model takes {self.dit.config.in_channels} channels (image-to-video or "
                f"inpainting); "
                "fine-tuning needs the text-to-video model, which takes 16."
            )
        self.alpha_bar = alphas_cumprod(snr_shift)

    @property
    def cond_dim(self) -> int:
        if self.dit is not None:
            return self.dit.config.text_embed_dim
        return self.text.width if self.text is not None else 4096

    def normalise(self, latent: Tensor) -> Tensor:
        return latent * SCALE[self.latent_space]

    def denormalise(self, latent: Tensor) -> Tensor:
        return latent / SCALE[self.latent_space]

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = self._part("text")(list(prompts), self.text_length, attend_padding=True)
        return tokens.to(self.dtype), torch.ones_like(mask)

    def sample_t(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Timesteps 0 .. 999, uniform."""
        device = generator.device if generator is not None else "cpu"
        return torch.randint(0, TIMESTEPS, (count,), generator=generator, device=device)

    def _noise(self, latent: Tensor, t: Tensor, eps: Tensor) -> Noised:
        alpha_bar = self._alpha_bar(t)
        a, s = (x.to(latent.dtype).view(-1, 1, 1, 1, 1) for x in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        # The models' own training weighs the error of x0 by 1 / (1 - alpha_bar); x0 moves by -s for every
        # unit of v, so that is the plain error of v.
        return Noised(
            noisy=a * latent + s * eps, target=a * eps - s * latent, weight=torch.ones_like(alpha_bar).float()
        )

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
        frames = noisy.shape[2]
        patch_t = dit.config.patch_size_t or 1
        if frames % patch_t:
            raise TrainingError(
                f"CogVideoX 1.5 needs an even number of latent frames, not {frames}: use clips of 5, 13, "
                f"21, ... frames (8k - 3)."
            )
        if tokens.shape[1] != self.text_length:
            raise TrainingError(
                f"CogVideoX needs {self.text_length} text tokens, not {tokens.shape[1]}; cache the prompts "
                f"again."
            )
        self._grid = self.patch_grid(noisy.shape)
        out = dit(
            hidden_states=noisy.to(self.dtype).transpose(1, 2),
            encoder_hidden_states=tokens.to(noisy.device, self.dtype),
            timestep=t.to(noisy.device),
            image_rotary_emb=self._rotary(noisy),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).to(noisy.dtype)

    def x0(self, noisy: Tensor, out: Tensor, t: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar(t.to(noisy.device))
        a, s = (x.to(noisy.dtype).view(-1, 1, 1, 1, 1) for x in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        return a * noisy - s * out

    def signal_power(self, t: Tensor) -> Tensor:
        return self._alpha_bar(t).float()

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        config = self._part("dit").config
        _, _, frames, height, width = latent_shape
        return frames // (config.patch_size_t or 1), height // config.patch_size, width // config.patch_size

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return self.alpha_bar.to(t.device)[t]

    def _rotary(self, noisy: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rotary positions as the model was trained with them (the 2B model has none)."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config = self._part("dit").config
        if not config.use_rotary_positional_embeddings:
            return None
        base_height, base_width = (
            config.sample_height // config.patch_size,
            config.sample_width // config.patch_size,
        )
        frames, height, width = self.patch_grid(noisy.shape)
        if config.patch_size_t is None:
            place = {
                "crops_coords": get_resize_crop_region_for_grid((height, width), base_width, base_height)
            }
        else:
            place = {
                "crops_coords": None,
                "grid_type": "slice",
                "max_size": (max(base_height, height), max(base_width, width)),
            }
        return get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            grid_size=(height, width),
            temporal_size=frames,
            device=noisy.device,
            **place,
        )


def dit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' CogVideoXTransformer3DModel arguments read off the shapes of a native state dict."""
    state = {strip_prefix(key): value for key, value in state.items()}
    project = state["patch_embed.proj.weight"]
    rotary = "patch_embed.pos_embedding" not in state
    newer = project.ndim == 2
    config = {
        "num_attention_heads": project.shape[0] // 64,
        "attention_head_dim": 64,
        "num_layers": count_modules(state, "blocks"),
        "time_embed_dim": state["blocks.0.norm1.linear.weight"].shape[1],
        "text_embed_dim": state["patch_embed.text_proj.weight"].shape[1],
        "use_rotary_positional_embeddings": rotary,
        "patch_bias": "patch_embed.proj.bias" in state,
        "in_channels": project.shape[1] // 8 if newer else project.shape[1],
    }
    if newer:
        config |= {"patch_size_t": 2, "sample_height": 96, "sample_width": 170, "sample_frames": 81}
    if "ofs_embedding_linear_1.weight" in state:
        config["ofs_embed_dim"] = state["ofs_embedding_linear_1.weight"].shape[1]
    return config


def is_five_billion(heads: int) -> bool:
    """ComfyUI tells the 5B models, whose latents have another scale, by their 48 heads."""
    return heads >= 48


def latent_space(heads: int) -> str:
    """The latent space that ComfyUI gives a model with that many heads."""
    return "cogvideox1.5" if is_five_billion(heads) else "cogvideox"
