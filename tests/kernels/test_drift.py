"""Motion drift against its definition (LaMo eqs 1, 4, 5) and against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.kernels.drift import drift_loss, motion_drift

SIZES = st.integers(1, 4)
SHAPES = st.tuples(SIZES, SIZES, st.integers(2, 6), SIZES, SIZES)
FEW = settings(deadline=None, max_examples=15)


def by_definition(latent, lag):
    """Eq 1, then eq 4, in float64."""
    change = latent.double()[:, :, lag:] - latent.double()[:, :, :-lag]
    return change.mean(dim=(3, 4))


def loss_by_definition(x0, target, lag, eps):
    """Eq 5 with loops over samples and frames."""
    predicted, true = by_definition(x0, lag), by_definition(target, lag)
    terms = [
        (predicted[b, :, i] - true[b, :, i]).norm() ** 2 / (true[b, :, i].detach().norm() ** 2 + eps)
        for b in range(predicted.shape[0])
        for i in range(predicted.shape[2])
    ]
    return torch.stack(terms).mean()


@FEW
@given(SHAPES, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.data())
def test_drift_is_the_mean_change(shape, dtype, data):
    lag = data.draw(st.integers(1, shape[2] - 1))
    latent = torch.randn(shape).to(dtype)
    drift = motion_drift(latent, lag)
    assert drift.dtype == torch.float32
    assert drift.shape == (shape[0], shape[1], shape[2] - lag)
    torch.testing.assert_close(drift.double(), by_definition(latent, lag), rtol=1e-5, atol=1e-6)


@FEW
@given(SHAPES, st.data())
def test_loss_and_gradient_by_definition(shape, data):
    lag = data.draw(st.integers(1, shape[2] - 1))
    x0, target = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    ours, theirs = x0.clone().requires_grad_(), x0.clone().requires_grad_()
    loss, expected = drift_loss(ours, target, lag), loss_by_definition(theirs, target, lag, 1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_decomposition_into_length_and_direction():
    """With eps negligible the loss is (r - 1)^2 + 2 r (1 - cos)."""
    target = torch.randn(1, 6, 2, 3, 3, dtype=torch.float64)
    x0 = torch.randn_like(target)
    predicted, true = motion_drift(x0, 1)[0, :, 0].double(), motion_drift(target, 1)[0, :, 0].double()
    ratio = predicted.norm() / true.norm()
    cosine = torch.dot(predicted, true) / (predicted.norm() * true.norm())
    expected = (ratio - 1) ** 2 + 2 * ratio * (1 - cosine)
    torch.testing.assert_close(drift_loss(x0, target, lag=1, eps=1e-12), expected, rtol=1e-5, atol=0)


def test_limiting_cases():
    clip = torch.randn(2, 4, 5, 3, 3)
    assert drift_loss(clip, clip) == 0
    still = torch.randn(2, 4, 1, 3, 3).expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(drift_loss(still.contiguous(), clip, eps=0.0), torch.tensor(1.0))  # r = 0
    torch.testing.assert_close(
        drift_loss(-clip, clip, eps=0.0), torch.tensor(4.0)
    )  # opposite direction: r = 1, cos = -1
    assert torch.isfinite(drift_loss(clip, still.contiguous()))


def test_gradient_numerically_and_only_to_the_estimate():
    x0 = torch.randn(2, 2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: drift_loss(x, target.detach()), x0)
    assert torch.autograd.gradgradcheck(lambda x: drift_loss(x, target.detach()), x0)
    drift_loss(x0, target).backward()
    assert target.grad is None


@pytest.mark.parametrize(
    ("shape", "lag", "words"),
    [
        ((2, 3, 4, 5), 2, "five dimensions"),
        ((1, 2, 2, 3, 3), 2, "needs at least 3"),
        ((1, 2, 1, 3, 3), 1, "needs at least 2"),
        ((1, 2, 5, 3, 3), 0, "at least 1 latent frame"),
        ((1, 2, 5, 0, 3), 2, "every dimension"),
    ],
)
def test_bad_latents_are_refused_with_a_sentence(shape, lag, words):
    with pytest.raises(ValueError, match=words):
        motion_drift(torch.zeros(shape), lag)
    with pytest.raises(ValueError, match=words):
        drift_loss(torch.zeros(shape), torch.zeros(shape), lag)


def test_other_bad_input_is_refused():
    clip = torch.zeros(2, 2, 4, 3, 3)
    with pytest.raises(ValueError, match="floating"):
        motion_drift(clip.int())
    with pytest.raises(ValueError, match="must be equal"):
        drift_loss(clip, clip[:1])


def test_samples_are_weighted_one_by_one():
    torch.manual_seed(0)
    x0, target = torch.randn(2, 3, 4, 5, 3, 3, dtype=torch.float64)
    weight = torch.tensor([0.2, 1.0, 0.0], dtype=torch.float64)
    alone = torch.stack([drift_loss(x0[b : b + 1], target[b : b + 1], eps=0.1) for b in range(3)])
    torch.testing.assert_close(drift_loss(x0, target, eps=0.1, weight=weight), (weight * alone).mean())
