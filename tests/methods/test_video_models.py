"""The table of video models: counts of frames, rates, and that its rows agree with one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from latent_physics.devtools import model_table
from latent_physics.methods.video_models import (
    MODELS,
    SPACES,
    main_model,
    native_fps,
    seconds_per_latent_frame,
)


@pytest.mark.parametrize(
    ("space", "frames", "latents"),
    [("wan2.1", 81, 21), ("ltxav", 97, 13), ("mochi", 85, 15), ("minimax_h3", 124, 37), ("cosmos1", 121, 16)],
)
def test_latent_frames_of_the_lengths_that_models_ship_with(space, frames, latents):
    rule = SPACES[space].frames
    assert rule.fits(frames)
    assert rule.latent_frames(frames) == latents


@given(space=st.sampled_from(list(SPACES)), frames=st.integers(-3, 400))
def test_the_longest_and_the_nearest_length_fit(space, frames):
    rule = SPACES[space].frames
    longest, nearest = rule.longest(frames), rule.nearest(frames)
    fitting = [count for count in range(frames + 1) if rule.fits(count)]
    assert longest == (fitting[-1] if fitting else 0)
    assert rule.fits(nearest)
    assert abs(nearest - frames) <= rule.period or nearest == rule.start + rule.period


@given(space=st.sampled_from(list(SPACES)), periods=st.integers(1, 20))
def test_seconds_are_counted_from_the_frames_themselves(space, periods):
    """A clip longer by `periods` periods lasts longer by its frames and has that many more latent frames."""
    rule, fps = SPACES[space].frames, native_fps(space)
    short, long = rule.start + rule.period, rule.start + (1 + periods) * rule.period
    more = rule.latent_frames(long) - rule.latent_frames(short)
    assert seconds_per_latent_frame(space, fps) == pytest.approx((long - short) / fps / more)


@pytest.mark.parametrize(
    ("space", "fps", "seconds"),
    [
        ("wan2.1", 16.0, 0.25),
        ("ltxv", 25.0, 0.32),
        ("mochi", 30.0, 0.2),
        ("minimax_h3", 24.0, 17 / 5 / 24),
        ("toy", 16.0, None),
        ("wan2.2", None, None),
    ],
)
def test_a_latent_frame_lasts_as_long_as_its_video_frames(space, fps, seconds):
    assert seconds_per_latent_frame(space, fps) == (None if seconds is None else pytest.approx(seconds))


def test_what_is_not_in_the_table_has_no_rate():
    assert native_fps("unheard of") is None
    assert main_model("toy") is None


def test_rows_agree_with_one_another():
    assert {model.space for model in MODELS.values()} == set(SPACES)
    for model in MODELS.values():
        space, (width, height, frames) = SPACES[model.space], model.size
        assert space.frames.fits(frames), model.name
        assert width % model.side_multiple == height % model.side_multiple == 0, model.name
        assert model.side_multiple % space.pixels == 0, model.name
    assert len({model.title for model in MODELS.values()}) == len(MODELS)


def test_the_page_of_models_is_written_from_the_table():
    written = model_table.PAGE.read_text(encoding="utf-8")
    assert written == model_table.page(), "run `python -m devtools.model_table`"
    for model in MODELS.values():
        assert f"| `{model.name}` | `{model.space}` | {SPACES[model.space].channels} |" in written
