"""Storage and computation of the frozen blocks: quantised, compiled, with which attention kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from ..console import TrainingError
from . import Backbone

Attention = Literal[
    "", "native", "_native_math", "_native_flash", "_native_cudnn", "_native_efficient", "flex", "flash",
    "_flash_3", "xformers",
]  # fmt: skip
"""diffusers' names of attention kernels that compute gradients. Sage has none, and kernels of a hub are
programs of strangers."""
EVERYWHERE = ("native", "_native_math")
"""Kernels that need no CUDA GPU."""
PACKAGES: Mapping[str, tuple[str, str]] = {
    "flash": ("flash_attn", "flash-attn"),
    "_flash_3": ("flash_attn_interface", "flash-attn-3"),
    "xformers": ("xformers", "xformers"),
}
"""Kernel -> module that holds it, name to install."""
Quantize = Literal["", "float8", "int8"]
"""Formats of frozen weights, one byte each with a scale a row."""
Compile = Literal["", "inductor", "cudagraphs", "aot_eager", "eager"]
"""torch.compile's backends; the last two compile to torch's own operators, to find faults with."""


@dataclass(kw_only=True)
class ComputeConfig:
    """Storage and computation of the transformer's blocks; a resumed run may have changed it."""

    compile: Compile = ""
    """Compile each block with this backend of torch.compile, usually inductor; left out, none."""
    attention: Attention = ""
    """Attention kernel by diffusers' name; left out, torch's scaled_dot_product_attention. Not for
    CogVideoX."""
    quantize: Quantize = ""
    """Keep the blocks' frozen weights in one byte, with a scale a row (torchao); finer than
    `fp8_storage`."""


def check_compute(config: ComputeConfig, family: str) -> None:
    """Raises TrainingError for what this computer or the model's family lacks, before anything is loaded."""
    name = config.attention
    if name and family == "cogvideox":
        raise TrainingError(
            f"attention is {name!r}; diffusers' CogVideoX always uses torch's own kernel: leave it out."
        )
    if name in PACKAGES and find_spec(PACKAGES[name][0]) is None:
        package = PACKAGES[name][1]
        raise TrainingError(
            f"attention is {name!r}, and {package} is not installed: pip install {package}, or leave it out."
        )
    if name and name not in EVERYWHERE and not torch.cuda.is_available():
        raise TrainingError(f"attention is {name!r}, which needs a CUDA GPU; leave it out.")
    if config.quantize and find_spec("torchao") is None:
        raise TrainingError(
            f"quantize is {config.quantize!r}, and torchao is not installed: pip install torchao, or use "
            f"--fp8-storage."
        )


def set_up(backbone: Backbone, config: ComputeConfig) -> None:
    """Applies the settings to a transformer that already has its LoRA."""
    if config.quantize:
        quantize_blocks(backbone, config.quantize)
    if config.attention:
        choose_attention(backbone.dit, config.attention)
    if config.compile:
        for block in backbone.blocks:  # not __call__: taps and swaps stay outside of what is compiled
            block.forward = torch.compile(block.forward, backend=config.compile)


def choose_attention(dit: nn.Module, name: Attention) -> None:
    """Gives every attention of the transformer that has a choice the kernel; diffusers' way to give it to the
    whole model gives it to every other model of the process, too."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    for module in dit.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = AttentionBackendName(name)


def quantize_blocks(backbone: Backbone, kind: Quantize) -> None:
    """Quantises the frozen linear layers of the blocks, in place."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = {"float8": Float8WeightOnlyConfig, "int8": Int8WeightOnlyConfig}[kind]()

    def frozen(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and not module.weight.requires_grad

    quantize_(backbone.blocks, config, filter_fn=frozen)
