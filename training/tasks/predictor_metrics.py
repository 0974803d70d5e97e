"""Error of a motion predictor on held-out pairs: at several noise levels, and pair by pair of a clip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.pairs import Pairs

LEVELS = (0.0, 0.3, 0.6, 0.9)
"""Noise levels sigma of z + sigma eps at which a predictor is measured; guidance asks it where the sampler's
estimates are rough, so it is chosen on the noisy ones."""

USABLE = 0.6
"""Mean unexplained variance on noisy input below which guidance raised the law score of the toy world; above
it, guidance lowered it (docs/training.md has the table)."""


@dataclass(frozen=True)
class Where:
    """Description of a held-out micro-batch."""

    level: float
    """Its noise level."""
    numbers: Tensor
    """First frame i of each pair (i, i + lag), `N`."""

    def to(self, device: torch.device) -> Where:
        """The same on another device."""
        return Where(self.level, self.numbers.to(device))


def noised(pairs: Pairs, level: float, generator: torch.Generator) -> Pairs:
    """The input of f becomes z + level eps, both frames of order 2 alike; what it is to say stays as it
    is."""
    if level == 0:
        return pairs
    frame = pairs.frame + level * torch.randn(pairs.frame.shape, generator=generator)
    before = pairs.before
    if before is not None:
        before = before + level * torch.randn(before.shape, generator=generator)
    return Pairs(frame=frame, before=before, after=pairs.after, cond=pairs.cond)


def error_sums(prediction: Tensor, change: Tensor, where: Where) -> dict[str, Tensor]:
    """Sums of the squared error of `N C H W`: over the micro-batch by its level, and of clean ones by
    pair."""
    errors = (prediction - change).square().sum(dim=(1, 2, 3))
    found = {f"squared at {where.level:g}": errors.sum()}
    if where.level == 0:
        found |= {
            f"squared of pair {int(i)}": errors[where.numbers == i].sum() for i in where.numbers.unique()
        }
    return found


def names(numbers: Tensor) -> tuple[str, ...]:
    """Names of the figures of `figures` for pairs that begin at these frames."""
    noisy = [f"unexplained_{level:g}" for level in LEVELS if level]
    return (
        "unexplained",
        *noisy,
        "unexplained_noisy",
        *(f"unexplained_pair_{int(i)}" for i in numbers.unique()),
    )


def figures(sums: Mapping[str, float], change: Tensor, numbers: Tensor) -> dict[str, float]:
    """MSE(f, D) / Var(D), 1 for a predictor that knows nothing and 0 for a perfect one, from the sums of
    `error_sums` over all pairs of `change` `N C H W`.

    "unexplained" on clean input; "unexplained_0.3" and so on by noise level, and their mean,
    "unexplained_noisy"; "unexplained_pair_3" on the clean pairs that begin at latent frame 3 against their
    own variance. The first pairs of a causal VAE's latents hold most of all change, so a figure over all
    pairs is mostly theirs.
    """
    whole = change.numel() * variance(change)
    found = {f"unexplained_{level:g}": sums[f"squared at {level:g}"] / whole for level in LEVELS}
    clean = found.pop("unexplained_0")
    noisy = sum(found.values()) / len(found)
    pairs = {}
    for i in numbers.unique():
        part = change[numbers == i]
        pairs[f"unexplained_pair_{int(i)}"] = ratio(
            sums[f"squared of pair {int(i)}"], part.numel() * variance(part)
        )
    return {"unexplained": clean, **found, "unexplained_noisy": noisy, **pairs}


def said(found: Mapping[str, float]) -> Sequence[str]:
    """The figures as lines for a reader; none where nothing was held out."""
    if "unexplained" not in found:
        return []
    levels = [
        f"sigma {name.rpartition('_')[2]}: {value:.3f}"
        for name, value in found.items()
        if name[12:13].isdigit()
    ]
    pairs = [f"{name.rpartition('_')[2]}: {value:.3f}" for name, value in found.items() if "_pair_" in name]
    return [
        f"Unexplained variance on noisy input: {', '.join(levels)}.",
        f"By first latent frame of the pair, clean: {', '.join(pairs)}.",
        verdict(found["unexplained_noisy"]),
    ]


def verdict(noisy: float) -> str:
    """Whether a predictor whose unexplained variance on noisy input is `noisy` is of use, in one sentence."""
    if noisy < USABLE:
        return f"Usable: {noisy:.3f} on noisy input, and usable below {USABLE}; less is better."
    return (
        f"NOT usable yet: {noisy:.3f} on noisy input, and usable below {USABLE}; train on more clips that "
        "move, or for more steps."
    )


def variance(change: Tensor) -> float:
    """Variance of `N C H W` about each channel's mean."""
    return (change - change.mean(dim=(0, 2, 3), keepdim=True)).square().mean().item()


def ratio(error: float, spread: float) -> float:
    """error / spread; inf where there is nothing to explain."""
    return error / spread if spread > 1e-12 else math.inf
