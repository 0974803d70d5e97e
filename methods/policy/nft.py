"""DiffusionNFT (arXiv 2509.16117): rewards as a contrast of two forward losses. No SDE, no probabilities, any
sampler."""

from __future__ import annotations

import torch
from torch import Tensor


def optimality(advantages: Tensor, clamp: float = 5.0) -> Tensor:
    """Probability r in [0, 1] that a clip is a good one: 1/2 + A / (2 clamp) (eq 7). advantages: any
    shape."""
    return (0.5 + 0.5 * advantages / clamp).clamp(0, 1)


def nft_loss(velocity: Tensor, old: Tensor, target: Tensor, good: Tensor, strength: float = 1.0) -> Tensor:
    """mean over samples of r |v+ - v|^2 + (1 - r) |v- - v|^2, with v+ = (1 - b) v_old + b v_new and v- = (1 +
    b) v_old - b v_new (eq 5).

    velocity: of the policy in training; old: of the one that sampled (an EMA of it), detached here; target:
    noise - x0 of a sampled clip noised anew; all `B C T H W`. good: r per sample, `B`. strength: the b of the
    equation. At r = 1/2 and velocity = old the gradient is 0: a clip that is neither good nor bad teaches
    nothing.
    """
    old, velocity, target = old.detach().float(), velocity.float(), target.float()
    towards = (1 - strength) * old + strength * velocity
    away = (1 + strength) * old - strength * velocity
    errors = [(guess - target).square().flatten(1).mean(1) for guess in (towards, away)]
    return torch.mean(good * errors[0] + (1 - good) * errors[1])
