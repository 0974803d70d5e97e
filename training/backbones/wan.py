"""Wan 2.1 (and every model of its architecture, the toy one included): flow matching, sigma in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .base import Backbone, Noised
from .keys import WAN_DIT, WAN_VAE, strip_prefix

# The statistics of the Wan 2.1 VAE's latents, which ComfyUI applies to every VAE of this architecture.
LATENTS_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
-0.3632, -0.1922,
                -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENTS_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
1.6382, 1.1253,
               2.8251, 1.9160)  # fmt: skip
TIMESTEPS = 1000
"""The transformer is told sigma * TIMESTEPS."""


class WanBackbone(Backbone):
    """Wan text-to-video. `tokens` shorter than `text_length` are filled up with zeros, as ComfyUI and
    diffusers do."""

    family = "wan"
    dit_class = "WanTransformer3DModel"
    prediction = "flow"
    dit_keys = WAN_DIT
    vae_keys = WAN_VAE
    lora_targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k",
    "attn2.to_v",
                    "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")  # fmt: skip
    block_list = "blocks"
    text_length = 512

    def __init__(self, *, shift: float = 3.0, **parts: Any) -> None:
        """`shift` moves the training times towards noise: sigma = s u / (1 + (s - 1) u)."""
        super().__init__(**parts)
        self.shift = shift
        if self.dit is not None and self.dit.config.in_channels != self.latent_channels:
            raise TrainingError(
                f"this Wan model takes {self.dit.config.in_channels} channels (image-to-video); "
                "fine-tuning needs the text-to-video model, which takes 16."
            )

    @property
    def cond_dim(self) -> int:
        if self.dit is not None:
            return self.dit.config.text_dim
        return self.text.width if self.text is not None else 4096

    def normalise(self, latent: Tensor) -> Tensor:
        return (latent - _column(LATENTS_MEAN, latent)) / _column(LATENTS_STD, latent)

    def denormalise(self, latent: Tensor) -> Tensor:
        return latent * _column(LATENTS_STD, latent) + _column(LATENTS_MEAN, latent)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = self._part("text")(list(prompts), self.text_length)
        return (tokens * mask.unsqueeze(-1)).to(self.dtype), mask

    def sample_t(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sigma: the logistic of a standard normal, shifted."""
        device = generator.device if generator is not None else "cpu"
        u = torch.randn(count, generator=generator, device=device).sigmoid()
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _noise(self, latent: Tensor, t: Tensor, eps: Tensor) -> Noised:
        sigma = t.to(latent.dtype).view(-1, 1, 1, 1, 1)
        return Noised(
            noisy=(1 - sigma) * latent + sigma * eps,
            target=eps - latent,
            weight=torch.ones_like(t, dtype=torch.float32),
        )

    def predict(self, noisy: Tensor, t: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        dit = self._part("dit")
        tokens = tokens.to(noisy.device, self.dtype)
        if mask is not None:
            tokens = tokens * mask.to(tokens).unsqueeze(-1)
        if tokens.shape[1] < self.text_length:
            tokens = nn.functional.pad(tokens, (0, 0, 0, self.text_length - tokens.shape[1]))
        self._grid = self.patch_grid(noisy.shape)
        time = t.to(noisy.device, torch.float32) * TIMESTEPS
        return dit(noisy.to(self.dtype), time, tokens, return_dict=False)[0].to(noisy.dtype)

    def x0(self, noisy: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return noisy - t.to(noisy).view(-1, 1, 1, 1, 1) * out

    def signal_power(self, t: Tensor) -> Tensor:
        """alpha_bar of the DDPM step with the same signal-to-noise ratio: (1 - sigma)^2 / ((1 - sigma)^2 +
        sigma^2)."""
        signal, noise = (1 - t.float()) ** 2, t.float() ** 2
        return signal / (signal + noise)

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        patch = self._part("dit").config.patch_size
        return tuple(size // p for size, p in zip(latent_shape[2:], patch))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)


def dit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' WanTransformer3DModel arguments read off the shapes of a native state dict."""
    state = {strip_prefix(key): value for key, value in state.items()}
    dim, channels, *patch = state["patch_embedding.weight"].shape
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    config = {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // 128,
        "attention_head_dim": 128,
        "in_channels": channels,
        "out_channels": state["head.head.weight"].shape[0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": state["text_embedding.0.weight"].shape[1],
        "freq_dim": state["time_embedding.0.weight"].shape[1],
        "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": layers,
    }
    if "img_emb.proj.1.weight" in state:
        config |= {"image_dim": state["img_emb.proj.1.weight"].shape[1], "added_kv_proj_dim": dim}
    return config


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' AutoencoderKLWan arguments read off the shapes of a native state dict."""
    return {"base_dim": state["decoder.head.0.gamma"].shape[0], "z_dim": state["conv2.weight"].shape[0]}
