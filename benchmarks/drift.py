"""Motion drift loss from the model's output: ours against the definition. `kernels.py` runs it."""

from __future__ import annotations

import math

import torch
from common import Kernel, Step
from latent_physics.kernels.drift import drift_loss_of_output
from torch import Tensor


def definition(output: Tensor, noisy: Tensor, target: Tensor, scale: Tensor, gain: Tensor, lag: int = 2) -> Tensor:
    """x0, then the change, then its mean, as LaMo's equations are written."""
    column = (-1, 1, 1, 1, 1)
    x0 = scale.view(column) * noisy - gain.view(column) * output
    predicted, true = ((z[:, :, lag:] - z[:, :, :-lag]).float().mean(dim=(3, 4)) for z in (x0, target))
    return ((predicted - true).square().sum(1) / (true.square().sum(1) + 1e-6)).mean()


def prepare(variant: str, device: str, size: list[int], batch: int) -> Step:
    """Flow matching at two noise levels."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    output, noisy, target = (torch.randn(batch, 16, *size, device=device).to(dtype) for _ in range(3))
    scale, gain = torch.ones(batch, device=device), torch.linspace(0.2, 0.8, batch, device=device)
    output.requires_grad_()
    loss = drift_loss_of_output if variant == "ours" else torch.compile(definition) if "compiled" in variant else definition

    def step() -> Tensor:
        output.grad = None
        value = loss(output, noisy, target, scale, gain)
        value.backward()
        return value.detach()

    return step


KERNELS = (
    Kernel(
        name="drift",
        what="motion drift loss of flow-matching output, 16 channels (LaMo)",
        prepare=prepare,
        shapes=({"size": [13, 60, 90], "batch": 2}, {"size": [21, 60, 104], "batch": 2}),
        variants=("ours", "definition", *(("definition compiled",) if torch.cuda.is_available() else ())),
        bytes=lambda size, batch: 4 * 16 * batch * 4 * math.prod(size),  # three latents in, one gradient out
    ),
)
