"""Errors and intervals of means over clips, against closed forms and the case that clustering is for."""

from __future__ import annotations

import numpy as np
import pytest
from latent_physics.toyworld.statistics import (
    auc,
    crossed_difference,
    holm,
    paired_difference,
    share_interval,
    standard_error,
)


def test_without_repeated_prompts_the_error_is_the_textbook_one():
    values = np.random.default_rng(1).normal(size=30)
    assert standard_error(values, range(30)) == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_equal_prompts_count_as_one_clip_each():
    """Copies of a clip add nothing: the error is that of the prompts' means, whatever order they come in."""
    values = np.random.default_rng(2).normal(size=12)
    copies, prompts = np.tile(values, 5), list(range(12)) * 5
    assert standard_error(copies, prompts) == pytest.approx(values.std(ddof=1) / np.sqrt(12))
    many, once = (
        paired_difference(copies, 0 * copies, prompts),
        paired_difference(values, 0 * values, range(12)),
    )
    np.testing.assert_allclose((many.mean, many.low, many.high), (once.mean, once.low, once.high))


def test_one_prompt_says_nothing_about_others():
    assert np.isnan(standard_error([0.1, 0.2], ["a", "a"]))


def test_prompts_of_unequal_numbers_of_clips_weigh_by_their_clips():
    found = paired_difference([1.0, 1.0, 1.0, 5.0], [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert found.mean == pytest.approx(7 / 4)
    assert (found.low, found.high) == (1.0, 4.0)  # each prompt alone


def test_the_interval_of_many_prompts_is_the_normal_one():
    values = np.random.default_rng(3).normal(0.3, 1.0, size=400)
    found = paired_difference(values, np.zeros(400), range(400))
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(
        (found.low, found.high), (values.mean() - half, values.mean() + half), atol=0.1 * half
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):  # 32 prompts of 2 clips that share a part; the true difference is 0.3
        drawn = np.random.default_rng(seed)
        values = (0.3 + drawn.normal(size=(32, 1)) + 0.5 * drawn.normal(size=(32, 2))).ravel()
        found = paired_difference(values, np.zeros(64), np.arange(64) // 2)
        covered += found.low <= 0.3 <= found.high
    assert (
        178 <= covered <= 198
    )  # 190 would be 95 %; chance moves that by 6, a bootstrap of 32 lowers it by about 3


def test_noise_that_both_share_cancels():
    shared = np.random.default_rng(4).normal(size=20)
    found = paired_difference(shared + 0.5, shared, range(20))
    np.testing.assert_allclose((found.mean, found.low, found.high), 0.5, atol=1e-12)
    assert str(found) == "+0.500 [+0.500, +0.500]"


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 values are compared with 1"):
        paired_difference([1.0, 2.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="2 values were given for 1 prompts"):
        standard_error([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [], [])


def test_auc_is_the_share_of_pairs_won():
    assert auc([3, 4], [1, 2])[0] == 1.0
    assert auc([1, 2], [3, 4])[0] == 0.0
    assert auc([1, 3], [2, 2])[0] == 0.5
    assert auc([2.0], [2.0]) == (0.5, pytest.approx(float("nan"), nan_ok=True))
    with pytest.raises(ValueError, match="0 and 1 values"):
        auc([], [1.0])


def test_the_error_of_an_auc_is_what_repetition_shows():
    """Normal values half a deviation apart: AUC = Phi(0.5 / sqrt 2), and the stated error is the spread over
    repetitions."""
    rng = np.random.default_rng(4)
    found = np.array([auc(rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)) for _ in range(600)])
    assert found[:, 0].mean() == pytest.approx(0.638, abs=0.01)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.08)


def crossed(seeds: float, prompts: float, rest: float, seed: int, shape=(4, 40)) -> np.ndarray:
    """Trainings x prompts around 0, with these deviations of what each has for itself."""
    rng = np.random.default_rng(seed)
    of_seeds, of_prompts = rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1]))
    return seeds * of_seeds + prompts * of_prompts + rest * rng.normal(size=shape)


