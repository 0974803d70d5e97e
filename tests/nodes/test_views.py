"""Overlays and the correspondence of decoded and latent frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

from latent_physics.nodes.views import figures

pytestmark = pytest.mark.comfy


@settings(deadline=None, max_examples=50)
@given(rate=st.sampled_from([1, 4, 6, 8]), latents=st.integers(2, 40))
def test_frames_follow_the_causal_compression(rate, latents):
    """Frame 0 is latent frame 0; then `rate` frames per latent frame."""
    images = 1 + rate * (latents - 1)
    groups = [0] + [1 + n // rate for n in range(images - 1)]
    assert [figures.latent_frame(n, images, latents) for n in range(images)] == groups
    for t in range(latents):
        assert figures.decoded_frame(t, images, latents) == max(n for n in range(images) if groups[n] == t)


def test_frames_of_single_images():
    assert figures.decoded_frame(0, 1, 1) == 0
    assert figures.latent_frame(0, 1, 1) == 0


def test_overlay_covers_the_hot_and_leaves_the_cold():
    images = torch.full((5, 16, 16, 3), 0.25)
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 1.0
    shown = figures.overlay(images, maps, 2, 1.0)
    heat = torch.tensor(0.765625)  # bilinear, an eighth of a cell off its middle on both axes
    expected = 0.25 * (1 - heat) + figures.heat_colours(heat) * heat
    assert torch.allclose(shown[0, 5:7, 9:11], expected.expand(2, 2, 3), atol=1e-4)
    assert torch.equal(shown[0, 12:], images[0, 12:])
    assert torch.equal(shown[1:], images[1:])
    assert torch.equal(figures.overlay(images, maps, 2, 0.0), images)
    half = figures.overlay(images, maps, 2, 0.5)
    assert torch.allclose(half - images, 0.5 * (shown - images), atol=1e-6)


def test_heat_is_monotone_in_brightness():
    colours = figures.heat_colours(torch.linspace(0, 1, 50))
    brightness = colours @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (brightness.diff() > 0).all()
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_unit_range_is_per_clip_and_keeps_zeros():
    maps = torch.stack([torch.zeros(2, 3, 3), 7 * torch.rand(2, 3, 3)])
    scaled = figures.unit_range(maps)
    assert not scaled[0].any()
    assert scaled[1].max() == 1


def test_plot_is_an_image():
    curve = figures.Curve(label="a", x=[0, 1, 2], y=[1.0, 0.1, 0.01])
    image = figures.plot(
        [figures.Panel(title="t", x_label="x", curves=[curve], log=True, shaded=(0.5, 2.5), note="n")],
        width=320,
        height=200,
    )
    assert image.shape == (1, 200, 320, 3)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.5 < image.max() <= 1
