"""Wan 2.1 and 2.2, text- and image-to-video (and every model of the architecture, the toy one included): flow
matching, sigma in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .first_frame import MASK_CHANNELS, FirstFrame, concatenated
from .flow import TIMESTEPS, FlowBackbone
from .keys import WAN22_VAE, WAN_DIT, WAN_VAE, KeyMap, count_modules, strip_prefix

# The statistics of the Wan 2.1 VAE's latents, which ComfyUI applies to every VAE of this architecture.
LATENTS_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
-0.3632, -0.1922,
                -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENTS_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
1.6382, 1.1253,
               2.8251, 1.9160)  # fmt: skip
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
STATISTICS = {16: (LATENTS_MEAN, LATENTS_STD), 48: (WAN22_MEAN, WAN22_STD)}
"""Mean and deviation of the latents, by their channels: those of Wan 2.1 (and 2.2 14B), and of Wan 2.2 5B."""
STRIDES = {16: 8, 48: 16}
"""Pixels of a latent's side, by channels."""
CLIP_TOKENS = 257
"""Number of tokens of a picture, as CLIP's ViT-H sees it."""
WAN22_CHANNELS = 48
"""Channels of the latents of Wan 2.2 5B."""


class WanBackbone(FlowBackbone):
    """Wan, text- and image-to-video. `tokens` shorter than `text_length` are filled up with zeros, as ComfyUI
    and diffusers do."""

    family = "wan"
    dit_class = "WanTransformer3DModel"
    vae_class = "AutoencoderKLWan"
    dit_keys = WAN_DIT
    vae_keys = WAN_VAE
    lora_targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k",
    "attn2.to_v",
                    "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")  # fmt: skip
    block_list = "blocks"
    text_length = 512

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        channels = {self.dit.config.out_channels} if self.dit is not None else set()
        channels |= {self.vae.config.z_dim} if self.vae is not None else set()
        if len(channels) > 1:
            raise TrainingError(
                f"this Wan transformer's latents have {self.dit.config.out_channels} channels, the VAE's "
                f"{self.vae.config.z_dim}; give the VAE that belongs to the transformer."
            )
        self.latent_channels = channels.pop() if channels else self.latent_channels
        if self.latent_channels not in STATISTICS:
            raise TrainingError(
                f"this Wan model's latents have {self.latent_channels} channels; this trainer knows those of "
                f"Wan 2.1 and 2.2 14B (16) and of Wan 2.2 5B (48)."
            )
        self.spatial_stride = STRIDES[self.latent_channels]
        if self.dit is not None:
            self.first_frame = first_frame_of(self.dit.config.in_channels, self.latent_channels)
            if self.sees_with_clip:
                self.lora_targets = (*self.lora_targets, "attn2.add_k_proj", "attn2.add_v_proj")

    @property
    def cond_dim(self) -> int:
        if self.dit is not None:
            return self.dit.config.text_dim
        return self.text.width if self.text is not None else 4096

    @property
    def sees_with_clip(self) -> bool:
        return self._part("dit").config.image_dim is not None

    def first_shapes(self, latent_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        if self.first_frame != "needed":
            return {}
        vision = {"vision": (CLIP_TOKENS, self.dit.config.image_dim)} if self.sees_with_clip else {}
        return {"latent": tuple(latent_shape)} | vision

    def normalise(self, latent: Tensor) -> Tensor:
        mean, deviation = (_column(values, latent) for values in STATISTICS[latent.shape[1]])
        return (latent - mean) / deviation

    def denormalise(self, latent: Tensor) -> Tensor:
        mean, deviation = (_column(values, latent) for values in STATISTICS[latent.shape[1]])
        return latent * deviation + mean

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = self._part("text")(list(prompts), self.text_length)
        return (tokens * mask.unsqueeze(-1)).to(self.dtype), mask

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
        tokens = tokens.to(noisy.device, self.dtype)
        if mask is not None:
            tokens = tokens * mask.to(tokens).unsqueeze(-1)
        if tokens.shape[1] < self.text_length:
            tokens = nn.functional.pad(tokens, (0, 0, 0, self.text_length - tokens.shape[1]))
        self._grid = self.patch_grid(noisy.shape)
        time = t.to(noisy.device, torch.float32) * TIMESTEPS
        if first is not None and first.given is not None:
            time = self._times_of_tokens(time, first.given.to(noisy.device))
        seen = self._seen(noisy, first).to(self.dtype)
        vision = self._vision(noisy, first)
        return dit(seen, time, tokens, vision, return_dict=False)[0].to(noisy.dtype)

    def _seen(self, noisy: Tensor, first: FirstFrame | None) -> Tensor:
        """The transformer's input: noise, and the first frame beside it where its channels ask for it."""
        if self.first_frame != "needed":
            return noisy
        if first is None or first.latent is None:
            raise TrainingError(
                "this Wan model makes videos of a first frame, which these clips lack; cache them again with "
                "--first-frame."
            )
        return concatenated(noisy, first.latent)

    def _vision(self, noisy: Tensor, first: FirstFrame | None) -> Tensor | None:
        """CLIP's view of the first frame, for models that read it (Wan 2.1 image-to-video)."""
        if not self.sees_with_clip:
            return None
        if first is None or first.vision is None:
            raise TrainingError(
                "this Wan model reads CLIP's view of the first frame, which these clips lack; cache them "
                "again with --first-frame and --clip-vision."
            )
        return first.vision.to(noisy.device, self.dtype)

    def _times_of_tokens(self, time: Tensor, given: Tensor) -> Tensor:
        """Every token's time, `B N`: 0 in a given first frame (ComfyUI's `WAN22.process_timestep`)."""
        frames, height, width = self._grid
        times = time[:, None].expand(-1, frames * height * width).clone()
        times[given, : height * width] = 0
        return times

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        patch = self._part("dit").config.patch_size
        return tuple(size // p for size, p in zip(latent_shape[2:], patch))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)


def dit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' WanTransformer3DModel arguments read off the shapes of a native state dict."""
    state = {strip_prefix(key): value for key, value in state.items()}
    dim, channels, *patch = state["patch_embedding.weight"].shape
    layers = count_modules(state, "blocks")
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


def first_frame_of(in_channels: int, latent_channels: int) -> Literal["", "needed", "possible"]:
    """Way in which a Wan of these channels is given a first frame. Raises TrainingError for one that also
    takes what no cached clip holds."""
    if in_channels == latent_channels:
        return "possible" if latent_channels == WAN22_CHANNELS else ""
    if in_channels == 2 * latent_channels + MASK_CHANNELS:
        return "needed"
    raise TrainingError(
        f"this Wan model takes {in_channels} channels for {latent_channels} of latents: it is given a "
        f"control or reference video beside noise, which cached clips do not hold; fine-tuning needs a "
        f"text-to-video or image-to-video model."
    )


def vae_keys_of(state: Mapping[str, Tensor]) -> KeyMap:
    """The key map of a VAE file, of Wan 2.1 or of Wan 2.2 5B, under native or diffusers' names."""
    for name in ("conv2.weight", "post_quant_conv.weight"):
        if name in state and state[name].shape[0] == WAN22_CHANNELS:
            return WAN22_VAE
    return WAN_VAE


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' AutoencoderKLWan arguments read off the shapes of a native state dict."""
    channels = state["conv2.weight"].shape[0]
    config = {"base_dim": state["decoder.head.0.gamma"].shape[0], "z_dim": channels}
    if channels != WAN22_CHANNELS:
        return config
    return config | {
        "base_dim": state["encoder.conv1.weight"].shape[0],
        "decoder_base_dim": state["decoder.head.0.gamma"].shape[0],
        "is_residual": True,
        "in_channels": state["encoder.conv1.weight"].shape[1],
        "out_channels": state["decoder.head.2.weight"].shape[0],
        "patch_size": 2,
        "scale_factor_spatial": STRIDES[channels],
        "latents_mean": list(WAN22_MEAN),
        "latents_std": list(WAN22_STD),
    }
