"""CogVideoX as it was trained: what ComfyUI leaves out of 2B's schedule and adds to 5B's positions."""

from __future__ import annotations

import copy

import comfy.model_patcher
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.cogvideox import SNR_SHIFT_2B, alphas_cumprod, rotary_positions

CATEGORY = "latent physics/models"
LEAST_SIGNAL = 4.8973451890853435e-08
"""alpha_bar of the last timestep in ComfyUI, where it is 0: sigma stays a number."""


class CogVideoXAsTrained(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsCogVideoXAsTrained",
            display_name="CogVideoX as Trained",
            category=CATEGORY,
            description="Samples CogVideoX with the noise schedule (2B) and the positions (1.0 5B) that it was "
            "trained with. ComfyUI leaves both out, and LoRAs that were trained rightly look wrong. 1.5 needs "
            "neither and stays as it is. Only this MODEL changes.",
            search_aliases=["cogvideox", "snr shift", "rope", "rotary"],
            inputs=[io.Model.Input("model", tooltip="A CogVideoX model: 2B, 5B or 1.5.")],
            outputs=[
                io.Model.Output(tooltip="The same model, corrected, for VOIDSampler and LaMo Guidance."),
                io.String.Output(display_name="info", tooltip="The correction that was made."),
            ],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher) -> io.NodeOutput:
        network = model.get_model_object("diffusion_model")
        if type(model.model).__name__ != "CogVideoX":
            raise ValueError(
                f"CogVideoX as Trained was given a {type(model.model).__name__}: wire a CogVideoX model, or "
                "leave the node out."
            )
        patched = model.clone()
        if network.patch_size_t is not None:
            return io.NodeOutput(patched, "1.5: nothing to put right")
        if network.use_rotary_positional_embeddings:
            patched.add_object_patch(
                "diffusion_model._get_rotary_emb", _Positions(network.attention_head_dim)
            )
            return io.NodeOutput(patched, "1.0 5B: rotary positions without ComfyUI's factor of 1.875")
        patched.add_object_patch("model_sampling", shifted(model.get_model_object("model_sampling")))
        return io.NodeOutput(patched, f"2B: signal-to-noise ratio over {SNR_SHIFT_2B:g}")


class _Positions:
    """Stands for the network's own `_get_rotary_emb`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, height: int, width: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return rotary_positions(frames, height, width, self.size, device)


def shifted(sampling: torch.nn.Module) -> torch.nn.Module:
    """A copy of a discrete model sampling with the 2B model's schedule."""
    new = copy.deepcopy(sampling)
    alpha_bar = alphas_cumprod(SNR_SHIFT_2B).clamp(min=LEAST_SIGNAL)
    new.set_sigmas(((1 - alpha_bar) / alpha_bar).sqrt())
    return new


NODES = [CogVideoXAsTrained]
