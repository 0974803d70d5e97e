"""GRPO on diffusion (arXiv 2402.03300, eq 3; Flow-GRPO, arXiv 2505.05470, eq 5-7): rewards to advantages to a
loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .dynamics import Step

CLAMP = 5.0
"""Largest magnitude of an advantage (Flow-GRPO's adv_clip_max)."""
EPSILON = 1e-4
"""Added to a deviation before it divides. Rewards here lie in [0, 1], and a spread below this is rounding."""


LEAST_SPREAD = 0.1
"""Least deviation of a batch of gdpo's joined advantages that is brought to 1, as a share of all weights:
what one group in a hundred with any spread makes. Below it there is rounding alone, which must not teach."""


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped loss of one step of one trajectory per sample, and what is logged of it."""

    loss: Tensor
    """Scalar with gradient."""
    ratio: Tensor
    """Probability ratio new / old, `B`, detached."""
    clip_fraction: Tensor
    """Share of samples whose ratio left the clip range, scalar."""
    approx_kl: Tensor
    """Half the mean squared log ratio, scalar: KL of the old policy from the new one to second order."""


def advantages(rewards: Tensor, *, clamp: float = CLAMP, global_std: bool = False) -> Tensor:
    """Rewards `G K` of G prompts with K clips each -> advantages `G K`: centred in the group, over a
    deviation.

    clamp: largest magnitude (adv_clip_range); global_std: divide by the deviation of all rewards instead of
    the group's. Clips of a group without spread get 0. Raises ValueError for one clip a group, or rewards
    that are not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards are {tuple(rewards.shape)}; groups of at least 2 clips are needed, as G x K."
        )
    if not torch.isfinite(rewards).all():
        raise ValueError(
            f"{int((~torch.isfinite(rewards)).sum())} rewards are not finite; see which critic gave them."
        )
    rewards = rewards.double()
    centred = rewards - rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, keepdim=True, correction=0)
    spread = (rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True)) > 0
    scale = rewards.std(correction=0) if global_std else deviation
    found = torch.where(spread, centred / (scale + EPSILON), torch.zeros_like(centred))
    return found.clamp(-clamp, clamp).float()


def combine_rewards(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    aggregation: str = "sum",
    **settings: float | bool,
) -> Tensor:
    """Advantages `G K` from several rewards `G K` by name.

    aggregation: "sum" adds the weighted rewards and normalises once; "gdpo" normalises each by itself, adds
    and divides by the deviation of the whole batch (GDPO, arXiv 2601.05242), so that a reward with a wide
    range cannot hide one with a narrow range, and neither the number of rewards nor the size of all weights
    changes how large advantages are. Its last step subtracts no mean: each group has none left, and a group
    without spread keeps 0. settings: as `advantages`; the clamp holds for what is returned. Raises ValueError
    for another aggregation.
    """
    if aggregation == "sum":
        return advantages(
            torch.stack([weights[name] * value.double() for name, value in rewards.items()]).sum(0),
            **settings,
        )
    if aggregation == "gdpo":
        joined = sum(weights[name] * advantages(value, **settings) for name, value in rewards.items())
        least = max(LEAST_SPREAD * sum(weights[name] for name in rewards), torch.finfo(joined.dtype).tiny)
        clamp = settings.get("clamp", CLAMP)
        return (joined / joined.std(correction=0).clamp(min=least)).clamp(-clamp, clamp)
    raise ValueError(f"advantage_aggregation is {aggregation!r}; it must be sum or gdpo.")


def policy_loss(new: Tensor, old: Tensor, advantage: Tensor, clip_range: float) -> PolicyLoss:
    """mean over samples of max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = exp(new - old) (Flow-GRPO, eq 6).

    new, old: log-probabilities `B` of the same transition under the policy in training and the one that
    sampled; advantage:
    `B`; clip_range: c.
    """
    change = new - old.detach()
    ratio = change.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    outside = ((ratio.detach() - 1).abs() > clip_range).float().mean()
    return PolicyLoss(loss, ratio.detach(), outside, 0.5 * change.detach().square().mean())


def x_kl(step: Step, reference: Step) -> Tensor:
    """KL per number of two steps of equal deviation, scalar: (mean - mean_ref)^2 / (2 std^2), averaged
    (Flow-GRPO, eq 7)."""
    return ((step.mean - reference.mean).square() / (2 * step.std**2)).mean()


def velocity_kl(velocity: Tensor, reference: Tensor) -> Tensor:
    """The same drift from the reference on the network's output, scalar: mean (v - v_ref)^2 / 2, free of the
    step's size."""
    return 0.5 * (velocity.float() - reference.float()).square().mean()
