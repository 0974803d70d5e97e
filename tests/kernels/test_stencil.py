"""Finite differences and balances: against polynomials, against autograd through the definition, and against PILA's residuals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.kernels.balance import transport_balance, wave_balance
from latent_physics.kernels.stencil import TIME, X, Y, derivative
from latent_physics.methods.pila import stencils as pila
from latent_physics.methods.pila.residuals import Averager, balance

FEW = settings(deadline=None, max_examples=12)
SIZES = st.tuples(st.integers(4, 7), st.integers(4, 7), st.integers(4, 7))
FULL = torch.float64


def random_fields(size, channels=1, batch=2):
    field = torch.randn(batch, channels, *size, dtype=FULL, requires_grad=True)
    velocity = torch.randn(batch, 2, *size, dtype=FULL, requires_grad=True)
    return field, velocity, torch.rand(batch, 1, *size, dtype=FULL)


# -- derivatives -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [TIME, Y, X])
def test_derivatives_of_a_parabola_are_exact_up_to_the_edges(dim):
    at = torch.arange(6, dtype=FULL)
    shape = [1, 1, 4, 4, 4]
    shape[dim] = 6
    position = at.view([6 if i == dim % 5 else 1 for i in range(5)]).expand(shape)
    field = 3.0 * position**2 - 2.0 * position + 1.0
    torch.testing.assert_close(derivative(field, dim, 1), 6.0 * position - 2.0)
    torch.testing.assert_close(derivative(field, dim, 2), torch.full(shape, 6.0, dtype=FULL))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dim", [TIME, Y, X])
def test_derivative_gradients_numerically(dim, order):
    field = torch.randn(1, 2, 5, 4, 6, dtype=FULL, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: derivative(x, dim, order), field)
    assert torch.autograd.gradgradcheck(lambda x: derivative(x, dim, order), field)


@FEW
@given(SIZES, st.sampled_from([TIME, Y, X]))
def test_derivatives_are_those_of_pila(size, dim):
    field, _, _ = random_fields(size, 3)
    torch.testing.assert_close(derivative(field, dim, 1), pila.first_derivative(field, dim))
    torch.testing.assert_close(derivative(field, dim, 2), pila.second_derivative(field, dim))


def test_derivative_of_the_smallest_field_and_of_a_transposed_one():
    field = torch.randn(1, 1, 3, 5, 4, dtype=FULL)
    torch.testing.assert_close(derivative(field, TIME, 1)[:, :, 1], 0.5 * (field[:, :, 2] - field[:, :, 0]))
    turned = field.transpose(3, 4)
    torch.testing.assert_close(derivative(turned, X, 1), derivative(field, Y, 1).transpose(3, 4))


@pytest.mark.parametrize(
    ("order", "points", "words"), [(3, 5, "order is 3"), (1, 2, "derivative 1 needs 3"), (2, 3, "derivative 2 needs 4")]
)
def test_derivative_refuses_what_does_not_fit(order, points, words):
    with pytest.raises(ValueError, match=words):
        derivative(torch.zeros(1, 1, points, 5, 5), TIME, order)


# -- balances ----------------------------------------------------------------------------------------------------------------


def wave_by_definition(field, mean, floor, speed2):
    return balance(mean, [pila.second_derivative(field, TIME), -speed2 * pila.laplacian(field)], floor)


def continuity_by_definition(field, velocity, mean, floor):
    terms = [pila.ddt(field), pila.ddx(field * velocity[:, :1]), pila.ddy(field * velocity[:, 1:])]
    return balance(mean, terms, floor)


def heat_by_definition(field, velocity, mean, floor, diffusivity):
    flux = pila.ddx(field * velocity[:, :1]) + pila.ddy(field * velocity[:, 1:])
    return balance(mean, [pila.ddt(field), flux, -diffusivity * pila.laplacian(field)], floor)


def assert_same(ours, theirs, inputs):
    """Values and the gradients of a weighted sum over samples."""
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1, len(ours) + 1, dtype=FULL)
    for a, b in zip(*(torch.autograd.grad((value * weights).sum(), inputs) for value in (ours, theirs))):
        torch.testing.assert_close(a, b)


@FEW
@given(st.tuples(st.integers(4, 6), st.integers(5, 7), st.integers(5, 7)), st.integers(1, 3), st.booleans())
def test_balances_are_those_of_pila(size, batch, masked):
    field, velocity, mask = random_fields(size, 1, batch)
    waves, _, _ = random_fields(size, 2, batch)
    mean = Averager(field, mask if masked else None)
    floor, speed2 = torch.rand(batch, dtype=FULL), torch.rand(batch, 1, 1, 1, 1, dtype=FULL)
    assert_same(wave_balance(waves, mean.points, floor, speed2), wave_by_definition(waves, mean, floor, speed2), [waves])
    ours = transport_balance(field, velocity, mean.points, 0.1)
    assert_same(ours, continuity_by_definition(field, velocity, mean, 0.1), [field, velocity])
    ours = transport_balance(field, velocity, mean.points, floor, 0.2)
    assert_same(ours, heat_by_definition(field, velocity, mean, floor, 0.2), [field, velocity])


def test_balance_gradients_numerically():
    field, velocity, weight = random_fields((4, 4, 5))
    assert torch.autograd.gradcheck(lambda x: wave_balance(x, weight, 0.1, 0.3), field)
    assert torch.autograd.gradcheck(lambda x, u: transport_balance(x, u, weight, 0.1), (field, velocity))
    assert torch.autograd.gradcheck(lambda x, u: transport_balance(x, u, weight, 0.1, 0.2), (field, velocity))
    fixed = velocity.detach()
    assert torch.autograd.gradcheck(lambda x: transport_balance(x, fixed, weight, 0.1, 0.2), field)
    still = field.detach()
    assert torch.autograd.gradcheck(lambda u: transport_balance(still, u, weight, 0.1), velocity)


def test_lawful_fields_are_not_charged():
    """f = (x - c t)^2 solves the wave equation, and f = x - u t is carried along; both are exact for these stencils."""
    t, x = torch.arange(5, dtype=FULL).view(1, 1, 5, 1, 1), torch.arange(6, dtype=FULL).view(1, 1, 1, 1, 6)
    ones = torch.ones(1, 1, 5, 6, 6, dtype=FULL)
    assert wave_balance(((x - 0.5 * t) ** 2 * ones), ones, speed2=0.25) < 1e-20
    assert wave_balance(((x - 0.5 * t) ** 2 * ones), ones, speed2=1.0) > 0.1
    velocity = torch.cat([0.3 * ones, 0.0 * ones], dim=1)
    carried = (x - 0.3 * t) * ones
    assert transport_balance(carried, velocity, ones) < 1e-20
    assert transport_balance(carried, velocity, ones, diffusivity=0.1) < 1e-20
    assert transport_balance(carried, -velocity, ones) > 0.5


def test_a_field_at_rest_and_half_precision():
    still, ones = torch.zeros(2, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    assert torch.equal(wave_balance(still, ones), torch.zeros(2))
    field, velocity, weight = (x.detach() for x in random_fields((5, 5, 5)))
    half = [field.bfloat16().requires_grad_(), velocity.bfloat16().requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in half]
    ours, exact = transport_balance(*half, weight.float(), 0.1), transport_balance(*wide, weight.float().double(), 0.1)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
    for a, b in zip(torch.autograd.grad(ours.sum(), half), torch.autograd.grad(exact.sum(), wide)):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() < 1e-2 * b.norm()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wave_balance(torch.zeros(1, 1, 3, 5, 5), torch.ones(1, 1, 3, 5, 5)), "at least 4"),
        (lambda: wave_balance(torch.zeros(1, 4, 5, 5), torch.ones(1, 1, 4, 5, 5)), "B C T H W"),
        (lambda: wave_balance(torch.zeros(2, 1, 4, 5, 5), torch.ones(3, 1, 4, 5, 5)), "the weight has shape"),
        (lambda: wave_balance(torch.zeros(2, 1, 4, 5, 5), torch.ones(1, 1, 4, 5, 5), torch.ones(3)), "one a sample"),
        (
            lambda: transport_balance(torch.zeros(1, 1, 4, 5, 5), torch.zeros(1, 3, 4, 5, 5), torch.ones(1, 1, 4, 5, 5)),
            "B 2 T H W",
        ),
    ],
)
def test_balances_refuse_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
