"""The policy as a module: the losses of a micro-batch, and clips of held-out prompts in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.policy import log_probability, nft_loss, policy_loss, velocity_kl, x_kl
from ...backbones import Backbone
from .sampler import Prompt, Sampler
from .settings import GrpoConfig


@dataclass(kw_only=True)
class Moved:
    """Tensors that move together."""

    def to(self, device: Any) -> Any:
        """The same on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(kw_only=True)
class Transition(Moved):
    """A step of clips that were sampled."""

    x: Tensor
    """`B C T H W` before the step."""
    after: Tensor
    """`B C T H W` that was drawn."""
    index: int
    """The step's number."""
    old: Tensor
    """Log-probability under the policy that sampled, `B`."""
    advantage: Tensor
    """`B`."""
    tokens: Tensor
    mask: Tensor


@dataclass(kw_only=True)
class Renoised(Moved):
    """Finished clips on their way back to noise."""

    clean: Tensor
    """`B C T H W`."""
    eps: Tensor
    t: Tensor
    """`B`."""
    good: Tensor
    """Probability that a clip is a good one, `B`."""
    tokens: Tensor
    mask: Tensor


@dataclass(kw_only=True)
class HeldOut(Moved):
    """Held-out prompts with their first noise."""

    noise: Tensor
    chosen: list[int]
    tokens: Tensor
    mask: Tensor


class Policy(nn.Module):
    """forward of a Transition (GRPO), a Renoised batch (NFT) or, in evaluation mode, HeldOut prompts."""

    def __init__(
        self, config: GrpoConfig, sampler: Sampler, evaluate: Callable[[HeldOut], dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.config, self.sampler, self.evaluate = config, sampler, evaluate
        self.dit = sampler.backbone.dit
        self.old_weights: Callable[[], Any] | None = None
        """Context in which the policy is the one that sampled; for nft."""
        self.teaches = True
        """Whether any reward of the iteration differs from the others of its group."""
        self.ratios: list[float] = []
        """Smallest and largest probability ratios since they were read last."""

    def forward(self, batch: Transition | Renoised | HeldOut) -> dict[str, Tensor]:
        if isinstance(batch, HeldOut):
            return self.evaluate(batch)
        losses = self.reinforce(batch) if isinstance(batch, Transition) else self.contrast(batch)
        if self.teaches:
            return losses
        # Without a gradient the optimiser leaves the weights alone: its momentum and decay would move them.
        return {name: value.detach() for name, value in losses.items()}

    def reinforce(self, batch: Transition) -> dict[str, Tensor]:
        """The clipped loss of one step, and the distance from the reference (Flow-GRPO, eq 6 and 7)."""
        prompt: Prompt = (batch.tokens, batch.mask)
        out = self.sampler.output(batch.x, batch.index, prompt)
        step = self.sampler.step(batch.x, out, batch.index, True)
        found = policy_loss(
            log_probability(step, batch.after), batch.old, batch.advantage, self.config.clip_range
        )
        self.ratios += [found.ratio.min().item(), found.ratio.max().item()]
        losses = {
            "policy_loss": found.loss,
            "approx_kl": found.approx_kl,
            "clipfrac": found.clip_fraction,
            "ratio_mean": found.ratio.mean(),
        }
        if self.config.kl_beta:
            with torch.no_grad(), reference(self.sampler.backbone):
                there = self.sampler.output(batch.x, batch.index, prompt)
            if self.config.kl_type == "v-based":
                losses["kl_loss"] = velocity_kl(out, there)
            else:
                losses["kl_loss"] = x_kl(step, self.sampler.step(batch.x, there, batch.index, True))
        return losses

    def contrast(self, batch: Renoised) -> dict[str, Tensor]:
        """DiffusionNFT's two forward losses (eq 5)."""
        backbone, prompt = self.sampler.backbone, (batch.tokens, batch.mask)
        noised = backbone.noise(batch.clean, batch.t, eps=batch.eps)
        with torch.no_grad(), self.old_weights():
            old = self.sampler.predict(noised.noisy, batch.t, prompt)
        torch.clear_autocast_cache()  # it holds the old weights in half precision
        new = self.sampler.predict(noised.noisy, batch.t, prompt)
        losses = {"policy_loss": nft_loss(new, old, noised.target, batch.good, self.config.nft_strength)}
        if self.config.kl_beta:
            with torch.no_grad(), reference(backbone):
                losses["kl_loss"] = velocity_kl(new, self.sampler.predict(noised.noisy, batch.t, prompt))
        return losses


@contextmanager
def reference(backbone: Backbone) -> Any:
    """The model before any reinforcement: its adapter turned off, so no second copy is needed."""
    backbone.dit.disable_adapters()
    try:
        yield
    finally:
        backbone.dit.enable_adapters()
