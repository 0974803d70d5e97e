"""Listening to one block of a model while ComfyUI samples: what Tap Block adds to a MODEL, and what it
heard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import patching

KEY = "latent_physics.tap"
BLOCKS = ("blocks", "transformer_blocks", "double_blocks")
"""Names under which ComfyUI's video models hold their blocks."""


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """Output of a block for the first clip of a batch, under the positive prompt."""

    tokens: Tensor
    """`N C` on the CPU, of unit length: only directions are compared."""
    grid: tuple[int, int, int]
    """(F, H, W) in tokens."""
    frames: int
    """Latent frames that the model saw."""


def add_tap(
    model: comfy.model_patcher.ModelPatcher, block: int, step: int
) -> comfy.model_patcher.ModelPatcher:
    """A clone of MODEL that remembers the output of `block` at `step`, both counted from 1. A second tap
    replaces the first.

    Raises ValueError where the model has no such block.
    """
    blocks = blocks_of(model.model.diffusion_model)
    if not 1 <= block <= len(blocks):
        raise ValueError(f"there is no block {block}: this model's blocks are 1 to {len(blocks)}.")
    patched = model.clone()
    listener = Listener(block, step)
    patched.set_attachments(KEY, listener)
    for kind, wrapper in (
        (comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, listener.start),
        (comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, listener.listen),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def tapped(model: comfy.model_patcher.ModelPatcher) -> Tapped:
    """Tokens that the MODEL's tap heard in the last run. Raises ValueError, in one sentence, where it heard
    nothing."""
    listener = model.attachments.get(KEY)
    if listener is None:
        raise ValueError(
            "Correspondence Map was given a MODEL without Tap Block: wire the MODEL that Tap Block puts out."
        )
    if listener.heard is None:
        reason = listener.problem or "no sampler ran with this MODEL, or it ended before that step"
        raise ValueError(f"Tap Block heard nothing at step {listener.step}: {reason}.")
    return listener.heard


def blocks_of(network: nn.Module) -> nn.ModuleList:
    """The model's blocks. Raises ValueError where they are not found."""
    for name in BLOCKS:
        found = getattr(network, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ValueError(f"Tap Block does not know where {type(network).__name__} keeps its blocks.")


class Listener:
    """One tap in one MODEL: what ComfyUI calls while it samples."""

    def __init__(self, block: int, step: int) -> None:
        self.block, self.step = block, step
        self.heard: Tapped | None = None
        self.problem = ""

    def start(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around a whole sampler run: forget the last one."""
        self.heard, self.problem = None, ""
        return executor(*args, **kwargs)

    def listen(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around one forward pass of the network. A hook is on the block only while it is the pass asked
        for."""
        options = next(
            (value for value in (*args, *kwargs.values()) if isinstance(value, dict) and "sigmas" in value),
            {},
        )
        row = positive_row(args[0], options)
        if self.heard is not None or row is None or not self._is_step(options):
            return executor(*args, **kwargs)
        network = executor.class_obj
        hook = blocks_of(network)[self.block - 1].register_forward_hook(
            lambda _module, _inputs, output: self._hear(network, args[0], output, row)
        )
        try:
            return executor(*args, **kwargs)
        finally:
            hook.remove()

    def _is_step(self, options: dict[str, Any]) -> bool:
        index, count = patching.step_index(float(options["sigmas"].max()), options.get("sample_sigmas"))
        return index == min(self.step, count) - 1

    def _hear(self, network: nn.Module, latent: Tensor, output: Any, row: int) -> None:
        grid = token_grid(network, latent)
        count = math.prod(grid)
        found = next((part for part in tensors_of(output) if part.ndim == 3 and part.shape[1] == count), None)
        if found is None:
            size = "x".join(map(str, latent.shape[2:]))
            self.problem = f"the block does not put out {count} tokens, as a latent of {size} should have"
            return
        tokens = F.normalize(found[row].detach().float(), dim=-1).half().cpu()
        self.heard = Tapped(tokens=tokens, grid=grid, frames=latent.shape[2])


def positive_row(latent: Any, options: dict[str, Any]) -> int | None:
    """The row of a network's batch that holds the first clip under the positive prompt; None where it is not
    in it."""
    parts = options.get("cond_or_uncond", [])
    if not isinstance(latent, Tensor) or latent.ndim != 5 or 0 not in parts:
        return None
    return parts.index(0) * (latent.shape[0] // len(parts))


def token_grid(network: nn.Module, latent: Tensor) -> tuple[int, int, int]:
    """(F, H, W) in tokens of a latent `B C T H W`; sizes that are no multiple of the patch are filled up, as
    the models do."""
    patch = getattr(network, "patch_size", 1)
    if isinstance(patch, int):
        patch = (getattr(network, "patch_size_t", None) or 1, patch, patch)
    return tuple(-(-size // side) for size, side in zip(latent.shape[2:], patch))


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors in what a block returns."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors_of(part)
