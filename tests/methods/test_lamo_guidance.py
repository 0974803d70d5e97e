"""Motion Prior Guidance against autograd through eqs 8 and 9, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods.lamo import (
    GuidanceTrace,
    MotionFieldPredictor,
    MotionPriorGuidance,
    guidance_loss,
    largest_eigenvalue,
    stable_step,
)
from latent_physics.methods.step import SamplingStep, flow_level, gain_of
from torch import Tensor


def make_predictor(
    channels: int = 3, order: int = 1, dtype: torch.dtype = torch.float64
) -> MotionFieldPredictor:
    predictor = MotionFieldPredictor(channels, 5, width=8, blocks=2, order=order).to(dtype)
    generator = torch.Generator().manual_seed(order)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(
                0.5 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            )
    return predictor


def naive_loss(x0: Tensor, predictor: MotionFieldPredictor, cond: Tensor | None, lag: int) -> Tensor:
    """Eq 8 pair by pair, sample by sample."""
    losses = []
    for b in range(x0.shape[0]):
        terms = []
        for i in range(predictor.order - 1, x0.shape[2] - lag):
            change = (x0[b, :, i] - x0[b, :, i - 1])[None] if predictor.order == 2 else None
            field = predictor(x0[b, :, i][None], None if cond is None else cond[b][None], change)[0]
            terms.append(((x0[b, :, i] + field - x0[b, :, i + lag]) ** 2).sum())
        losses.append(sum(terms) / len(terms))
    return torch.stack(losses)


def make_step(
    noisy: Tensor, gain: Tensor, index: int = 9, count: int = 10, cond: Tensor | None = None, **more
) -> SamplingStep:
    return SamplingStep(noisy=noisy, sigma=gain, gain=gain, index=index, count=count, cond=cond, **more)


def paper(predictor: MotionFieldPredictor, scale: float = 25.0, **more) -> MotionPriorGuidance:
    """Eq 9 as it stands, without a bound."""
    return MotionPriorGuidance(predictor, scale, bound=None, **more)


def denoise(prediction: str, noisy: Tensor, out: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, gain) of the parameterisation, by its textbook formula; `level` is sigma for flow, alpha_bar
    otherwise."""
    wide = level.view(-1, 1, 1, 1, 1)
    if prediction == "flow":
        return noisy - wide * out, gain_of("flow", level)
    gain = gain_of(prediction, torch.sqrt(1 - level), level)
    if prediction == "eps":
        return (noisy - torch.sqrt(1 - wide) * out) / torch.sqrt(wide), gain
    return torch.sqrt(wide) * noisy - torch.sqrt(1 - wide) * out, gain


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("with_cond", [False, True])
def test_edit_is_autograd_of_the_definition(prediction, order, with_cond):
    torch.manual_seed(0)
    predictor = make_predictor(order=order)
    noisy, out = torch.randn(2, 2, 3, 6, 4, 5, dtype=torch.float64)
    level = torch.tensor([0.3, 0.8], dtype=torch.float64)
    cond = torch.randn(2, 5, dtype=torch.float64) if with_cond else None
    out.requires_grad_()
    x0, gain = denoise(prediction, noisy, out, level)
    (gradient,) = torch.autograd.grad(naive_loss(x0, predictor, cond, 2).sum(), out)
    expected, _ = denoise(prediction, noisy, out.detach() - 25.0 * gradient, level)

    guided = paper(predictor, chunk=40).correct(x0.detach(), make_step(noisy, gain, cond=cond))
    edit, expected_edit = guided - x0.detach(), expected - x0.detach()
    assert (edit - expected_edit).norm() <= 1e-5 * expected_edit.norm()
    assert (edit - expected_edit).norm() <= 1e-10 * guided.norm()


