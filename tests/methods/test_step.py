"""Noise levels in a step's own words."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.step import shifted


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_a_shift_multiplies_noise_over_signal_and_leaves_the_ends(shift):
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = shifted(u, shift)
    inner = slice(1, -1)
    ratio = sigma[inner] / (1 - sigma[inner])
    torch.testing.assert_close(ratio, shift * u[inner] / (1 - u[inner]))
    assert sigma[[0, -1]].tolist() == [0.0, 1.0]
