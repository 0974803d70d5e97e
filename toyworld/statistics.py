"""Certainty of a mean over clips. Clips of one prompt are alike, so it is prompts that are counted and
resampled, not clips: clip by clip, errors and intervals would come out too small. Clips of one training are
alike too: where there are several trainings, these count as well (`crossed_difference`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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


def share_interval(hits: int, of: int) -> Interval:
    """Share of `of` independent trials that hit, and Wilson's (1927) 95 % interval, which stays in [0, 1] and
    has a width where all of a few hit; nan of no trial. Raises ValueError where there are more hits than
    trials."""
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} of {of} trials cannot have hit; hits are 0 to the number of trials.")
    if of == 0:
        return Interval(*[float("nan")] * 3)
    z, share = 1.959964, hits / of
    middle = share + z**2 / (2 * of)
    half = z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    low, high = ((middle + side * half) / (1 + z**2 / of) for side in (-1, 1))
    return Interval(share, float(low), float(high))


@dataclass(frozen=True)
class Effect(Interval):
    """A mean difference with its 95 % interval and the chance of one as large where there is none."""

    p: float


def crossed_difference(
    values: Sequence[Sequence[float]], reference: Sequence[Sequence[float]] = ((0.0,),)
) -> Effect:
    """Mean of `values` less `reference`, both trainings x prompts; 1 of either in `reference` stands for all.

    With d[s, p] the paired differences, a[s] and b[p] their means over prompts and over trainings less the
    mean of all: the mean's error is drawn as t_{S-1} sd(a) / sqrt(S), Student's t as four trainings are too
    few to be resampled themselves, plus the mean of b[p] over prompts resampled with replacement times
    sqrt(P / (P - 1)). What a training and a prompt share alone is in both. One training, or one prompt, has
    no spread of its own to add; of one each, interval and p are nan. Draws the same numbers every time.
    Raises ValueError where shapes do not fit.
    """
    wide, other = np.asarray(values, float), np.asarray(reference, float)
    if wide.ndim != 2 or other.ndim != 2 or any(b not in (1, a) for a, b in zip(wide.shape, other.shape)):
        raise ValueError(
            f"trainings x prompts are {wide.shape} and {other.shape}; both need two dimensions, the second "
            f"as many of each or 1."
        )
    found = wide - other
    (seeds, prompts), mean, rng = found.shape, float(found.mean()), np.random.default_rng(0)
    if found.size == 1:
        return Effect(mean, *[float("nan")] * 3)
    error = np.zeros(RESAMPLES)
    if seeds > 1:
        error += rng.standard_t(seeds - 1, RESAMPLES) * found.mean(1).std(ddof=1) / np.sqrt(seeds)
    if prompts > 1:
        times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
        error += times @ (found.mean(0) - mean) / np.sqrt(prompts * (prompts - 1))
    low, high = np.percentile(error, [2.5, 97.5])
    p = (1 + int((np.abs(error) >= abs(mean)).sum())) / (1 + RESAMPLES)
    return Effect(mean, mean - float(high), mean - float(low), p)


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests so that the chance of any false one among them is at most the level (Holm
    1979): the i-th smallest of m, from 1, times m - i + 1, never below the one before it, at most 1."""
    found, least = {}, 0.0
    for rank, name in enumerate(sorted(chances, key=chances.__getitem__)):
        least = max(least, min(1.0, (len(chances) - rank) * chances[name]))
        found[name] = least
    return {name: found[name] for name in chances}


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
