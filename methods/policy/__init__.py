"""Reinforcement of a video model by rewards: stochastic samplers whose steps have a density, GRPO and
DiffusionNFT."""

from .dynamics import DYNAMICS, Step, ddim_step, flow_step, log_probability
from .grpo import PolicyLoss, advantages, combine_rewards, policy_loss, velocity_kl, x_kl
from .nft import nft_loss, optimality

__all__ = [
    "DYNAMICS",
    "PolicyLoss",
    "Step",
    "advantages",
    "combine_rewards",
    "ddim_step",
    "flow_step",
    "log_probability",
    "nft_loss",
    "optimality",
    "policy_loss",
    "velocity_kl",
    "x_kl",
]
