"""Each world's closed-form motion against an independent computation of its law."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.devtools import toy_size
from latent_physics.toyworld import canvas
from latent_physics.toyworld.canvas import (
    COLOURS,
    COLUMNS,
    FRAMES,
    ROWS,
    SIZE,
    area_means,
    box,
    disc,
    gaussian,
    moments,
    unmix,
)
from latent_physics.toyworld.corruption import (
    PACES,
    VIOLATIONS,
    backwards,
    corrupted,
    frozen,
    scaled,
    shuffled,
    warped,
    wrong_constants,
)
from latent_physics.toyworld.worlds import WORLDS
from latent_physics.toyworld.worlds.base import balance
from latent_physics.toyworld.worlds.fluid import upstream
from latent_physics.toyworld.worlds.rigid_body import bounce_height
from latent_physics.toyworld.worlds.thermal import blur


def integrate_bounce(
    time: float, y: float, speed: float, floor: float, gravity: float, restitution: float, dt: float = 1e-4
) -> float:
    """The same ball by small steps."""
    for _ in range(round(time / dt)):
        speed += gravity * dt
        y += speed * dt
        if y > floor and speed > 0:
            y, speed = floor, -restitution * speed
    return y


@settings(deadline=None, max_examples=8)
@given(y=st.floats(8, 40), speed=st.floats(-1.5, 1.5), time=st.floats(0, 33))
def test_bouncing_ball_equals_small_steps(y, speed, time):
    constants = WORLDS["rigid_body"].constants
    exact = bounce_height(time, y, speed, 50.0, constants)
    assert exact == pytest.approx(integrate_bounce(time, y, speed, 50.0, **constants), abs=0.05)


def test_vortex_keeps_area_and_composes():
    constants = WORLDS["fluid"].constants
    x, y = upstream(5.0, 1.0, constants, COLUMNS, ROWS)
    determinant = np.gradient(x, axis=1) * np.gradient(y, axis=0) - np.gradient(x, axis=0) * np.gradient(
        y, axis=1
    )
    assert np.abs(determinant[2:-2, 2:-2] - 1).max() < 0.02  # divergence-free: the map keeps area
    back_x, back_y = upstream(5.0, -1.0, constants, COLUMNS, ROWS)
    radius = np.hypot(x - 31.5, y - 31.5)
    assert np.allclose(
        radius, np.hypot(back_x - 31.5, back_y - 31.5), atol=1e-3
    )  # and radius, either way round


@settings(deadline=None, max_examples=8)
@given(x=st.floats(20, 43), y=st.floats(20, 43), radius=st.floats(4, 9))
def test_a_finer_picture_measures_alike(x, y, radius):
    """A disc drawn on 96 pixels a side, brought to the 64 units of the measuring grid: mass and place
    stay."""
    rows, columns = (np.mgrid[0:96, 0:96] + 0.5) * 64 / 96 - 0.5
    fine = np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1).astype(np.float32)
    mass, across, down = moments(area_means(fine, 64))
    assert mass == pytest.approx(np.pi * (radius**2 + 1 / 12), rel=0.02)
    assert (across, down) == pytest.approx((x, y), abs=0.02)
    assert area_means(fine, 32) == pytest.approx(fine.reshape(32, 3, 32, 3).mean((1, 3)), abs=1e-5)


def test_a_graphs_toy_clips_are_the_worlds():
    assert (toy_size.SIDE, toy_size.FRAMES) == (SIZE, FRAMES)
    with pytest.raises(KeyError, match="gives no number to PALETTE"):
        toy_size.constant("PALETTE")


def test_a_stretch_of_units_is_one_of_pixels_and_never_empty(monkeypatch):
    monkeypatch.setattr(canvas, "SIZE", 96)
    assert canvas.in_pixels(slice(8, 9)) == slice(12, 14)
    assert canvas.in_pixels(slice(None, 2)) == slice(0, 3)
    assert canvas.in_pixels(slice(62, None)) == slice(93, 96)
    monkeypatch.setattr(canvas, "SIZE", 32)
    assert canvas.in_pixels(slice(9, 10)) == slice(4, 5)


@settings(deadline=None, max_examples=8)
@given(variance=st.floats(4, 20), more=st.floats(2, 20))
def test_blur_is_the_heat_equation(variance, more):
    """A Gaussian stays a Gaussian whose variance grows by what was added, and whose mass stays."""
    start = gaussian(31.5, 31.5, variance, 1.0)
    expected = gaussian(31.5, 31.5, variance + more, variance / (variance + more))
    assert np.abs(blur(start, more) - expected).max() < 2e-3


def test_collision_keeps_momentum_and_energy():
    world, rng = WORLDS["collision"], np.random.default_rng(0)
    for _ in range(20):
        value = world.draw(rng).values
        masses = np.array([value["r0"] ** 2, value["r1"] ** 2])
        before = np.array([value["v0"], value["v1"]])
        mean = (masses * before).sum() / masses.sum()
        after = 2 * mean - before
        assert (masses * after).sum() == pytest.approx((masses * before).sum())
        assert (masses * after**2).sum() == pytest.approx((masses * before**2).sum())
        assert before[0] - before[1] == pytest.approx(world.constants["closing"])


def test_melting_keeps_mass():
    world = WORLDS["phase_change"]
    frames = world.render(world.draw(np.random.default_rng(3)))
    mass = world.unmix(frames).sum((1, 2, 3))
    assert np.ptp(mass) < 0.03 * mass.mean()


@pytest.mark.parametrize("name", WORLDS)
def test_the_documents_and_the_code_have_one_law(name):
    """The table of worlds, word by word; and every constant that a law names is the one that is drawn."""
    world = WORLDS[name]
    title = name.replace("_", " ")
    document = (Path(canvas.__file__).parents[1] / "docs" / "toyworld.md").read_text(encoding="utf-8")
    assert f"\n| {title} | {world.law} | " in document
    first = next(iter(world.constants.values()))
    assert re.search(rf"(?<![\d.]){first:g}(?![\d.])", world.law)


@pytest.mark.parametrize("name", WORLDS)
def test_scenes_stay_in_view(name):
    """Nothing leaves the picture during a real clip: the mass of every thing stays above half of what it can
    be at least."""
    world, rng = WORLDS[name], np.random.default_rng(11)
    for _ in range(12):
        scene = world.draw(rng)
        frames = world.render(scene)
        assert frames.shape == (FRAMES, 3, SIZE, SIZE)
        assert frames.dtype == np.float32
        assert frames.min() >= 0
        assert frames.max() <= 1
        mass = world.unmix(frames).sum((-2, -1))
        for colour in scene.colours:
            assert mass[:, COLOURS.index(colour)].min() > 0.5 * world.mass_range[0]


@settings(deadline=None, max_examples=15)
@given(x=st.floats(15, 48), y=st.floats(15, 48), radius=st.floats(3, 9))
def test_disc_has_its_area_and_centre(x, y, radius):
    mass, found_x, found_y = moments(disc(x, y, radius))
    assert mass == pytest.approx(np.pi * radius**2, rel=0.05)
    assert (found_x, found_y) == pytest.approx((x, y), abs=0.1)


@settings(deadline=None, max_examples=15)
@given(left=st.floats(1, 30), top=st.floats(1, 30), width=st.floats(0.5, 30), height=st.floats(0.5, 30))
def test_box_has_its_exact_area(left, top, width, height):
    assert box(left, top, left + width, top + height).sum() == pytest.approx(width * height, rel=1e-4)


@settings(deadline=None, max_examples=10)
@given(colour=st.sampled_from(COLOURS), opacity=st.floats(0.2, 1.0), name=st.sampled_from(list(WORLDS)))
def test_unmixing_inverts_blending(colour, opacity, name):
    from latent_physics.toyworld.canvas import blend

    background = WORLDS[name].background
    alpha = opacity * disc(32, 32, 7)
    found = unmix(blend(background, alpha, colour)[None], background)[0]
    assert np.abs(found[COLOURS.index(colour)] - alpha)[20:44, 20:44].max() < 0.2
    assert found.sum() == pytest.approx(alpha.sum(), rel=0.1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_corruptions_are_times_of_the_clip(seed):
    rng = np.random.default_rng(seed)
    for make in [*PACES.values(), warped, frozen, shuffled]:
        times = make(rng)
        assert times.shape == (FRAMES,)
        assert times.min() >= 0
        assert times.max() <= FRAMES + 6
    assert sorted(shuffled(rng)) == list(range(FRAMES))
    assert np.ptp(frozen(rng)) == 0
    assert (np.diff(warped(rng)) > 0).all()


FASTEST = 1.8
"""Largest pace of a clip of the mixture."""


@pytest.mark.parametrize("name", PACES)
def test_a_wrong_pace_is_one_mistake_from_the_first_frame_to_the_last(name):
    """Time never stops or turns round, and its pace grows, falls or stays: it does not change its mind."""
    for seed in range(200):
        pace = np.diff(PACES[name](np.random.default_rng(seed)))
        turns = np.diff(pace)
        assert pace.min() >= 0.02 - 1e-9
        assert pace.max() <= FASTEST + 1e-9
        assert (turns >= -1e-9).all() or (turns <= 1e-9).all()
    pace = np.diff(warped(np.random.default_rng(0)))  # known to be bad: faster, then slower
    assert np.diff(pace).min() < 0 < np.diff(pace).max()


@pytest.mark.parametrize("name", WORLDS)
def test_a_wrong_constant_is_off_by_a_factor_of_its_world(name):
    world = WORLDS[name]
    least, most = world.mistaken
    assert 0 < least < most < 1
    first, right = next(iter(world.constants.items()))
    factors = set()
    for seed in range(100):
        ((constant, value),) = wrong_constants(world, np.random.default_rng(seed)).items()
        assert constant == first
        factors.add(value / right)
    assert all(least <= factor <= most or 1 / most <= factor <= 1 / least for factor in factors)
    assert min(factors) < 1 < max(factors)


def largest_step(world, frames: np.ndarray) -> float:
    """Largest change of the things' opacity from one frame to the next, px^2."""
    alphas = world.unmix(frames)
    return float(np.abs(np.diff(alphas, axis=0)).sum((1, 2, 3)).max())