@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    extra=st.integers(1, 4),
    lag=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    order=st.integers(1, 2),
    chunk=st.integers(1, 60),
)
def test_any_shape(batch, channels, extra, lag, height, width, order, chunk):
    predictor = make_predictor(channels=channels, order=order)
    x0 = torch.randn(batch, channels, lag + order - 1 + extra, height, width, dtype=torch.float64)
    leaf = x0.clone().requires_grad_()
    loss = naive_loss(leaf, predictor, None, lag)
    assert torch.allclose(guidance_loss(x0, predictor, lag=lag), loss)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    guided = paper(predictor, scale=2.0, lag=lag, chunk=chunk).correct(x0, make_step(x0, torch.ones(batch)))
    assert torch.allclose(guided - x0, -2.0 * gradient, rtol=1e-6, atol=1e-10)


def test_guidance_loss_is_differentiable():
    predictor = make_predictor()
    x0 = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: guidance_loss(x, predictor), x0)


def test_samples_do_not_see_each_other():
    predictor = make_predictor()
    x0, cond = torch.randn(3, 3, 5, 4, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    gain = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    guide = MotionPriorGuidance(predictor)
    together = guide.correct(x0, make_step(x0, gain, cond=cond))
    for b in range(3):
        alone = guide.correct(x0[b : b + 1], make_step(x0[b : b + 1], gain[b : b + 1], cond=cond[b : b + 1]))
        assert torch.allclose(together[b : b + 1], alone, rtol=1e-12)


def test_a_small_step_lowers_the_loss():
    predictor = make_predictor()
    x0 = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64)
    guided = MotionPriorGuidance(predictor, scale=0.01).correct(x0, make_step(x0, torch.ones(2)))
    assert (guidance_loss(guided, predictor) < guidance_loss(x0, predictor)).all()


@pytest.mark.parametrize(
    ("active", "count", "guided"),
    [(0.8, 10, 8), (0.7, 10, 7), (1.0, 4, 4), (0.0, 10, 0), (0.5, 5, 2), (0.8, 20, 16)],
)
def test_active_window(active, count, guided):
    predictor = make_predictor()
    x0 = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    guide = MotionPriorGuidance(predictor, active=active)
    changed = [
        not torch.equal(guide.correct(x0, make_step(x0, torch.ones(1), s, count)), x0) for s in range(count)
    ]
    assert changed == [s >= count - guided for s in range(count)]


