"""The motion field predictor f: a small 2-D network from one latent frame (and a prompt) to the change `lag`
frames later."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COSINE_EPS = 1e-2
"""Least norm in the cosine of eq 7. Small against a latent change (about 1), so eq 7 holds wherever anything
moves; large enough that the zero-initialised network does not start with a gradient of 1e8, which Adam's
second moment would remember for long."""


def group_count(width: int) -> int:
    """Groups of a GroupNorm over `width` channels: about eight channels each, so that a group of one number
    never arises."""
    return math.gcd(width, max(width // 8, 1))


class SqueezeExcitation(nn.Module):
    """Rescales channels by a gate computed from their spatial means."""

    def __init__(self, width: int, operations: Any) -> None:
        super().__init__()
        hidden = width // 4
        self.squeeze = operations.Linear(width, hidden)
        self.excite = operations.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean(dim=(-2, -1))))))
        return x * gate[:, :, None, None]


class ConditionedBlock(nn.Module):
    """Residual block: norm, FiLM, activation, convolution, norm, activation, convolution,
    squeeze-and-excitation."""

    def __init__(self, width: int, embed_dim: int, operations: Any) -> None:
        super().__init__()
        groups = group_count(width)
        self.film = operations.Linear(embed_dim, 2 * width)
        self.norm1 = operations.GroupNorm(groups, width)
        self.conv1 = operations.Conv2d(width, width, 3, padding=1)
        self.norm2 = operations.GroupNorm(groups, width)
        self.conv2 = operations.Conv2d(width, width, 3, padding=1)
        self.recalibrate = SqueezeExcitation(width, operations)

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        scale, shift = self.film(embed)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(x), 1 + scale))
        h = F.silu(self.norm2(self.conv1(h)))
        return x + self.recalibrate(self.conv2(h))


class MotionFieldPredictor(nn.Module):
    """f(z[i], c) ~ z[i + lag] - z[i], the first moment of the latent motion prior (LaMo, section 3.3).

    Output projection, FiLM heads and null prompt start at zero, so the network starts as the constant zero.
    About 10.8M parameters at channels 16, cond_dim 4096. `order=2` also reads the last change, z[i] - z[i-1]:
    beyond the paper, because a single frame cannot say which way a thing is going.
    """

    def __init__(
        self,
        channels: int,
        cond_dim: int,
        width: int = 256,
        blocks: int = 8,
        order: int = 1,
        operations: Any = nn,
        prompted: bool = True,
    ) -> None:
        """`operations` is the namespace the layers come from (torch.nn, or ComfyUI's casting layers).

        prompted: whether it was trained with prompts. One that was not always answers to the null prompt, so
        that it fits every text encoder. Raises ValueError for a size out of range.
        """
        super().__init__()
        for name, value in {
            "channels": channels,
            "cond_dim": cond_dim,
            "width": width,
            "blocks": blocks,
        }.items():
            least = 8 if name == "width" else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
        if order not in (1, 2):
            raise ValueError(
                f"order is {order!r}; it must be 1 (one frame) or 2 (one frame and the last change)."
            )
        if not isinstance(prompted, bool):
            raise ValueError(f"prompted is {prompted!r}; it must be true or false.")
        self.channels, self.cond_dim, self.width, self.order, self.prompted = (
            channels,
            cond_dim,
            width,
            order,
            prompted,
        )
        embed_dim = width // 2
        self.null_prompt = nn.Parameter(torch.zeros(cond_dim))
        self.embed = operations.Linear(cond_dim, embed_dim)
        self.input = operations.Conv2d(channels * order, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConditionedBlock(width, embed_dim, operations) for _ in range(blocks))
        self.norm = operations.GroupNorm(group_count(width), width)
        self.output = operations.Conv2d(width, channels, 3, padding=1)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        for layer in [self.output, *(block.film for block in self.blocks)]:
            for parameter in (layer.weight, layer.bias):
                if (
                    parameter is not None
                ):  # ComfyUI's layers may have no weights until a file is loaded into them
                    nn.init.zeros_(parameter)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments that the weights file records."""
        return {
            "channels": self.channels,
            "cond_dim": self.cond_dim,
            "width": self.width,
            "blocks": len(self.blocks),
            "order": self.order,
            "prompted": self.prompted,
        }

    def forward(self, frames: Tensor, cond: Tensor | None = None, previous: Tensor | None = None) -> Tensor:
        """Predicted change, `(N, C, H, W)`, in latent units.

        frames: latent frames `(N, C, H, W)`, any H and W. cond: pooled prompt embedding `(N, D)` or `(1, D)`;
        None is the null
        prompt, which a predictor trained without prompts always takes. previous: the last change z[i] -
        z[i-1],
        `(N, C, H, W)`, needed by order 2 and refused by order 1. Raises ValueError where a size does not fit.
        """
        cond = cond if self.prompted else None
        self._check(frames, cond, previous)
        x = frames if previous is None else torch.cat([frames, previous], dim=1)
        x = self.input(x)
        embed = self._embedding(cond, x)
        for block in self.blocks:
            x = block(x, embed)
        return self.output(F.silu(self.norm(x)))

    def _embedding(self, cond: Tensor | None, like: Tensor) -> Tensor:
        """`(N or 1, E)`. The prompt embedding is scaled to unit RMS first: text encoders differ by orders of
        magnitude."""
        prompt = self.null_prompt[None] if cond is None else cond
        prompt = prompt.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        prompt = prompt * torch.rsqrt(prompt.square().mean(dim=-1, keepdim=True) + 1e-6)
        return F.silu(self.embed(prompt.to(like.dtype)))

    def _check(self, frames: Tensor, cond: Tensor | None, previous: Tensor | None) -> None:
        if frames.ndim != 4 or frames.shape[1] != self.channels:
            raise ValueError(
                f"the motion predictor was given frames of shape {tuple(frames.shape)}; it reads (N, "
                f"{self.channels}, H, W)."
            )
        if cond is not None and (
            cond.ndim != 2 or cond.shape[1] != self.cond_dim or cond.shape[0] not in (1, frames.shape[0])
        ):
            raise ValueError(
                f"the motion predictor was given a prompt embedding of shape {tuple(cond.shape)} for "
                f"{frames.shape[0]} frames; "
                f"it reads ({frames.shape[0]}, {self.cond_dim})."
            )
        if self.order == 2 and (previous is None or previous.shape != frames.shape):
            given = None if previous is None else tuple(previous.shape)
            raise ValueError(
                f"an order-2 motion predictor needs the last change, {tuple(frames.shape)}; it was given "
                f"{given}."
            )
        if self.order == 1 and previous is not None:
            raise ValueError(
                "an order-1 motion predictor reads one frame; it was given the last change as well."
            )


def predictor_loss(pred: Tensor, target: Tensor, alpha: float = 0.5) -> Tensor:
    """MSE + alpha (1 - cos), scalar; the cosine is over channels at each position, averaged (LaMo, eq 7).

    pred, target: `(N, C, H, W)`, the predicted and the true latent change.
    """
    return (
        F.mse_loss(pred, target)
        + alpha * (1 - F.cosine_similarity(pred, target, dim=1, eps=COSINE_EPS)).mean()
    )


def pool_tokens(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The condition c: the mean of a text encoder's tokens, `(B, N, D)` -> `(B, D)` in float32.

    With a mask `(B, N)` only its tokens count. Without one, tokens that are exactly zero do not count (umT5
    as Wan uses it zeroes its padding); encoders that give their backbone neither mask nor zeros (CogVideoX's
    T5) are averaged whole. Training and sampling must pool alike, so both call this. An empty selection gives
    the zero vector.
    """
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    keep = tokens.ne(0).any(dim=-1) if mask is None else mask.to(tokens.device).ne(0)
    weight = keep.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
