"""The policy as a sampler: every step a Gaussian, those inside a window with noise (methods/policy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....methods.policy import Step, ddim_step, flow_step, log_probability
from ...backbones import Backbone
from ...backbones.sample import schedule

Prompt = tuple[Tensor, Tensor]
"""Tokens `B L D` and mask `B L`."""


@dataclass(kw_only=True)
class Sampler:
    """A backbone with its steps, dynamics and guidance."""

    backbone: Backbone
    steps: int
    kind: str = "ODE"
    """Dynamics of the steps that are stochastic: one of methods.policy's, or DDIM-eta."""
    noise_level: float = 0.0
    guidance: float = 1.0
    null: Prompt | None = None
    """The empty prompt, `1 L D` and mask, for guidance."""

    def __post_init__(self) -> None:
        self.times = schedule(self.backbone, self.steps)

    def predict(self, x: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """The guided output of the network, `B C T H W`; t: `B`."""
        out = self.backbone.predict(x, t, *prompt)
        if self.guidance == 1 or self.null is None:
            return out
        empty = [value.to(x.device).expand(len(x), *value.shape[1:]) for value in self.null]
        unguided = self.backbone.predict(x, t, *empty)
        return unguided + self.guidance * (out - unguided)

    def output(self, x: Tensor, index: int, prompt: Prompt) -> Tensor:
        """The same for a step of the sampler."""
        return self.predict(x, self.times[index].expand(len(x)).to(x.device), prompt)

    def step(self, x: Tensor, out: Tensor, index: int, stochastic: bool) -> Step:
        """The Gaussian of the next latent, from the network's output for step `index`."""
        now, after = self.times[index], self.times[index + 1]
        level = self.noise_level if stochastic else 0.0
        if self.backbone.prediction == "flow":
            kind = self.kind if stochastic else "ODE"
            return flow_step(kind, x, out, now.item(), after.item(), level)
        powers = [1.0 if time < 0 else self.backbone.signal_power(time[None]).item() for time in (now, after)]
        return ddim_step(x, out, *powers, level)


@dataclass(kw_only=True)
class Rollout:
    """Clips of one batch and what is learned from them."""

    clips: Tensor
    """`B C T H W`: the finished latents."""
    states: list[Tensor]
    """Latents at the window's steps and after its last, `B C T H W` each."""
    log_probabilities: list[Tensor]
    """Log-probabilities of the window's steps, `B` each, on the CPU."""


@torch.no_grad()
def roll_out(
    sampler: Sampler,
    noise: Tensor,
    prompt: Prompt,
    window: range,
    generators: Sequence[torch.Generator],
    keep: torch.device,
) -> Rollout:
    """Samples a batch from `noise` `B C T H W`, with noise from each clip's own generator inside the window.

    keep: the device that holds the window's latents afterwards; no other latents are kept.
    """
    device = sampler.backbone.device
    x, prompt = noise.to(device), (prompt[0].to(device), prompt[1].to(device))
    states, found = [], []
    for index in range(sampler.steps):
        step = sampler.step(x, sampler.output(x, index, prompt), index, index in window)
        after = step.draw(generators)
        if index in window:
            states.append(x.to(keep))
            found.append(log_probability(step, after).cpu())
            if index == window[-1]:
                states.append(after.to(keep))
        x = after
    return Rollout(clips=x, states=states, log_probabilities=found)