@pytest.mark.parametrize("name", WORLDS)
def test_nothing_jumps_in_a_clip_of_the_mixture(name):
    """No change is larger than the right clip's largest, times what the fastest pace or the most mistaken
    constant makes of it, and a tenth for soft rims and pixels."""
    world, jumps = WORLDS[name], []
    most = 1.1 * max(FASTEST, 1 / world.mistaken[0])
    for seed in range(4):
        rng = np.random.default_rng((seed, 41))
        scene = world.draw(rng)
        right = largest_step(world, world.render(scene))
        for _ in range(2):
            assert largest_step(world, corrupted(world, scene, rng)) < most * right
        for factor in (world.mistaken[0], 1 / world.mistaken[0]):
            assert largest_step(world, scaled(world, scene, factor)) < most * right
        jumps.append(largest_step(world, VIOLATIONS["jump"](world, scene, rng)) / right)
    assert max(jumps) > most  # known to be bad


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_balance_is_bounded_and_zero_only_where_the_law_holds(seed):
    rng = np.random.default_rng(seed)
    observed, predicted, reference = rng.random((3, 5, 4, 4))
    found = balance(observed, predicted, reference, floor=1e-6)
    assert ((found >= 0) & (found <= 1)).all()
    assert balance(predicted, predicted, reference, floor=1e-6).max() == 0
    assert balance(reference, predicted, reference, floor=1e-9).min() == pytest.approx(1)


def test_violations_break_the_scene_they_are_given():
    """Each is another clip of the same scene; what stands elsewhere or vanishes does so from one moment
    on."""
    world = WORLDS["rigid_body"]
    scene = world.draw(np.random.default_rng(5))
    real = world.render(scene)
    found = {name: make(world, scene, np.random.default_rng(6)) for name, make in VIOLATIONS.items()}
    for name, frames in found.items():
        assert frames.shape == real.shape, name
        assert np.abs(frames - real).max() > 0.1, name
    np.testing.assert_array_equal(found["reversed"], real[::-1])
    assert backwards(np.random.default_rng(0))[0] == FRAMES - 1
    same = np.abs(found["teleport"] - real).max(axis=(1, 2, 3)) < 1e-6
    assert same[:8].all()
    assert not same[25:].any()
    moved = np.roll(real[-1] - world.background, 1, axis=2)
    assert np.abs(moved).sum() == pytest.approx(
        np.abs(found["teleport"][-1] - world.background).sum(), rel=1e-4
    )
    gone = np.abs(found["vanish"] - world.background).max(axis=(1, 2, 3)) == 0
    assert 6 <= gone.sum() <= 13
    np.testing.assert_array_equal(found["vanish"][~gone], real[~gone])
