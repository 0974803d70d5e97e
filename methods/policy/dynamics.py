"""Sampling steps as Gaussians: an ODE sampler made stochastic without changing its marginals (Flow-GRPO,
arXiv 2505.05470).

Time runs from noise (sigma 1) to data (sigma 0) over x = (1 - sigma) x0 + sigma noise, with the velocity v =
noise - x0. Every reverse SDE with the ODE's marginals has the drift v - s^2/2 score, and score = -(x + (1 -
sigma) v) / sigma for this path, so the kinds differ in the noise s alone:

    Flow-SDE    s = a sqrt(sigma / (1 - sigma))         Flow-GRPO, eq 9
    Dance-SDE   s = a                                   DanceGRPO, arXiv 2505.07818
    CPS         s = sigma_next sin(a pi / 2), x0 and noise mixed anew   Flow-CPS, arXiv 2509.05952
    ODE         s = 0

CPS keeps the noise level of every step exactly, for any number of steps, but not the marginals: fresh noise
has forgotten which point of the data it came from, so the clips of a prompt grow alike (a Gaussian of
deviation 0.40 ends at 0.28 after 10 steps and at 0.32 after 200 with a = 0.8, where the ODE ends at 0.34 and
0.40: tests/methods/test_policy.py's analytic problem).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DYNAMICS = ("Flow-SDE", "Dance-SDE", "CPS", "ODE")


@dataclass(frozen=True)
class Step:
    """The Gaussian that a sampler draws its next latent from."""

    mean: Tensor
    """`B C T H W`, float32."""
    std: float
    """Standard deviation of every number; 0 for a deterministic step."""

    def draw(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """One sample of the next latent, `B C T H W` float32; the mean where the step is deterministic.

        generator: one for the batch, or one for each clip, which then does not depend on its neighbours.
        """
        if self.std == 0:
            return self.mean
        # Drawn on the CPU: the same seed gives the same clip on every device.
        if isinstance(generator, Sequence):
            noise = torch.stack([torch.randn(self.mean.shape[1:], generator=one) for one in generator])
        else:
            noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise.to(self.mean.device)


def flow_step(
    kind: str, x: Tensor, velocity: Tensor, sigma: float, sigma_next: float, noise_level: float
) -> Step:
    """The step of a flow model from `sigma` down to `sigma_next`.

    kind: one of DYNAMICS; x, velocity: `B C T H W`; noise_level: the a of the table above. Raises ValueError
    for an unknown kind or noise levels that do not fall.
    """
    if kind not in DYNAMICS:
        raise ValueError(f"dynamics {kind!r} are unknown; choose one of {', '.join(DYNAMICS)}.")
    if not 0 <= sigma_next < sigma <= 1:
        raise ValueError(f"sigma goes from {sigma} to {sigma_next}; it must fall, within [0, 1].")
    x, velocity = x.float(), velocity.float()
    dt = sigma_next - sigma
    if kind == "CPS":
        return _preserving_step(x, velocity, sigma, sigma_next, noise_level)
    noise = _sde_noise(kind, sigma, sigma_next, noise_level)
    score = -(x + (1 - sigma) * velocity) / sigma
    return Step(x + (velocity - 0.5 * noise**2 * score) * dt, noise * math.sqrt(-dt))


def _sde_noise(kind: str, sigma: float, sigma_next: float, noise_level: float) -> float:
    if kind == "ODE":
        return 0.0
    if kind == "Dance-SDE":
        return noise_level
    # At pure noise s would be infinite: Flow-GRPO's code takes the next level in the denominator there.
    return noise_level * math.sqrt(sigma / (1 - (sigma if sigma < 1 else sigma_next)))


def _preserving_step(
    x: Tensor, velocity: Tensor, sigma: float, sigma_next: float, noise_level: float
) -> Step:
    """x0 and noise are predicted, and part of the noise is drawn anew: the total stays sigma_next exactly."""
    std = sigma_next * math.sin(noise_level * math.pi / 2)
    data, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    return Step((1 - sigma_next) * data + math.sqrt(max(0.0, sigma_next**2 - std**2)) * noise, std)


def ddim_step(x: Tensor, v: Tensor, alpha_bar: float, alpha_bar_next: float, eta: float) -> Step:
    """The step of a v-prediction DDPM (CogVideoX): DDIM with eta > 0 (arXiv 2010.02502, eq 12 and 16).

    x, v: `B C T H W`; alpha_bar: signal power now and after, rising; eta: 0 is deterministic, 1 the ancestral
    sampler. Raises ValueError where the signal does not rise.
    """
    if not 0 <= alpha_bar < alpha_bar_next <= 1:
        raise ValueError(f"alpha_bar goes from {alpha_bar} to {alpha_bar_next}; it must rise, within [0, 1].")
    x, v = x.float(), v.float()
    data = math.sqrt(alpha_bar) * x - math.sqrt(1 - alpha_bar) * v
    noise = math.sqrt(alpha_bar) * v + math.sqrt(1 - alpha_bar) * x
    variance = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
    std = eta * math.sqrt(variance)
    return Step(
        math.sqrt(alpha_bar_next) * data + math.sqrt(max(0.0, 1 - alpha_bar_next - std**2)) * noise, std
    )


def log_probability(step: Step, following: Tensor) -> Tensor:
    """log N(following; mean, std^2) per sample, `B`: the mean over a latent's numbers, float32, as Flow-GRPO
    takes it.

    A sum would make the probability ratio of a video latent, a million numbers, overflow at once; the clip
    ranges in use (1e-5 to 1e-3) belong to the mean. Raises ValueError for a deterministic step, which has no
    density.
    """
    if step.std <= 0:
        raise ValueError(
            "a deterministic step has no probability; take another noise_level, or a step inside the SDE "
            "window."
        )
    deviation = (following.float() - step.mean) / step.std
    density = -0.5 * deviation.square() - math.log(step.std) - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)
