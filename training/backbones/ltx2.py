"""LTX-2.3, text-to-video without sound: flow matching, sigma in [0, 1]. The model makes video and sound in
two streams; here the video's is trained by itself, as ComfyUI runs it for a latent without sound."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .first_frame import FirstFrame
from .flow import TIMESTEPS, FlowBackbone
from .keys import LTX23_CONNECTOR, LTX23_DIT, count_modules, to_diffusers

CONNECTOR = "video_embeddings_connector."
NOT_VIDEO = (
    "audio_embeddings_connector.", "caption_projection.", "audio_caption_projection.", "vae.", "audio_vae.",
    "vocoder.", "text_embedding_projection.",
)  # fmt: skip
"""Starts of names in ComfyUI's files that belong to words, sound and VAEs."""
WORDS = 1024
"""Places that the connector fills up with its registers, at least."""
CONNECTOR_LAYERS, REGISTERS = 8, 128
"""Depth and registers of the published connector."""
PADDED = -10000.0
"""Bias that diffusers' connector takes for a place without a word."""


class LTX23Backbone(FlowBackbone):
    """LTX-2.3's video stream. Clips come from `cache --model ltx2.3 --tokens`: ComfyUI's CONDITIONING, `L
    6144`, of which the video reads the first 4096 channels through the connector in the model's file."""

    family = "ltx23"
    dit_class = "LTX2VideoTransformer3DModel"
    vae_class = "AutoencoderKLLTX2Video"
    dit_keys = LTX23_DIT
    vae_keys = ()
    lora_targets = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
        "attn2.to_out.0", "ff.net.0.proj", "ff.net.2",
    )  # fmt: skip
    block_list = "transformer_blocks"
    text_length = 1024
    usual_shift = math.exp(2.05)
    """LTXVScheduler's for 4096 tokens."""
    latent_channels = 128
    temporal_stride = 8
    spatial_stride = 32
    patch = 1
    frame_rate = 25.0
    """Frames per second of clips that do not say theirs: what ComfyUI tells the model unless its
    conditioning's frame_rate (node LTXVConditioning) says otherwise."""

    @property
    def cond_dim(self) -> int:
        if self.dit is None:
            return 6144
        return self.dit.config.cross_attention_dim + self.dit.config.audio_cross_attention_dim

    def normalise(self, latent: Tensor) -> Tensor:
        return latent

    def denormalise(self, latent: Tensor) -> Tensor:
        return latent

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
        config, count = dit.config, len(noisy)
        self._grid = frames, height, width = self.patch_grid(noisy.shape)
        time = t.to(noisy.device, torch.float32) * TIMESTEPS
        silence = noisy.new_zeros(count, 1, config.audio_in_channels, dtype=self.dtype)
        out = dit(
            hidden_states=noisy.to(self.dtype).flatten(2).transpose(1, 2),
            audio_hidden_states=silence,
            encoder_hidden_states=self.words(tokens.to(noisy.device, self.dtype), mask),
            audio_encoder_hidden_states=silence.new_zeros(count, 1, config.audio_cross_attention_dim),
            timestep=time,
            sigma=time,
            num_frames=frames,
            height=height,
            width=width,
            fps=self.frame_rates(rates, noisy.device),
            audio_num_frames=1,
            isolate_modalities=True,
            return_dict=False,
        )[0]
        return out.transpose(1, 2).unflatten(2, noisy.shape[2:]).to(noisy.dtype)

    def frame_rates(self, rates: Tensor | None, device: torch.device) -> Tensor | float:
        """What diffusers divides the frames' numbers `B N 2` by: its positions in time are seconds. Every
        clip of the batch has its own rate."""
        if rates is None:
            return self.frame_rate
        rates = rates.to(device, torch.float32)
        return torch.where(rates > 0, rates, self.frame_rate)[:, None, None]

    @torch.no_grad()
    def words(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Words that the video attends to, `B N C`: the prompt's tokens, then the connector's registers."""
        connector = self._part("connector")
        weight = connector.learnable_registers
        if (weight.device, weight.dtype) != (tokens.device, tokens.dtype):
            connector.to(tokens.device, tokens.dtype)
        tokens = tokens[..., : self.dit.config.cross_attention_dim]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        step = connector.num_learnable_registers
        longer = -(-max(WORDS, tokens.shape[1]) // step) * step - tokens.shape[1]
        tokens = nn.functional.pad(tokens, (0, 0, 0, longer))
        mask = nn.functional.pad(mask.to(tokens.device), (0, longer))
        bias = torch.where(mask, 0.0, PADDED).to(tokens)[:, None, None, :]
        return connector(tokens, bias)[0]

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        return tuple(latent_shape[2:])


def video_part(state: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's tensors of a file that holds more."""
    return {key: value for key, value in state.items() if not key.startswith((CONNECTOR, *NOT_VIDEO))}


def connector_like(config: Mapping[str, Any]) -> nn.Module:
    """The video's connector of a transformer of these arguments, with its published depth."""
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d

    return LTX2ConnectorTransformer1d(
        num_attention_heads=config.get("num_attention_heads", 32),
        attention_head_dim=config.get("attention_head_dim", 128),
        num_layers=CONNECTOR_LAYERS,
        num_learnable_registers=REGISTERS,
        rope_type="split",
        gated_attention=True,
    ).requires_grad_(False)


def connector_from(state: Mapping[str, Any], name: str, dtype: torch.dtype) -> nn.Module:
    """The video's connector of a native file. Raises TrainingError where the file has none."""
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d

    native = {key.removeprefix(CONNECTOR): value for key, value in state.items() if key.startswith(CONNECTOR)}
    try:
        registers, width = native["learnable_registers"].shape
        heads = native["transformer_1d_blocks.0.attn1.to_gate_logits.weight"].shape[0]
        connector = LTX2ConnectorTransformer1d(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            num_layers=count_modules(native, "transformer_1d_blocks"),
            num_learnable_registers=registers,
            rope_type="split",
            gated_attention=True,
        )
        weights = {key: value.read(dtype) for key, value in to_diffusers(native, LTX23_CONNECTOR).items()}
        connector.load_state_dict(weights, strict=True, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(
            f"{name} has no connector of LTX-2.3, which its prompts go through ({reason}); use the whole "
            f"model's file."
        ) from error
    return connector.requires_grad_(False).eval()


def connector_from_folder(source: str | os.PathLike[str], dtype: torch.dtype) -> nn.Module:
    """The video's connector of a diffusers folder or hub id. Raises OSError."""
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    connectors = LTX2TextConnectors.from_pretrained(source, subfolder="connectors", torch_dtype=dtype)
    return connectors.video_connector.requires_grad_(False).eval()


def dit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' LTX2VideoTransformer3DModel arguments read off the shapes of a native state dict."""
    block = "transformer_blocks.0."
    heads, audio_heads = (
        state[f"{block}{name}.to_gate_logits.weight"].shape[0] for name in ("attn1", "audio_attn1")
    )
    layers = count_modules(state, "transformer_blocks")
    return {
        "in_channels": state["patchify_proj.weight"].shape[1],
        "out_channels": state["proj_out.weight"].shape[0],
        "num_attention_heads": heads,
        "attention_head_dim": state["patchify_proj.weight"].shape[0] // heads,
        "cross_attention_dim": state[f"{block}attn2.to_k.weight"].shape[1],
        "audio_in_channels": state["audio_patchify_proj.weight"].shape[1],
        "audio_out_channels": state["audio_proj_out.weight"].shape[0],
        "audio_num_attention_heads": audio_heads,
        "audio_attention_head_dim": state["audio_patchify_proj.weight"].shape[0] // audio_heads,
        "audio_cross_attention_dim": state[f"{block}audio_attn2.to_k.weight"].shape[1],
        "num_layers": layers,
        **OF_2_3,
    }


OF_2_3 = {
    "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False, "rope_type": "split",
}  # fmt: skip
"""Arguments of diffusers' class that LTX-2.3 has and LTX-2 has not."""


def no_encoders(*_: Any) -> Any:
    """Raises TrainingError: the encoders are ComfyUI's."""
    raise TrainingError(
        "LTX-2.3's videos and prompts are encoded by ComfyUI's own loaders: cache the clips with "
        "latent-physics cache --model ltx2.3 --tokens, and give them as data."
    )
