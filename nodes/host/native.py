"""A MODEL of ComfyUI's that is trained: a copy of its own, behind the interface of a backbone, with a LoRA
beside every linear layer of its blocks.

Sampling runs in inference mode, with weights that may be streamed or shared; neither can be differentiated
through. So the MODEL's file is loaded a second time, outside of inference mode and whole, as ComfyUI's own
Train LoRA does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...methods.video_models import TOY
from . import spaces

if TYPE_CHECKING:
    from ...training.backbones import Backbone

TRAINED = ("WAN21_T2V", "WAN22_T2V")
"""ComfyUI's classes that are trained through."""
PREFIX, LORA = "diffusion_model.", "latent_physics_lora"
"""Prefix of the names in a LoRA file, and the attribute of a layer that holds its adapter."""


def check_trained(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raises ValueError, in one sentence, for a MODEL that is not trained through, before anything is
    loaded."""
    name = type(getattr(model.model, "model_config", None)).__name__
    if name not in TRAINED:
        raise ValueError(
            f"Train Physics LoRA trains Wan's text-to-video models (2.1, 2.2 and the toy world's), and this "
            f"MODEL is {name}: latent-physics finetune trains Wan image-to-video, CogVideoX, HunyuanVideo 1.5 "
            f"and LTX-2.3."
        )
    if model.cached_patcher_init is None:
        raise ValueError(
            "this MODEL's loader cannot load it a second time, which training needs: use Load Diffusion Model "
            "or Load Checkpoint."
        )


@contextmanager
def trained_copy(model: comfy.model_patcher.ModelPatcher) -> Iterator[comfy.model_patcher.ModelPatcher]:
    """The MODEL loaded anew and whole, with the LoRAs and the shift on its wire, on ComfyUI's device; freed
    at the end. Other models make room."""
    load, arguments, *place = model.cached_patcher_init
    with torch.inference_mode(False):
        loaded = load(*arguments, disable_dynamic=True)
        loaded = loaded[place[0]] if place else loaded
        copy = model.clone(disable_dynamic=True, model_override=loaded.get_clone_model_override())
        if copy.model.get_dtype_inference() == torch.float16:  # its gradients would need a scaler
            bf16 = comfy.model_management.should_use_bf16(copy.load_device)
            copy.set_model_compute_dtype(torch.bfloat16 if bf16 else torch.float32)
        try:
            comfy.model_management.load_models_gpu([copy], memory_required=1e20, force_full_load=True)
            copy.model.requires_grad_(False)
            comfy.model_management.in_training = True
            yield copy
        finally:
            comfy.model_management.in_training = False
            comfy.model_management.unload_model_and_clones(copy)


class NativeWan(nn.Module):
    """ComfyUI's Wan network, called as diffusers' is."""

    _no_split_modules: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.config = SimpleNamespace(
            num_attention_heads=network.num_heads,
            attention_head_dim=network.dim // network.num_heads,
            in_channels=network.in_dim,
            out_channels=network.out_dim,
            text_dim=network.text_dim,
            image_dim=None,
            patch_size=network.patch_size,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The network's own."""
        return self.network.blocks

    def forward(
        self, latent: Tensor, time: Tensor, tokens: Tensor, vision: None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Velocity `B C T H W` of a noisy latent, at `time` = 1000 sigma, `B`, for tokens `B L D`."""
        return (self.network(latent, time, context=tokens, transformer_options={}),)


class Lora(nn.Module):
    """Low-rank change of a linear layer's answer: float32 weights, computed in the layer's own number format,
    so that the network computes as it samples. Begins as peft's, at no change."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float, device: torch.device) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        """A forward hook of the layer: its answer with the change."""
        (x,) = inputs
        linear = nn.functional.linear
        return out + self.scale * linear(linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))


def backbone_of(copy: comfy.model_patcher.ModelPatcher, checkpointing: bool) -> Backbone:
    """The backbone of a MODEL from `trained_copy`, with the shift on its wire. checkpointing: keep each
    block's input alone, and compute the block again on the way back."""
    from ...training.backbones.load import TOY_TEXT_LENGTH
    from ...training.backbones.wan import WanBackbone

    space = spaces.latent_space(copy)
    dit = NativeWan(copy.model.diffusion_model, copy.model.get_dtype_inference())
    if checkpointing:
        for block in dit.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    backbone = WanBackbone(
        latent_space=space,
        dit=dit,
        device=copy.load_device,
        dtype=dit.dtype,
        shift=getattr(copy.get_model_object("model_sampling"), "shift", None),
    )
    if space == TOY.name:  # prompts are filled up to what the text encoder puts on the wire
        backbone.text_length = TOY_TEXT_LENGTH
    return backbone


def add_lora(dit: NativeWan, rank: int, alpha: float, seed: int, device: torch.device) -> None:
    """Puts a LoRA beside every linear layer of the blocks, drawn from the seed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for layer in linear_layers(dit.network).values():
            lora = Lora(layer, rank, alpha, device)
            layer.register_forward_hook(lora)
            layer.add_module(LORA, lora)


def linear_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the blocks by name, quantised ones too."""
    return {
        name: module
        for name, module in network.named_modules()
        if name.startswith("blocks.")
        and hasattr(module, "in_features")
        and hasattr(module, "weight_function")
    }


def lora_weights(trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """What Load LoRA reads, on the CPU, of a run's trained parameters by name: the names are those that
    `latent-physics finetune` writes."""
    found: dict[str, Tensor] = {}
    for name, value in trained.items():
        layer, _, part = name.removeprefix("dit.network.").partition(f".{LORA}.")
        found[f"{PREFIX}{layer}.{part}.weight"] = value.detach().float().cpu().contiguous().clone()
        found[f"{PREFIX}{layer}.alpha"] = torch.tensor(float(alpha))
    return dict(sorted(found.items()))
