"""Building blocks: the physical encoder (PILA Eq 2), small heads, and the embeddings of sigma and of the
prompt."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = 8


class ResidualBlock(nn.Module):
    """(conv 3x3x3, group norm, SiLU) twice, plus a 1x1x1 shortcut where the widths differ, SiLU after the
    sum.

    Padding in time is symmetric: the adapter looks ahead, which suits text-to-video and not streaming.
    """

    def __init__(self, channels: int, width: int, operations: Any = nn, inner: int | None = None) -> None:
        """`inner`: channels between the two convolutions, a multiple of 8; left out, `width`."""
        super().__init__()
        inner = inner or width
        self.conv1 = operations.Conv3d(channels, inner, 3, padding=1)
        self.norm1 = operations.GroupNorm(GROUPS, inner)
        self.conv2 = operations.Conv3d(inner, width, 3, padding=1)
        self.norm2 = operations.GroupNorm(GROUPS, width)
        self.shortcut = operations.Conv3d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`B C T H W` -> `B width T H W`."""
        y = nn.functional.silu(self.norm1(self.conv1(x)))
        y = nn.functional.silu(self.norm2(self.conv2(y)))
        return nn.functional.silu(y + self.shortcut(x))


class PhysicalEncoder(nn.Module):
    """E of Eq 2: residual 3-D convolutions at the latent's own resolution, plus the embedded noise level."""

    def __init__(self, channels: int, hidden: int, blocks: int, operations: Any = nn) -> None:
        super().__init__()
        widths = [channels] + [hidden] * blocks
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, operations) for a, b in pairwise(widths)))

    def forward(self, x0: Tensor, level: Tensor) -> Tensor:
        """h `B hidden T H W`, in the weights' dtype, of an estimate `B C T H W` and s(sigma) `B hidden`."""
        feature = self.blocks(x0.to(weight_dtype(self)))
        return feature + broadcast(level, feature)


def head(*widths: int, operations: Any = nn) -> nn.Sequential:
    """1x1x1 convolutions with SiLU between them: `head(a, b, c)` maps a -> b -> c channels."""
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(pairwise(widths)):
        layers += [operations.Conv3d(a, b, 1)] + ([nn.SiLU()] if index < len(widths) - 2 else [])
    return nn.Sequential(*layers)


def mlp(*widths: int, operations: Any = nn) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(pairwise(widths)):
        layers += [operations.Linear(a, b)] + ([nn.SiLU()] if index < len(widths) - 2 else [])
    return nn.Sequential(*layers)


class NoiseLevel(nn.Sequential):
    """s(sigma) `B hidden` of the noise level `B`, in float32 under any autocast."""

    def __init__(self, hidden: int, operations: Any = nn) -> None:
        super().__init__(*mlp(1, hidden, hidden, operations=operations))

    def forward(self, sigma: Tensor) -> Tensor:
        """The embedded noise level."""
        with torch.autocast(sigma.device.type, enabled=False):
            return super().forward(sigma.float()[:, None])


class ConditionEncoder(nn.Module):
    """The condition vector c `B hidden` from the pooled prompt embedding `B cond_dim` and the embedded noise
    level.

    `ramp` in [0, 1] fades the prompt in (1000 steps of training); without a prompt c is the noise level
    alone. The embedding is normalised first: umT5's pooled values of about 1e-3 would leave the layer to its
    biases, whatever the prompt says.
    """

    def __init__(self, cond_dim: int, hidden: int, normalise: bool = True, operations: Any = nn) -> None:
        super().__init__()
        self.cond_dim, self.normalise = cond_dim, normalise
        self.text = mlp(cond_dim, hidden, hidden, operations=operations)

    def forward(self, level: Tensor, cond: Tensor | None, ramp: float | Tensor = 1.0) -> Tensor:
        """`level` is s(sigma), `B hidden`; `ramp` a number, or one per sample as `B 1`.

        Raises ValueError for an embedding of another width or batch.
        """
        if cond is None:
            return level
        if cond.ndim != 2 or cond.shape[1] != self.cond_dim or cond.shape[0] != level.shape[0]:
            raise ValueError(
                f"the prompt embedding has shape {tuple(cond.shape)}; this adapter needs ({level.shape[0]}, "
                f"{self.cond_dim})."
            )
        with torch.autocast(level.device.type, enabled=False):
            cond = cond.to(level.dtype)
            return level + ramp * self.text(normalised(cond) if self.normalise else cond)


def normalised(cond: Tensor) -> Tensor:
    """Each embedding `B D` at mean 0 and deviation 1 (layer norm without weights); a zero embedding stays
    zero."""
    centred = cond - cond.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-8)


def broadcast(vector: Tensor, like: Tensor) -> Tensor:
    """A vector `B D` as constant channels `B D T H W` in the size and dtype of `like`."""
    grid = vector.to(like.dtype)[:, :, None, None, None]
    return grid.expand(-1, -1, *like.shape[2:])


def zero_last(module: nn.Sequential) -> None:
    """Zeroes the last layer, so that the module starts by adding exactly nothing."""
    last = module[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weights, which its convolutions compute in."""
    return next(module.parameters()).dtype


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
