"""Block swap: frozen weights that wait in the computer's memory and are on the graphics card while their
block computes, and then only.

diffusers' group offloading fetches a checkpointed block's weights for the backward pass and keeps them:
checkpointing leaves a block at its last saved tensor, before the hook that would send them back (0.42; after
a backward pass every block is on the card). Here they are fetched inside what is checkpointed, like any
other intermediate result, so autograd itself lets go of them when the block's backward pass is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class SwappedBlock:
    """A block whose frozen parameters are out of it, but while its forward pass runs."""

    def __init__(self, block: nn.Module) -> None:
        """Takes the parameters out: what then moves or counts the block's own does not see them."""
        self.places = [
            (part, name)
            for part in block.modules()
            for name, value in part._parameters.items()
            if value is not None and not value.requires_grad
        ]
        self.waiting = [in_host_memory(part._parameters[name].data) for part, name in self.places]
        self._forward = block.forward
        self._take_out()
        block.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward pass, its weights on the device of its first input."""
        inputs = (value for value in [*args, *kwargs.values()] if isinstance(value, Tensor))
        with self.fetched(next(inputs).device):
            return self._forward(*args, **kwargs)

    @contextmanager
    def fetched(self, device: torch.device) -> Iterator[None]:
        """Meanwhile the parameters are in the block, on the device."""
        for (part, name), value in zip(self.places, self.waiting):
            part._parameters[name] = nn.Parameter(on_device(value, device), requires_grad=False)
        try:
            yield
        finally:
            self._take_out()

    def _take_out(self) -> None:
        for (part, name), value in zip(self.places, self.waiting):
            nothing = torch.empty(0, dtype=value.dtype)
            part._parameters[name] = nn.Parameter(nothing, requires_grad=False)


def swap_blocks(blocks: Sequence[nn.Module], count: int) -> list[SwappedBlock]:
    """Swaps the last `count` blocks (all, where there are fewer) from now on. Their inputs must be
    checkpointed, or the backward pass keeps every block's weights."""
    return [SwappedBlock(block) for block in blocks[max(0, len(blocks) - count) :]]


def in_host_memory(value: Tensor) -> Tensor:
    """The tensor on the processor's side, where a card is there in pages that it reads by itself."""
    value = value.cpu()
    return value.pin_memory() if torch.cuda.is_available() else value


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """A copy for one forward pass; the processor does not wait for it."""
    return value.to(device, non_blocking=True)
