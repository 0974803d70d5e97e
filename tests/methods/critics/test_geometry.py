"""Trajectory geometry on paths whose statistics are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from latent_physics.methods.critics import CriticError, TrajectoryGeometry
from latent_physics.methods.critics.geometry import (
    PAST,
    STATISTICS,
    extrapolation,
    linear_residuals,
    statistics,
    turning_angles,
)
from torch import Tensor

from .linear_world import LinearWorld, brightening


def circle(step: float, count: int = 30, radius: float = 2.0) -> Tensor:
    """Points on a circle, `step` radians apart: `1 count 2`."""
    angle = step * torch.arange(count, dtype=torch.float64)
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)[None]


def test_straight_even_path_has_statistics_of_0() -> None:
    path = torch.arange(12, dtype=torch.float64)[None, :, None] * torch.randn(1, 1, 5, dtype=torch.float64)
    found = statistics(path + 3)
    assert list(found) == list(STATISTICS)
    for name, value in found.items():
        assert float(value) == pytest.approx(0, abs=1e-6), name


@pytest.mark.parametrize("step", [0.01, 0.3, 1.0])
def test_circle_turns_by_its_step(step: float) -> None:
    """Equal steps; each turns by `step`; the second difference of a chord of length L is 2 L sin(step /
    2)."""
    found = statistics(circle(step))
    assert float(found["turning"]) == pytest.approx(step, rel=1e-6)
    assert float(found["acceleration"]) == pytest.approx(2 * math.sin(step / 2), rel=1e-6)
    assert float(found["step_variation"]) == pytest.approx(0, abs=1e-6)
    assert float(found["turning_variation"]) == pytest.approx(0, abs=1e-6)


def test_uneven_steps_on_a_line() -> None:
    """Steps 1, 3, 1, 3 ...: mean 2, deviation 1, every second difference 2, no turn."""
    steps = torch.tensor([1.0, 3.0] * 6, dtype=torch.float64)
    path = torch.cat([torch.zeros(1), steps.cumsum(0)])[None, :, None] * torch.tensor([0.6, 0.8])
    found = statistics(path)
    assert float(found["step_variation"]) == pytest.approx(0.5)
    assert float(found["acceleration"]) == pytest.approx(1.0)
    assert float(found["turning"]) == pytest.approx(0, abs=1e-6)


def test_path_that_turns_back_turns_by_pi() -> None:
    path = torch.tensor([0.0, 1, 2, 1, 0])[None, :, None]
    torch.testing.assert_close(turning_angles(path.diff(dim=1)), torch.tensor([[0.0, math.pi, 0.0]]))


def test_a_pause_is_no_turn() -> None:
    path = torch.tensor([[0.0, 0], [1, 0], [1, 0], [1, 1]])[None]
    torch.testing.assert_close(turning_angles(path.diff(dim=1)), torch.zeros(1, 2))


def test_extrapolation_is_the_least_squares_line() -> None:
    values = torch.randn(PAST, dtype=torch.float64)
    times = torch.arange(-PAST, 0, dtype=torch.float64)
    slope = ((times - times.mean()) * (values - values.mean())).sum() / (times - times.mean()).square().sum()
    torch.testing.assert_close(extrapolation(PAST) @ values, values.mean() - slope * times.mean())


def test_residual_equals_a_loop() -> None:
    path = torch.randn(2, 9, 3, dtype=torch.float64)
    design = torch.stack([torch.ones(PAST), torch.arange(float(PAST))], dim=1).double()
    for clip, row in zip(path, linear_residuals(path)):
        for number, value in enumerate(row):
            fit = torch.linalg.lstsq(design, clip[number : number + PAST]).solution
            expected = fit[0] + PAST * fit[1]
            torch.testing.assert_close(value, (clip[number + PAST] - expected).norm())


def test_statistics_do_not_depend_on_the_scale() -> None:
    path = torch.randn(1, 20, 4, dtype=torch.float64)
    for name, value in statistics(path).items():
        torch.testing.assert_close(value, statistics(1000 * path)[name], msg=name)


def test_still_clip_has_a_regular_path_and_a_closed_gate() -> None:
    found = TrajectoryGeometry(LinearWorld()).judge(torch.rand(1, 3, 1, 8, 8).expand(-1, -1, 20, -1, -1), 8.0)
    assert float(found.implausibility) == 0
    assert float(found.gate) == 0
    assert float(found.score) == 0


def test_a_jump_is_less_regular_and_the_curve_shows_when() -> None:
    smooth = brightening(24)
    jump = smooth.clone()
    jump[:, :, 12:] = 1 - jump[:, :, 12:]
    critic = TrajectoryGeometry(LinearWorld())
    even, broken = critic.judge(smooth, 8.0), critic.judge(jump, 8.0)
    assert float(even.implausibility) == pytest.approx(0, abs=1e-3)
    assert float(broken.implausibility) > 1
    assert float(broken.times[broken.curve[0].argmax()]) in (10 / 8, 12 / 8)


def test_batch_equals_singles() -> None:
    clips = torch.rand(3, 3, 18, 8, 8, generator=torch.Generator().manual_seed(2))
    critic = TrajectoryGeometry(LinearWorld())
    together, alone = critic.judge(clips, 8.0), [critic.judge(clip[None], 8.0) for clip in clips]
    for name in ("implausibility", "motion", "gate", "curve", "maps"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(CriticError, match="needs 10 frames or more and was given 9"):
        TrajectoryGeometry(LinearWorld()).judge(torch.rand(1, 3, 9, 8, 8), 8.0)
