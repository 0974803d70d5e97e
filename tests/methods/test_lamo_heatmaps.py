"""The two heatmaps against loops over eqs 10 to 14."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods.lamo import MotionFieldPredictor, drift_heatmap, field_heatmap, motion_amount


def naive_drift(latent, lag, eps):
    batch, _, frames, height, width = latent.shape
    maps = torch.zeros(batch, frames - lag, height, width, dtype=latent.dtype)
    peaks = []
    for b in range(batch):
        sizes = []
        for t in range(frames - lag):
            change = latent[b, :, t + lag] - latent[b, :, t]
            drift = sum(change[:, h, w] for h in range(height) for w in range(width)) / (height * width)
            sizes.append(drift.norm())
            for h in range(height):
                for w in range(width):
                    maps[b, t, h, w] = abs(torch.dot(change[:, h, w], drift)) / (drift.norm() + eps)
        peaks.append(int(torch.stack(sizes).argmax()))
    return maps, peaks


@settings(deadline=None, max_examples=10)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 3),
    lag=st.integers(1, 3),
    extra=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
def test_drift_heatmap_is_eq_12(batch, channels, lag, extra, height, width):
    latent = torch.randn(batch, channels, lag + extra, height, width, dtype=torch.float64)
    maps, peak = drift_heatmap(latent, lag)
    expected, peaks = naive_drift(latent, lag, 1e-6)
    assert torch.allclose(maps, expected)
    assert peak.tolist() == peaks


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("with_cond", [False, True])
def test_field_heatmap_is_eq_14(order, with_cond):
    torch.manual_seed(order)
    predictor = MotionFieldPredictor(3, 5, width=8, blocks=1, order=order).double()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    latent = torch.randn(2, 3, 5, 4, 3, dtype=torch.float64)
    cond = torch.randn(2, 5, dtype=torch.float64) if with_cond else None
    maps, peak = field_heatmap(latent, predictor, cond, lag=2)
    assert maps.shape == (2, 3, 4, 3)
    assert peak.tolist() == naive_drift(latent, 2, 1e-6)[1]
    for b in range(2):
        c = None if cond is None else cond[b : b + 1]
        still = sum(latent[b : b + 1, :, t] for t in range(5)) / 5
        nothing = torch.zeros_like(still) if order == 2 else None
        for t in range(3):
            now = latent[b : b + 1, :, t]
            change = (
                None if order == 1 else (now - latent[b : b + 1, :, t - 1] if t else torch.zeros_like(now))
            )
            expected = (predictor(now, c, change) - predictor(still, c, nothing)).norm(dim=1)[0]
            assert torch.allclose(maps[b, t], expected)


def test_a_moving_square_is_found():
    latent = torch.zeros(1, 4, 6, 8, 8)
    latent[:, :, :3, 2:4, 2:4] = 1.0
    latent[:, :, 3:, 5:8, 4:8] = 1.0
    maps, peak = drift_heatmap(latent, lag=1)
    assert peak.item() == 2
    changed = torch.zeros(8, 8, dtype=torch.bool)
    changed[2:4, 2:4] = changed[5:8, 4:8] = True
    assert (maps[0, 2][changed] > 0.9).all()
    assert not maps[0, 2][~changed].any()
    assert not maps[0, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 1, 8, 8), (1, 4, 2, 8, 8)])
def test_too_short_clips_are_refused(shape):
    predictor = MotionFieldPredictor(4, 5, width=8, blocks=1)
    with pytest.raises(ValueError, match="latent"):
        drift_heatmap(torch.zeros(shape))
    with pytest.raises(ValueError, match="latent"):
        field_heatmap(torch.zeros(shape), predictor)


@pytest.mark.parametrize(("frames", "skip", "left"), [(6, 0, 0), (6, 2, 2), (6, 9, 3), (3, 2, 0)])
def test_skipped_maps_are_empty_and_no_peak(frames, skip, left):
    """The first frame jumps, as a causal VAE's does; one map is always left."""
    torch.manual_seed(0)
    latent = torch.randn(2, 3, frames, 4, 4, dtype=torch.float64)
    latent[:, :, 0] += 100
    predictor = MotionFieldPredictor(3, 5, width=8, blocks=1).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    whole = {"drift": drift_heatmap(latent), "field": field_heatmap(latent, predictor)}
    cut = {"drift": drift_heatmap(latent, skip=skip), "field": field_heatmap(latent, predictor, skip=skip)}
    for name, (maps, peak) in cut.items():
        assert torch.equal(maps[:, left:], whole[name][0][:, left:])
        assert not maps[:, :left].any()
        assert (peak >= left).all()
        assert (whole[name][1] == 0).all()
    with pytest.raises(ValueError, match="skip is -1"):
        drift_heatmap(latent, skip=-1)


def test_motion_amount_is_the_mean_change_in_standard_deviations():
    torch.manual_seed(0)
    latent = torch.randn(2, 3, 7, 4, 5)
    array = latent.double().numpy()
    for lag, skip in ((1, 0), (2, 1), (3, 2)):
        change = (array[:, :, lag:] - array[:, :, :-lag])[:, :, skip:]
        expected = [np.sqrt((part**2).mean()) / clip.std() for part, clip in zip(change, array)]
        np.testing.assert_allclose(motion_amount(latent, lag, skip).numpy(), expected, rtol=1e-5)


def test_motion_amount_of_a_still_clip_is_0_and_of_unrelated_frames_the_root_of_2():
    torch.manual_seed(1)
    still = torch.randn(1, 4, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    assert motion_amount(still).item() == 0
    assert motion_amount(torch.ones(1, 2, 4, 3, 3)).item() == 0
    unrelated = torch.randn(1, 8, 20, 16, 16)
    assert motion_amount(unrelated).item() == pytest.approx(2**0.5, rel=0.02)
    assert motion_amount(0.1 * unrelated + 5).item() == pytest.approx(2**0.5, rel=0.02)


def test_motion_amount_grows_with_speed():
    ramp = torch.arange(64.0).view(1, 1, 1, 1, 64).sin()
    slow, fast = (torch.cat([ramp.roll(step * t, -1) for t in range(8)], dim=2) for step in (0, 1))
    assert motion_amount(slow).item() == 0 < motion_amount(fast).item()
