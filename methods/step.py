"""The sampling step in which a correction acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingStep:
    """One evaluation of the denoiser, as seen by a correction.

    A correction is any object with `correct(x0, step) -> x0`: the ComfyUI post-CFG hook and the training-side
    sampler call the very same object.
    """

    noisy: Tensor
    """The noisy latent z_t the backbone was evaluated at, `B C T H W`, in the scaling the sampler uses."""
    sigma: Tensor
    """The sampler's noise level per sample, `B`."""
    gain: Tensor
    """g of x0 = a z_t - g out (LaMo, eq 9), `B`: sigma/sqrt(alpha_bar) for eps, sqrt(1-alpha_bar) for v,
    sigma for flow."""
    index: int
    """The sampler's step, 0 at the noisy end."""
    count: int
    """Number of steps that the sampler takes in all."""
    cond: Tensor | None = None
    """Pooled prompt embedding, `B D`; None where the prompt is unknown or empty."""
    level: Tensor | None = None
    """Noise level of z_t = a x0 + b noise as b / (a + b), `B`, in [0, 1]: sigma of a flow, and for any other
    parameterisation the sigma of the flow with the same signal-to-noise ratio. None where it is unknown."""
    percent_to_sigma: Callable[[float], float] | None = None
    """The model's own schedule: share of it that is over, from the noisy end -> sigma. None where it is
    unknown."""


class Correction(Protocol):
    """A method that acts while sampling."""

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """Returns the corrected denoised estimate, `B C T H W`, in x0's dtype and on its device."""
        ...


def gain_of(prediction: str, sigma: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
    """The gain g for a parameterisation's name: "eps", "v" (both need `alpha_bar`) or "flow".

    Raises ValueError for another name. Source: LaMo eq 9 by the chain rule, appendix C.
    """
    if prediction == "flow":
        return sigma
    if alpha_bar is None:
        raise ValueError(f"the gain of prediction {prediction!r} needs alpha_bar.")
    if prediction == "eps":
        return torch.sqrt((1 - alpha_bar) / alpha_bar)
    if prediction == "v":
        return torch.sqrt(1 - alpha_bar)
    raise ValueError(f"prediction is {prediction!r}; it must be 'eps', 'v' or 'flow'.")


def flow_level(signal: Tensor, noise: Tensor) -> Tensor:
    """Noise level b / (a + b) of z_t = a x0 + b noise, in [0, 1]: the sigma of the flow (a = 1 - sigma, b =
    sigma) whose signal-to-noise ratio is the same, because (1 - sigma) / sigma = a / b."""
    return noise / (signal + noise)


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels `u` in [0, 1] of a flow, moved towards noise: noise over signal is `shift` times what it
    was, sigma = s u / (1 + (s - 1) u). Same shape."""
    return shift * u / (1 + (shift - 1) * u)