def guided_steps(guide: MotionPriorGuidance, steps: list[SamplingStep]) -> list[bool]:
    return [not torch.equal(guide.correct(step.noisy, step), step.noisy) for step in steps]


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0, 12.0])
@pytest.mark.parametrize("count", [4, 20])
def test_the_window_ends_at_one_noise_level_whatever_the_schedule(shift, count):
    x0 = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    u = torch.linspace(1, 0, count + 1, dtype=torch.float64)[:-1]
    sigmas = shift * u / (1 + (shift - 1) * u)
    steps = [make_step(x0, one[None], index, count, level=one[None]) for index, one in enumerate(sigmas)]
    guide = MotionPriorGuidance(make_predictor(), start=0.9)
    assert guided_steps(guide, steps) == [float(one) <= 0.9 for one in sigmas]
    late = [
        make_step(x0, one[None], index, count // 2, level=one[None])
        for index, one in enumerate(sigmas[count // 2 :])
    ]
    assert guided_steps(guide, late) == [float(one) <= 0.9 for one in sigmas[count // 2 :]]


def test_the_window_by_percent_asks_the_models_own_schedule():
    x0 = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    shift = 5.0

    def percent_to_sigma(percent: float) -> float:
        return shift * (1 - percent) / (1 + (shift - 1) * (1 - percent))

    sigmas = [1.0, 0.98, 0.9524, 0.95, 0.5]  # 0.8 of the schedule is left at sigma 0.95238
    steps = [
        make_step(x0, torch.tensor([one]), 0, 1, level=torch.tensor([one]), percent_to_sigma=percent_to_sigma)
        for one in sigmas
    ]
    guide = MotionPriorGuidance(make_predictor(), active=0.8, window="percent")
    assert guided_steps(guide, steps) == [False, False, False, True, True]


def test_a_window_in_steps_does_not_look_at_the_noise():
    x0 = torch.randn(1, 3, 4, 2, 2, dtype=torch.float64)
    steps = [make_step(x0, torch.ones(1), index, 4, level=torch.ones(1)) for index in range(4)]
    assert guided_steps(MotionPriorGuidance(make_predictor(), active=0.5, window="steps"), steps) == [
        False,
        False,
        True,
        True,
    ]


def test_noise_levels_of_equal_signal_to_noise_are_equal():
    sigma = torch.tensor([0.1, 0.5, 0.93])
    assert torch.allclose(flow_level(1 - sigma, sigma), sigma)
    ratio = (1 - sigma) / sigma
    alpha_bar = ratio**2 / (1 + ratio**2)  # sqrt(alpha_bar / (1 - alpha_bar)) is that ratio
    assert torch.allclose(flow_level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt()), sigma)


def change_matrix(frames: int, lag: int, order: int) -> Tensor:
    """D of z -> z[i + lag] - z[i], i = order-1 .., written row by row."""
    rows = []
    for i in range(order - 1, frames - lag):
        row = torch.zeros(frames, dtype=torch.float64)
        row[i], row[i + lag] = -1, 1
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("frames", [5, 9, 13, 21, 33])
def test_the_largest_eigenvalue_is_that_of_a_power_iteration(frames, lag, order):
    change = change_matrix(frames, lag, order)
    vector = torch.randn(frames, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(20000):
        vector = change.T @ (change @ vector)
        vector /= vector.norm()
    found = vector @ change.T @ change @ vector
    assert found.item() == pytest.approx(largest_eigenvalue(frames, lag, order), rel=1e-5)
    assert stable_step(frames, lag, order) == pytest.approx(len(change) / found.item(), rel=1e-5)


def test_the_paper_s_step_at_the_lengths_of_real_clips():
    """2/P times the largest eigenvalue, by which eq 9 multiplies lambda g^2, at 33, 49 and 81 frames of
    Wan."""
    factors = [2 / (frames - 2) * largest_eigenvalue(frames, 2) for frames in (9, 13, 21)]
    assert factors == pytest.approx([1.03, 0.69, 0.41], abs=0.006)


@pytest.mark.parametrize("frames", [9, 21])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_bounded_step_multiplies_the_fastest_motion_by_one_minus_twice_its_share(frames, share):
    predictor = MotionFieldPredictor(2, 5, width=8, blocks=1).double()
    _, vectors = torch.linalg.eigh(change_matrix(frames, 2, 1).T @ change_matrix(frames, 2, 1))
    fastest = vectors[:, -1].view(1, 1, -1, 1, 1).expand(1, 2, -1, 3, 3).contiguous()
    for scale, gain in [(25.0, 0.95), (1e6, 0.5)]:
        step = make_step(fastest, torch.tensor([gain], dtype=torch.float64))
        guided = MotionPriorGuidance(predictor, scale, bound=share).correct(fastest, step)
        assert torch.allclose(guided, (1 - 2 * share) * fastest, atol=1e-12)


def test_below_the_bound_the_step_is_the_paper_s():
    predictor = make_predictor()
    x0 = torch.randn(2, 3, 9, 4, 4, dtype=torch.float64)
    step = make_step(x0, torch.tensor([0.02, 0.9], dtype=torch.float64))
    free, bounded = (
        paper(predictor).correct(x0, step) - x0,
        MotionPriorGuidance(predictor).correct(x0, step) - x0,
    )
    assert torch.equal(free[0], bounded[0])
    assert torch.allclose(bounded[1] / bounded[1].norm(), free[1] / free[1].norm())
    assert bounded[1].norm() < 0.1 * free[1].norm()


def test_scale_zero_returns_the_very_tensor():
    x0 = torch.randn(1, 3, 4, 2, 2)
    assert (
        MotionPriorGuidance(make_predictor(dtype=torch.float32), scale=0.0).correct(
            x0, make_step(x0, torch.ones(1))
        )
        is x0
    )


def test_a_still_clip_of_an_untrained_predictor_is_left_alone():
    predictor = MotionFieldPredictor(3, 5, width=8, blocks=1)
    still = torch.randn(1, 3, 1, 4, 4).expand(-1, -1, 6, -1, -1)
    assert torch.equal(MotionPriorGuidance(predictor).correct(still, make_step(still, torch.ones(1))), still)


def test_overshoot_begins_at_a_quarter_of_the_pairs():
    """With f = 0 the edit multiplies the fastest motion by 1 - 8 scale g^2 / pairs: it grows above pairs / (4
    g^2)."""
    frames, gain = 40, 0.5
    predictor = MotionFieldPredictor(2, 5, width=8, blocks=1).double()
    flicker = torch.ones(1, 2, frames, 3, 3, dtype=torch.float64)
    flicker[:, :, ::2] = -1
    limit = (frames - 1) / (4 * gain**2)
    for scale, grows in [(0.9 * limit, False), (1.1 * limit, True)]:
        guided = paper(predictor, scale=scale, lag=1).correct(
            flicker, make_step(flicker, torch.tensor([gain]))
        )
        before, after = guidance_loss(flicker, predictor, lag=1), guidance_loss(guided, predictor, lag=1)
        assert (after > before).item() is grows


def test_max_ratio_bounds_each_sample():
    predictor = make_predictor()
    x0, noisy = torch.randn(2, 2, 3, 6, 4, 4, dtype=torch.float64)
    gain = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    free = paper(predictor, scale=100).correct(x0, make_step(noisy, gain)) - x0
    bound = paper(predictor, scale=100, max_ratio=0.1).correct(x0, make_step(noisy, gain)) - x0
    limit = 0.1 * (x0 - noisy).flatten(1).norm(dim=1)
    assert bound[0].norm().item() == pytest.approx(limit[0].item())
    assert torch.allclose(bound[0] / bound[0].norm(), free[0] / free[0].norm())
    assert torch.allclose(bound[1], free[1])
    none = MotionPriorGuidance(predictor, max_ratio=0.0).correct(x0, make_step(noisy, gain))
    assert torch.equal(none, x0)


def test_direct_latent_edit_is_the_ablation():
    predictor = make_predictor()
    x0, noisy = torch.randn(2, 1, 3, 6, 4, 4, dtype=torch.float64)
    leaf = x0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(naive_loss(leaf, predictor, None, 2).sum(), leaf)
    before = noisy.clone()
    guide = MotionPriorGuidance(predictor, scale=3.0, edit="noisy")
    assert guide.edits_noisy
    assert guide.correct(x0, make_step(noisy, torch.full((1,), 0.01))) is x0
    assert torch.allclose(noisy, before - 3.0 * gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_inference_mode(dtype):
    predictor = make_predictor(dtype=torch.float32)
    x0, cond = torch.randn(1, 3, 6, 4, 4).to(dtype), torch.randn(1, 5)
    outside = MotionPriorGuidance(predictor, scale=0.1).correct(x0, make_step(x0, torch.ones(1), cond=cond))
    with torch.inference_mode():
        held, held_cond = x0.clone(), cond.clone()
        inside = MotionPriorGuidance(predictor, scale=0.1).correct(
            held, make_step(held, torch.ones(1), cond=held_cond)
        )
    assert outside.dtype == inside.dtype == dtype
    assert torch.equal(outside, inside)
    assert not outside.requires_grad


def test_gradients_of_the_predictor_are_left_alone():
    predictor = make_predictor(dtype=torch.float32)
    x0 = torch.randn(1, 3, 6, 4, 4)
    MotionPriorGuidance(predictor).correct(x0, make_step(x0, torch.ones(1)))
    assert all(parameter.grad is None for parameter in predictor.parameters())


def test_trace():
    predictor = make_predictor()
    x0 = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64)
    trace = GuidanceTrace(measure_after=True)
    guide = MotionPriorGuidance(predictor, scale=0.01, active=0.5, trace=trace)
    outputs = [guide.correct(x0, make_step(x0, torch.ones(2), s, 4)) for s in range(4)]
    assert [row.index for row in trace.rows] == [0, 1, 2, 3]
    assert [row.active for row in trace.rows] == [False, False, True, True]
    for row, out in zip(trace.rows, outputs):
        assert torch.allclose(row.loss_before, naive_loss(x0, predictor, None, 2))
        assert torch.allclose(row.edit_ratio, (out - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1))
        if row.active:
            assert torch.allclose(row.loss_after, naive_loss(out, predictor, None, 2))
        else:
            assert row.loss_after is None
    limit = stable_step(6, 2)
    assert [row.share[0].item() for row in trace.rows] == pytest.approx([0, 0, 0.01 / limit, 0.01 / limit])
    assert not any(row.bounded.any() for row in trace.rows)
    guide.reset()
    assert trace.rows == []
    cheap = MotionPriorGuidance(predictor, active=0.5, trace=GuidanceTrace())
    for s in range(4):
        cheap.correct(x0, make_step(x0, torch.ones(2), s, 4))
    assert [row.index for row in cheap.trace.rows] == [2, 3]
    assert cheap.trace.rows[0].loss_after is None


def test_the_trace_says_where_the_bound_acted():
    x0 = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64)
    guide = MotionPriorGuidance(make_predictor(), trace=GuidanceTrace())
    guide.correct(x0, make_step(x0, torch.tensor([0.9, 0.01], dtype=torch.float64)))
    (row,) = guide.trace.rows
    assert row.bounded.tolist() == [True, False]
    assert row.share.tolist() == pytest.approx([0.5, 25 * 0.01**2 / stable_step(6, 2)])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 1, 4, 4), "an image"),
        ((1, 3, 4, 4), "an image"),
        ((1, 3, 2, 4, 4), "2 latent frames"),
        ((1, 4, 6, 4, 4), "4 channels"),
    ],
)
def test_latents_that_cannot_be_guided(shape, said):
    x0 = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(ValueError) as caught:
        MotionPriorGuidance(make_predictor()).correct(x0, make_step(x0, torch.ones(1)))
    assert said in str(caught.value)


