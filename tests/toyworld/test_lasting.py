"""Permanence: things that stay are told from things that vanish, split, grow or change colour, whatever
moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from latent_physics import toyworld
from latent_physics.toyworld.corruption import VIOLATIONS, doubled, recoloured
from latent_physics.toyworld.lasting import colour_kept, mass_change, number_kept, permanence, pieces
from latent_physics.toyworld.scores import CALIBRATION
from latent_physics.toyworld.worlds import WORLDS

CLIPS = 4


def mean(name, kind):
    world, rng = WORLDS[name], np.random.default_rng(11)
    clips = [kind(world, world.draw(rng), rng) for _ in range(CLIPS)]
    return np.mean([permanence(world.unmix(clip), world) for clip in clips])


@pytest.mark.parametrize("name", WORLDS)
def test_things_that_stay_score_one_however_they_move(name):
    for kind in ("shuffled", "frozen", "reversed", "time-warp"):
        assert mean(name, VIOLATIONS[kind]) > 0.9, kind


@pytest.mark.parametrize("name", WORLDS)
def test_things_that_vanish_change_colour_or_double_score_less(name):
    for kind, most in ((VIOLATIONS["vanish"], 0.8), (recoloured, 0.5), (doubled, 0.88)):
        assert mean(name, kind) < most


def test_the_order_of_frames_does_not_count():
    world = WORLDS["rigid_body"]
    alphas = world.unmix(doubled(world, world.draw(np.random.default_rng(2)), np.random.default_rng(3)))
    order = np.random.default_rng(4).permutation(len(alphas))
    assert permanence(alphas, world) == pytest.approx(permanence(alphas[order], world))


def test_pieces_are_counted_by_hand():
    alpha = np.zeros((64, 64), np.float32)
    assert pieces(alpha) == 0
    alpha[5:15, 5:15] = 1
    assert pieces(alpha) == 1
    alpha[15:20, 15:20] = 1  # touches at a corner
    assert pieces(alpha) == 1
    alpha[40:50, 40:50] = 1
    assert pieces(alpha) == 2
    alpha[60, 60] = 1  # a speck is no piece
    assert pieces(alpha) == 2


def test_each_part_by_hand():
    mass = np.array([[10.0, 0.0], [10.0, 0.0], [10.0, 0.0], [5.0, 5.0]])
    assert mass_change(mass[:, :1]) == pytest.approx(0.5 / 4)
    assert colour_kept(mass, [0]) == pytest.approx((3 + 0.5) / 4)
    once_gone = np.array([[8.0], [8.0], [8.0], [1.0]])
    assert colour_kept(once_gone, [0]) == pytest.approx(3 / 4)
    alphas = np.zeros((2, 1, 64, 64), np.float32)
    alphas[:, 0, 10:20, 10:20] = 1
    alphas[1, 0, 40:50, 40:50] = 1
    assert number_kept(alphas, WORLDS["rigid_body"]) == pytest.approx(1 / 2)
    alphas[:, 0, 10:20, 20:40] = 1
    alphas[1, 0, 40:50, 50:60] = 1
    assert number_kept(alphas, WORLDS["phase_change"]) == 1.0  # a block and what has melted


def test_an_empty_picture_keeps_nothing():
    world = WORLDS["fluid"]
    assert permanence(np.zeros((12, 5, 64, 64), np.float32), world) == 0.0


def test_the_law_score_is_its_residual_scaled_and_bounded():
    clips, prompts = toyworld.sample("collision", 3, seed=5)
    order = torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(2))
    clips = torch.cat([clips, clips[:, :, order]])
    found = toyworld.evaluate(clips, "collision", prompts * 2)
    assert torch.equal(found.residual, toyworld.law_residual(clips, "collision"))
    assert torch.equal(found.law, toyworld.score(clips, "collision"))
    assert torch.equal(found.permanence, toyworld.permanence(clips, "collision"))
    best, worst = CALIBRATION["collision"]
    assert torch.allclose(found.law, ((worst - found.residual) / (worst - best)).clamp(0, 1), atol=1e-6)
    assert found.residual[3:].min() > found.residual[:3].max()
