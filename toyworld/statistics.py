"""Certainty of a mean over clips. Clips of one prompt are alike, so it is prompts that are counted and
resampled, not clips: clip by clip, errors and intervals would come out too small.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def standard_error(values: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """Standard error of the mean of `values`, clustered by `prompts` (one per value); nan where all have one
    prompt.

    With G prompts of n_g values and mean m: sqrt(G / (G - 1) sum_g (sum of (value - m) in g)^2) / N. Where no
    prompt repeats this is the deviation over sqrt(N). Raises ValueError where lengths differ or nothing is
    given.
    """
    sums, counts = _by_prompt(values, prompts)
    if len(sums) < 2:
        return float("nan")
    total = counts.sum()
    apart = sums - counts * (sums.sum() / total)
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (apart**2).sum()) / total)


def paired_difference(
    values: Sequence[float], reference: Sequence[float], prompts: Sequence[Hashable]
) -> Interval:
    """Mean of `values` less `reference`, clip by clip (same prompt and noise), with a bootstrap interval over
    `prompts`.

    Draws the same resamples every time. Raises ValueError where lengths differ or nothing is given.
    """
    if len(values) != len(reference):
        raise ValueError(
            f"{len(values)} values are compared with {len(reference)}; pairs need as many of both."
        )
    sums, counts = _by_prompt(np.asarray(values, float) - np.asarray(reference, float), prompts)
    chosen = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def auc(right: Sequence[float], wrong: Sequence[float]) -> tuple[float, float]:
    """(chance that a value of `right` exceeds one of `wrong`, ties counting half; its standard error). 0.5
    tells nothing.

    The error is DeLong's (1988): the variances of each value's own chance of winning, over their number. nan
    for fewer than 2 values on a side. Raises ValueError where a side is empty.
    """
    if not len(right) or not len(wrong):
        raise ValueError(f"an AUC compares two groups, but {len(right)} and {len(wrong)} values were given.")
    difference = np.asarray(right, float)[:, None] - np.asarray(wrong, float)[None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    if min(wins.shape) < 2:
        return float(wins.mean()), float("nan")
    variance = wins.mean(1).var(ddof=1) / len(right) + wins.mean(0).var(ddof=1) / len(wrong)
    return float(wins.mean()), float(np.sqrt(variance))


def _by_prompt(values: Sequence[float], prompts: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each prompt, prompts in the order of their first value."""
    if len(values) != len(prompts) or not len(values):
        raise ValueError(
            f"{len(values)} values were given for {len(prompts)} prompts; give one prompt per value, at "
            f"least one."
        )
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
    return np.bincount(index, weights=np.asarray(values, float)), np.bincount(index).astype(float)