def test_trainings_alone_give_student_s_interval():
    """Every prompt alike: mean +- t_3 sd / 2, and the p-value of that t, by its closed form for 3 degrees."""
    values = np.array([0.3, 0.5, 0.2, 0.6])
    found = crossed_difference(np.repeat(values[:, None], 5, axis=1))
    half = 3.1824 * values.std(ddof=1) / 2
    assert found.mean == pytest.approx(0.4)
    np.testing.assert_allclose((found.low, found.high), (0.4 - half, 0.4 + half), atol=0.08 * half)
    t = 0.4 / (values.std(ddof=1) / 2)
    angle = np.arctan(t / np.sqrt(3))
    assert found.p == pytest.approx(1 - 2 / np.pi * (angle + np.sin(angle) * np.cos(angle)), rel=0.1)


def test_prompts_alone_give_the_paired_interval():
    values = np.random.default_rng(5).normal(0.1, 1.0, size=(1, 300))
    found = crossed_difference(values, np.zeros((1, 1)))
    paired = paired_difference(values[0], np.zeros(300), range(300))
    assert found.mean == pytest.approx(paired.mean)
    np.testing.assert_allclose((found.low, found.high), (paired.low, paired.high), atol=0.01)


@pytest.mark.parametrize("spread", [(1, 0, 1), (0.3, 1, 1), (0, 1, 1), (1, 1, 1)])
def test_the_interval_of_trainings_and_prompts_covers_the_truth(spread):
    """Were prompts alone counted, one training's luck would pass for an effect."""
    found = [crossed_difference(crossed(*spread, seed)) for seed in range(200)]
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert 180 <= covered <= 200  # 190 would be 95 %, chance moves that by 6
    assert all(
        (each.p < 0.05) == (not each.low <= 0 <= each.high) for each in found if abs(each.p - 0.05) > 0.02
    )


def test_a_difference_is_paired_by_training_and_prompt():
    base, shared = crossed(1, 1, 1, 6), crossed(1, 1, 1, 7)
    found, alone = crossed_difference(shared + base, shared), crossed_difference(base)
    np.testing.assert_allclose((found.mean, found.low, found.p), (alone.mean, alone.low, alone.p))
    once = crossed_difference(base, shared[:1])
    np.testing.assert_allclose(once.mean, (base - shared[:1]).mean())
    assert np.isnan(crossed_difference([[1.0]], [[0.0]]).p)
    with pytest.raises(ValueError, match=r"\(4, 40\) and \(4, 3\)"):
        crossed_difference(base, base[:, :3])


def test_holm_rejects_what_the_stepwise_rule_rejects():
    """Against the rule as it is written: go up the sorted p-values while p < level / (m - i + 1)."""
    rng = np.random.default_rng(8)
    for _ in range(100):
        chances = dict(zip("abcdef", rng.random(6) ** 3))
        level, rejected = 0.05, set()
        for rank, name in enumerate(sorted(chances, key=chances.get)):
            if chances[name] > level / (6 - rank):
                break
            rejected.add(name)
        assert {name for name, p in holm(chances).items() if p <= level} == rejected
    assert holm({"x": 0.01, "y": 0.04, "z": 0.03}) == pytest.approx({"x": 0.03, "y": 0.06, "z": 0.06})
    assert holm({}) == {}


def test_the_interval_of_a_share_is_wilsons():
    assert (share_interval(7, 10).low, share_interval(7, 10).high) == pytest.approx(
        (0.3968, 0.8922), abs=1e-4
    )
    all_of_few = share_interval(5, 5)
    assert (all_of_few.mean, all_of_few.high) == pytest.approx((1.0, 1.0))
    assert all_of_few.low == pytest.approx(5 / (5 + 1.959964**2))
    assert np.isnan(share_interval(0, 0).mean)
    with pytest.raises(ValueError, match="3 of 2 trials cannot have hit"):
        share_interval(3, 2)
