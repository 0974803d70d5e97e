"""Motion consistency against LaMo's loss, and the gate that keeps still clips from winning."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.critics import (
    CriticError,
    MotionConsistency,
    gate_of_pool,
    latent_motion,
    motion_gate,
    pixel_motion,
    rank,
)
from latent_physics.methods.lamo import MotionFieldPredictor, guidance_loss


def make_predictor(order: int = 1, zero: bool = False) -> MotionFieldPredictor:
    predictor = MotionFieldPredictor(4, 8, width=16, blocks=1, order=order)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            )
        if zero:
            predictor.output.weight.zero_()
            predictor.output.bias.zero_()
    return predictor.eval()


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 7, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", [1, 2])
def test_l_guide_among_the_parts_is_lamos(order: int) -> None:
    predictor, clip = make_predictor(order), latents()
    cond = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    found = MotionConsistency(predictor, lag=2).judge(clip, 4.0, cond)
    torch.testing.assert_close(found.parts["l_guide"], guidance_loss(clip, predictor, cond, lag=2))
    seen = clip[:, :, 1:] if order == 1 else clip  # the first latent frame's own pair is left out
    torch.testing.assert_close(found.maps.sum(dim=(1, 2, 3)) / 4, guidance_loss(seen, predictor, cond, lag=2))


@pytest.mark.parametrize("order", [1, 2])
def test_the_first_latent_frame_does_not_dilute_the_share(order: int) -> None:
    """However far a causal VAE puts it from the others, and of as many pairs for both orders. A clip of a
    single pair is judged by that one."""
    predictor, clip = make_predictor(order, zero=True), latents(1)
    critic, moved = MotionConsistency(predictor, lag=2), latents(1)
    with torch.no_grad():
        predictor.output.bias.fill_(0.5)
    moved[:, :, 0] += 10
    for one in (clip, moved):
        found = critic.judge(one, 4.0)
        change = one[:, :, 3:] - one[:, :, 1:-2]
        expected = (0.5 - change).square().sum() / change.square().sum()
        torch.testing.assert_close(found.implausibility[0], expected)
        assert found.times.tolist() == [0.75, 1.0, 1.25, 1.5]
        assert found.curve.shape == (1, 4)
        assert found.maps[:, :3].eq(0).all()
        assert found.maps[:, 3:].gt(0).all()
    shortest = critic.judge(clip[:, :, : 2 + order], 4.0)
    assert shortest.curve.shape == (1, 1)
    assert shortest.times.tolist() == [(1 + order) / 4]


def test_a_predictor_of_no_motion_finds_all_change_unexpected() -> None:
    found = MotionConsistency(make_predictor(zero=True), lag=2).judge(latents(), 4.0)
    torch.testing.assert_close(found.implausibility, torch.ones(2))
    torch.testing.assert_close(found.curve.mean(1), torch.ones(2))


def test_still_latent_has_a_closed_gate_and_a_finite_share() -> None:
    still = latents(1)[:, :, :1].expand(-1, -1, 7, -1, -1)
    found = MotionConsistency(make_predictor(), lag=2).judge(still, 4.0)
    assert torch.isfinite(found.implausibility).all()
    assert float(found.score) == 0


def test_batch_equals_singles() -> None:
    critic, clips = MotionConsistency(make_predictor(order=2)), latents(3)
    together, alone = critic.judge(clips, 4.0), [critic.judge(clip[None], 4.0) for clip in clips]
    for name in ("implausibility", "motion", "gate", "curve", "maps"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_what_does_not_fit_the_predictor_is_refused() -> None:
    critic = MotionConsistency(make_predictor())
    with pytest.raises(CriticError, match="the latent has 5 channels, but the motion predictor reads 4"):
        critic.judge(torch.randn(1, 5, 7, 6, 6), 4.0)
    with pytest.raises(CriticError, match="at least 3 latent frames"):
        critic.judge(torch.randn(1, 4, 2, 6, 6), 4.0)


def test_motion_of_a_moving_square_is_the_change_it_makes() -> None:
    """A square of 10 x 10 pixels of 100 x 100 jumps from place to place: within the interval 2 % of the
    pixels change by 1,
    and the busiest 5 % hold them all."""
    clip = torch.zeros(1, 3, 9, 100, 100)
    for frame in range(9):
        clip[:, :, frame, 10 * frame : 10 * frame + 10, :10] = 1
    torch.testing.assert_close(pixel_motion(clip, 4.0), torch.tensor([200 / 500]))


def test_motion_is_the_same_at_any_frame_rate() -> None:
    """The same ramp of brightness, sampled at 8 and at 16 frames a second: 0.25 s change it by the same
    amount."""
    slow = torch.linspace(0, 1, 17)[None, None, :, None, None].expand(1, 3, -1, 8, 8)
    fast = torch.linspace(0, 1, 33)[None, None, :, None, None].expand(1, 3, -1, 8, 8)
    torch.testing.assert_close(pixel_motion(slow, 8.0), pixel_motion(fast, 16.0))
    torch.testing.assert_close(pixel_motion(slow, 8.0), torch.tensor([2 / 16]))


def test_motion_of_one_frame_and_of_latents() -> None:
    assert float(pixel_motion(torch.rand(1, 3, 1, 8, 8), 8.0)) == 0
    ramp = torch.arange(5.0)[None, None, :, None, None].expand(1, 4, -1, 6, 6)
    torch.testing.assert_close(latent_motion(ramp, 4.0), torch.ones(1))


def test_first_latent_frame_is_no_motion() -> None:
    """A causal video VAE encodes it by itself: it differs from the others in a still clip too."""
    still = torch.zeros(1, 4, 5, 6, 6)
    still[:, :, 0] = 1
    assert float(latent_motion(still, 4.0)) == 0
    still[:, :, 3] = 1
    assert float(latent_motion(still, 4.0)) > 0.3


def test_gate_opens_between_still_and_moving() -> None:
    torch.testing.assert_close(
        motion_gate(torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0]), 0.1, 0.3), torch.tensor([0, 0, 0.5, 1, 1])
    )


def test_gate_of_a_pool_closes_for_the_one_that_hardly_moves() -> None:
    gate = gate_of_pool(torch.tensor([0.6, 0.5, 0.7, 0.08, 0.0]), "frames")
    torch.testing.assert_close(gate, torch.tensor([1.0, 1, 1, 0.076 / 0.246, 0]))
    assert torch.equal(gate_of_pool(torch.zeros(4), "frames"), torch.zeros(4)), "a pool of still clips"


@pytest.mark.parametrize("motion", [[0.02, 0.2], [0.02, 0.02, 0.2, 0.2], [0.2, 0.02, 0.2, 0.02, 0.2, 0.02]])
def test_the_stiller_half_of_an_even_pool_is_measured_by_the_other(motion: list[float]) -> None:
    """Median 0.11 by hand, so a clip counts as moving from 0.055 on."""
    gate = gate_of_pool(torch.tensor(motion), "frames")
    torch.testing.assert_close(gate, torch.tensor([1.0 if one > 0.1 else 0.016 / 0.051 for one in motion]))


def test_still_clip_never_ranks_first() -> None:
    """However implausible the others are, and however perfect the still one."""
    assert rank(torch.tensor([1.0, 0.01, 0.02]), torch.tensor([0.0, 1.0, 1.0])) == [2, 1, 0]
    assert rank(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0])) == [0, 1], (
        "equals stay in the order given"
    )
