import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from latent_physics.methods.pila import stencils as st

sizes = some.tuples(some.integers(4, 9), some.integers(4, 9), some.integers(4, 9))


def coordinates(frames=6, height=7, width=5):
    axes = (torch.arange(n, dtype=torch.float64) for n in (frames, height, width))
    return [axis[None, None] for axis in torch.meshgrid(*axes, indexing="ij")]


@settings(deadline=None, max_examples=15)
@given(sizes, some.integers(0, 2**31))
def test_first_derivatives_are_exact_for_quadratics(size, seed):
    a, b, c, d, e, f = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t, y, x = coordinates(*size)
    field = a * t * t + b * y * y + c * x * x + d * x * y + e * t + f
    torch.testing.assert_close(st.ddt(field), 2 * a * t + e)
    torch.testing.assert_close(st.ddy(field), 2 * b * y + d * x)
    torch.testing.assert_close(st.ddx(field), 2 * c * x + d * y)


@settings(deadline=None, max_examples=15)
@given(sizes, some.integers(0, 2**31))
def test_second_derivatives_are_exact_for_cubics(size, seed):
    a, b, c = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t, y, x = coordinates(*size)
    field = a * t**3 + b * y**3 + c * x**3 + x * y
    torch.testing.assert_close(st.second_derivative(field, st.TIME), 6 * a * t + 0 * x)
    torch.testing.assert_close(st.laplacian(field), 6 * b * y + 6 * c * x, atol=1e-8, rtol=1e-8)


def test_divergence_and_curl_of_rotation_and_expansion():
    _, y, x = coordinates()
    rotation, expansion = torch.cat([-y, x], 1), torch.cat([x, y], 1)
    torch.testing.assert_close(st.divergence(rotation), torch.zeros_like(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(st.curl(rotation), torch.full_like(x, 2.0))
    torch.testing.assert_close(st.divergence(expansion), torch.full_like(x, 2.0))
    torch.testing.assert_close(st.curl(expansion), torch.zeros_like(x), atol=1e-12, rtol=0)


def test_symmetric_gradient_is_blind_to_rotation_and_sees_shear():
    _, y, x = coordinates()
    assert st.symmetric_gradient(torch.cat([-y, x], 1)).abs().max() < 1e-12
    shear = st.symmetric_gradient(torch.cat([y, 0 * y], 1))[0, :, 0, 0, 0]
    torch.testing.assert_close(shear, torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64))


def test_advection_of_a_travelling_field_is_minus_its_rate():
    t, y, x = coordinates(9, 30, 30)
    field = torch.sin(0.2 * (x - 0.5 * t) + 0.1 * (y + 0.25 * t))
    velocity = torch.cat([torch.full_like(x, 0.5), torch.full_like(x, -0.25)], 1)
    rest = (st.ddt(field) + st.advection(velocity, field))[:, :, 1:-1, 1:-1, 1:-1]
    assert rest.abs().max() < 2e-3


def test_forward_energy_sees_the_checkerboard_that_central_differences_miss():
    t, y, x = coordinates(3, 8, 8)
    board = torch.cos(torch.pi * (x + y)) + 0 * t
    assert st.ddx(board)[..., 1:-1].abs().max() < 1e-12
    assert st.forward_energy(board)[..., :-1, :-1].min() > 7.9


def test_smoothing_keeps_linear_fields_and_removes_the_checkerboard():
    t, y, x = coordinates(5, 8, 8)
    line = 2 * t - y + 0.5 * x
    torch.testing.assert_close(st.smooth(line), line)
    board = torch.cos(torch.pi * x) + 0 * t + 0 * y
    assert st.smooth(board)[..., 1:-1].abs().max() < 1e-12


@pytest.mark.parametrize(("shape", "words"), [((1, 1, 3, 8, 8), "4 latent frames"), ((1, 1, 8, 8, 4), "4x8")])
def test_too_small_is_said_in_a_sentence(shape, words):
    with pytest.raises(ValueError, match=words):
        st.require_size(torch.zeros(shape), 4, 5, "a test")
