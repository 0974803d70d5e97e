"""How far tracked things get, on paths that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from latent_physics.toyworld import dynamic_degree, sample
from latent_physics.toyworld.travel import travel, way


def block(columns: list[int], size: int = 8) -> np.ndarray:
    """Opacities (T, 1, H, W) of a square whose left edge is at these columns."""
    alphas = np.zeros((len(columns), 1, 64, 64), np.float32)
    for frame, column in enumerate(columns):
        alphas[frame, 0, 20 : 20 + size, column : column + size] = 1
    return alphas


def test_a_thing_that_moves_a_pixel_a_frame_gets_four_in_a_window() -> None:
    assert way(block(list(range(5, 37)))) == pytest.approx(4.0)


def test_a_thing_that_grows_gets_as_far_as_its_radius() -> None:
    alphas = np.zeros((8, 1, 64, 64), np.float32)
    alphas[:4, 0, 27:37, 27:37], alphas[4:, 0, 24:40, 24:40] = 1, 1
    radii = [np.sqrt(2 * (size**2 - 1) / 12) for size in (10, 16)]  # of a square of that many pixels
    assert way(alphas) == pytest.approx(radii[1] - radii[0], rel=1e-5)


def test_a_thing_that_trembles_where_it_is_gets_nowhere() -> None:
    assert way(block([20, 21] * 16)) == pytest.approx(0.0, abs=1e-6)
    assert way(np.zeros((16, 3, 64, 64), np.float32)) == 0.0


def test_flicker_counts_as_change_and_not_as_way() -> None:
    clips, _ = sample("rigid_body", 2, 5)
    still = clips[:, :, :1].expand_as(clips)
    bright = 1 + 0.2 * torch.rand(1, 1, clips.shape[2], 1, 1, generator=torch.Generator().manual_seed(0))
    flicker = ((still - 0.5) * bright + 0.5).clamp(0, 1)
    assert travel(still, "rigid_body").max() == 0
    assert travel(flicker, "rigid_body").max() < 0.05 * travel(clips, "rigid_body").min()
    assert dynamic_degree(flicker, "rigid_body").max() > 0
