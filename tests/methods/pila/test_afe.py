import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from latent_physics.methods.pila import bank
from latent_physics.methods.pila.afe import (
    CORE_SLOTS,
    PHASES,
    AnchoredFieldEstimation,
    active_slots,
    integrate_displacement,
    speed,
    stress,
)
from latent_physics.training.study.ablations import ScaffoldFields


def estimation(hidden=16):
    torch.manual_seed(0)
    return AnchoredFieldEstimation(hidden, 8)


@settings(deadline=None, max_examples=8)
@given(
    some.integers(1, 3), some.integers(1, 6), some.integers(3, 7), some.integers(3, 7), some.integers(0, 99)
)
def test_invariances_hold_for_any_size(batch, frames, height, width, seed):
    feature = torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))
    fields, scaffold = estimation()(feature)
    assert set(fields) == set(bank.SLOTS)
    assert scaffold.shape[1] == 4
    assert fields["p"].mean(dim=(1, 2, 3, 4)).abs().max() < 1e-5
    assert fields["rho"].min() > 0
    assert torch.equal(fields["d"][:, :, frames // 2], torch.zeros_like(fields["d"][:, :, 0]))
    assert 0 <= fields["alpha"].min() <= fields["alpha"].max() <= 1
    torch.testing.assert_close(fields["sigma"], stress(fields["p"], fields["eps"]))


def test_displacement_is_the_midpoint_integral():
    velocity = torch.randn(1, 2, 6, 3, 3, dtype=torch.float64)
    path = integrate_displacement(velocity)
    expected = torch.zeros_like(path)
    for n in range(3, 5):  # forward from the middle frame
        expected[:, :, n + 1] = expected[:, :, n] + 0.5 * (velocity[:, :, n] + velocity[:, :, n + 1])
    for n in range(2, -1, -1):  # and backward
        expected[:, :, n] = expected[:, :, n + 1] - 0.5 * (velocity[:, :, n] + velocity[:, :, n + 1])
    torch.testing.assert_close(path, expected)


def test_stress_is_hookes_law_in_two_dimensions():
    p, strain = torch.tensor(2.0), torch.tensor([[0.3, 0.1], [0.1, -0.2]])
    expected = -p * torch.eye(2) + 2 * strain + strain.trace() * torch.eye(2)
    got = stress(p.reshape(1, 1, 1, 1, 1), strain.reshape(1, 4, 1, 1, 1)).reshape(2, 2)
    torch.testing.assert_close(got, expected)


def test_speed_has_a_finite_gradient_at_rest():
    velocity = torch.zeros(1, 2, 2, 3, 3, requires_grad=True)
    speed(velocity).sum().backward()
    assert torch.isfinite(velocity.grad).all()


@pytest.mark.parametrize("phase", PHASES)
def test_inactive_slots_are_skipped_and_exactly_zero(phase):
    module = estimation()
    fields, scaffold = module(torch.randn(1, 16, 3, 4, 4, requires_grad=True), phase)
    assert set(fields) == set(active_slots(phase)) >= set(CORE_SLOTS)
    packed = bank.pack({**fields, "u": scaffold})
    packed.sum().backward()
    for name in set(bank.SLOTS) - set(fields):
        assert bank.slot_of(packed, name).abs().sum() == 0
        if name in module.heads:
            assert all(p.grad is None for p in module.heads[name].parameters())


def test_only_the_velocity_slot_of_the_scaffold_is_used():
    module = estimation()
    fields, scaffold = module(torch.randn(1, 16, 4, 5, 5))
    (sum(f.square().mean() for f in fields.values()) + scaffold.sum()).backward()
    used = module.scaffold[-1].bias.grad.nonzero()[:, 0].tolist()
    assert used == [4, 5, 6, 7]


def test_without_the_anchor_the_core_comes_from_the_scaffold():
    torch.manual_seed(0)
    module = ScaffoldFields(16, 8)
    fields, _ = module(torch.randn(1, 16, 4, 5, 5))
    sum(f.square().mean() for f in fields.values()).backward()
    used = set(module.scaffold[-1].bias.grad.nonzero()[:, 0].tolist())
    assert used == set(range(12)) | set(range(16, 24))  # the later slots keep their constructors
    assert fields["rho"].min() > 0
    assert all(p.grad is None for p in module.p_rho_head.parameters())


def test_unknown_phase_and_tiny_latents_are_refused():
    with pytest.raises(ValueError, match="core, alpha, T, j, psi"):
        active_slots("late")
    with pytest.raises(ValueError, match="at least 3x3"):
        estimation()(torch.zeros(1, 16, 2, 2, 9))
