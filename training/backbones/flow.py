"""Flow matching, as every family but CogVideoX is trained: sigma in [0, 1], velocities are answered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.step import shifted
from .base import Backbone, Noised

TIMESTEPS = 1000
"""The transformers are told sigma * TIMESTEPS."""


class FlowBackbone(Backbone):
    """Noise, target and x0 of a rectified flow: noisy = (1 - sigma) latent + sigma eps, v = eps - latent."""

    prediction = "flow"
    usual_shift: float = 3.0

    def __init__(self, *, shift: float | None = None, **parts: Any) -> None:
        """`shift` moves the training times towards noise: sigma = s u / (1 + (s - 1) u); left out, what
        ComfyUI samples the family with."""
        super().__init__(**parts)
        self.shift = self.usual_shift if shift is None else shift

    def sample_t(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sigma: the logistic of a standard normal, shifted."""
        device = generator.device if generator is not None else "cpu"
        u = torch.randn(count, generator=generator, device=device).sigmoid()
        return shifted(u, self.shift)

    def _noise(self, latent: Tensor, t: Tensor, eps: Tensor) -> Noised:
        sigma = t.to(latent.dtype).view(-1, 1, 1, 1, 1)
        return Noised(
            noisy=(1 - sigma) * latent + sigma * eps,
            target=eps - latent,
            weight=torch.ones_like(t, dtype=torch.float32),
        )

    def x0(self, noisy: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return noisy - t.to(noisy).view(-1, 1, 1, 1, 1) * out

    def signal_power(self, t: Tensor) -> Tensor:
        """alpha_bar of the DDPM step with the same signal-to-noise ratio: (1 - sigma)^2 / ((1 - sigma)^2 +
        sigma^2)."""
        signal, noise = (1 - t.float()) ** 2, t.float() ** 2
        return signal / (signal + noise)