def test_order_two_needs_one_frame_more():
    x0 = torch.randn(1, 3, 3, 4, 4, dtype=torch.float64)
    MotionPriorGuidance(make_predictor()).correct(x0, make_step(x0, torch.ones(1)))
    with pytest.raises(ValueError, match="at least 4 latent frames"):
        MotionPriorGuidance(make_predictor(order=2)).correct(x0, make_step(x0, torch.ones(1)))


def test_nan_and_overflow():
    guide = paper(make_predictor(dtype=torch.float32), scale=1e30)
    x0 = torch.randn(1, 3, 3, 4, 4)
    broken = x0.clone()
    broken[0, 0, 1, 0, 0] = float("nan")  # the middle frame belongs to no pair at lag 2
    with pytest.raises(ValueError, match=r"NaN .* at step 10 of 10"):
        guide.correct(broken, make_step(broken, torch.ones(1)))
    with pytest.raises(ValueError, match="lower the strength"):
        guide.correct(x0, make_step(x0, torch.full((1,), 1e10)))


def test_what_half_precision_cannot_hold_is_refused():
    x0 = torch.randn(1, 3, 6, 4, 4).half()
    guide = paper(make_predictor(dtype=torch.float32), scale=1e5)  # finite in float32, infinite in float16
    with pytest.raises(ValueError, match="lower the strength"):
        guide.correct(x0, make_step(x0, torch.ones(1)))


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": -1.0},
        {"scale": float("nan")},
        {"active": 1.5},
        {"lag": 0},
        {"max_ratio": -0.5},
        {"edit": "eps"},
        {"bound": 0.0},
        {"bound": -1.0},
        {"bound": float("nan")},
        {"start": 1.1},
        {"window": "sigma"},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MotionPriorGuidance(make_predictor(), **bad)


def test_memory_estimate_covers_what_autograd_keeps():
    predictor = MotionFieldPredictor(4, 8, width=32, blocks=3).requires_grad_(False)
    guide = MotionPriorGuidance(predictor, chunk=4 * 16 * 16)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x0 = torch.randn(1, 4, 6, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        guide.correct(x0, make_step(x0, torch.ones(1)))
    weights = sum(parameter.numel() * 4 for parameter in predictor.parameters())
    estimate = guide.memory_required(tuple(x0.shape))
    assert 0.3 * estimate < sum(kept.values()) - weights < estimate
