import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from latent_physics.benchmarks.pila import lawful_fields as an
from latent_physics.benchmarks.pila import residuals as benchmark
from latent_physics.methods.pila import CATEGORIES, residual_terms
from latent_physics.methods.pila.bank import COMPACT
from latent_physics.methods.pila.residuals import (
    FAMILIES,
    TERMS,
    Averager,
    ResidualSettings,
    balance,
    closure,
    interior_weight,
    roughness,
)

sides = some.integers(5, 9)
EXACT = ResidualSettings(smooth=False)
COUNTS = {
    "Rigid Body": 4,
    "Elastic": 4,
    "Fluid": 4,
    "Compressible Flow": 4,
    "Collision": 4,
    "Phase Change": 4,
}
COUNTS |= {"Thermal": 2, "Optical": 3}


@functools.cache
def table():
    return {(row[0], row[2]): row for row in benchmark.measure()}


def random_fields(batch=1, size=(6, 9, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = {**COMPACT, "u": 2}
    fields = {name: torch.randn(batch, width, *size, generator=generator) for name, width in widths.items()}
    return {**fields, "rho": fields["rho"].abs() + 0.1, "alpha": fields["alpha"].sigmoid()}


def test_names_counts_and_families_of_the_paper():
    assert {category: len(terms) for category, terms in TERMS.items()} == COUNTS
    families = [term.family for terms in TERMS.values() for term in terms.values()]
    assert set(families) == set(FAMILIES)
    assert [families.count(name) for name in FAMILIES] == [10, 3, 6, 10]


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_term_is_measured_on_a_lawful_and_an_unlawful_field(category):
    measured = {term for (_, term), row in table().items() if row[1] == category}
    assert measured == set(TERMS[category])


def test_lawful_fields_score_low_and_broken_ones_several_times_higher():
    for (name, term), (_, _, _, lawful, what, broken) in table().items():
        if (name, term) in benchmark.DEGENERATE:
            assert lawful < 1e-6, (name, term, lawful)
            continue
        assert lawful < 0.025, (name, term, lawful)
        assert broken > 10 * lawful, (name, term, what, lawful, broken)
        assert broken > 0.3 or (name, term) == ("drifting vortices", "continuity"), (name, term, what, broken)


def test_noise_of_five_percent_keeps_the_order_on_filtered_fields():
    rows = benchmark.measure(0.05, ResidualSettings())
    weak = {
        ("turning dye", "continuity"),
        ("drifting vortices", "continuity"),
    }  # a faint dye drowns in a noisy velocity
    for name, _, term, lawful, what, broken in rows:
        if (name, term) in weak | benchmark.DEGENERATE:
            continue
        assert broken > 5 * lawful, (name, term, what, lawful, broken)


def test_the_wave_term_measures_speed():
    measured = dict(benchmark.wave_speeds())
    for factor, value in measured.items():
        # terms a and -a/factor: (1 - 1/f)^2 / (1 + 1/f^2) in the continuum
        exact = (1 - 1 / factor) ** 2 / (1 + 1 / factor**2)
        assert value == pytest.approx(exact, abs=0.01)


def test_diffusion_of_the_right_and_the_wrong_strength():
    grid = an.Lattice.of()
    blob = {name: field.float() for name, field in an.warm_blob(grid, 0.3, (0.0, 0.0)).items()}
    scores = {}
    for kappa in (0.0, 0.1, 0.3, 0.9):
        settings = ResidualSettings(smooth=False, diffusivity=kappa)
        scores[kappa] = float(residual_terms(blob, "Thermal", settings=settings)["heat_transport"])
    assert scores[0.3] < 1e-3
    assert min(scores[0.0], scores[0.1], scores[0.9]) > 0.15


def test_balance_is_its_definition():
    fields = [torch.randn(2, 2, 6, 9, 8, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(2, 1, 6, 9, 8, dtype=torch.float64)
    got = balance(Averager(fields[0], mask), fields, 0.0)
    for b in range(2):
        inner = (b, slice(None), slice(1, -1), slice(2, -2), slice(2, -2))
        weight = mask[inner]
        over = (sum(fields)[inner].square() * weight).sum()
        under = sum((field[inner].square() * weight).sum() for field in fields)
        assert float(got[b]) == pytest.approx(float(over / under), rel=1e-6)


def test_closure_is_one_minus_squared_correlation():
    x, noise = torch.randn(2, 1, 1, 6, 9, 8, dtype=torch.float64)
    y = 0.7 * x + 0.5 * noise + 2.0
    mean = Averager(x, None)
    inner = (slice(None), slice(None), slice(1, -1), slice(2, -2), slice(2, -2))
    r = torch.corrcoef(torch.stack([x[inner].flatten(), y[inner].flatten()]))[0, 1]
    assert float(closure(mean, y, x, centred=True)) == pytest.approx(float(1 - r**2), rel=1e-5)
    assert float(closure(mean, -y, x, centred=True, sign=1)) == pytest.approx(1.0, abs=1e-6)
    assert float(closure(mean, -y, x, centred=True)) == pytest.approx(float(1 - r**2), rel=1e-5)


def test_roughness_frees_six_pixels_and_charges_two():
    x = torch.arange(64.0).reshape(1, 1, 1, 1, 64).expand(1, 1, 6, 32, 64)
    mean = Averager(x, None)
    assert float(roughness(mean, torch.sin(2 * torch.pi * x / 6))) == 0.0
    assert float(roughness(mean, torch.cos(torch.pi * x))) > 0.4


def test_interior_weight_leaves_out_outlines_and_rest():
    disc = an.rigid_disc(an.Lattice.of())["u"]
    weight = interior_weight(disc)
    assert weight.max() > 0.9
    strain = (disc[:, :, 10].norm(dim=1) - 0.539).abs()
    assert weight[:, 0, 10][strain > 0.1].max() < 0.05


@settings(deadline=None, max_examples=10)
@given(
    some.sampled_from(CATEGORIES), some.integers(1, 2), some.integers(4, 7), sides, sides, some.integers(0, 9)
)
def test_residuals_are_finite_bounded_and_differentiable_on_any_size(
    category, batch, frames, height, width, seed
):
    bank = torch.randn(
        batch, 32, frames, height, width, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_(True)
    terms = residual_terms(bank, category)
    for name, value in terms.items():
        assert value.shape == (batch,), name
        assert torch.isfinite(value).all()
        assert 0 <= float(value.min()) <= float(value.max()) <= 4.001, name
    sum(value.sum() for value in terms.values()).backward()
    assert torch.isfinite(bank.grad).all()


@pytest.mark.parametrize("category", CATEGORIES)
def test_scale_of_the_fields_hardly_matters(category):
    fields = random_fields()
    large = {name: (3.0 * f if name not in ("alpha", "rho") else f) for name, f in fields.items()}
    for name in (
        "stress_strain",
        "displacement_wave",
        "velocity_wave",
        "kinematic",
        "wave_propagation",
        "impulse_response",
    ):
        if name in TERMS[category]:
            a, b = (residual_terms(f, category, settings=EXACT)[name] for f in (fields, large))
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("category", CATEGORIES)
def test_still_nothing_costs_nothing_and_noise_costs_much(category):
    widths = {**COMPACT, "u": 2}
    nothing = {name: torch.zeros(1, width, 6, 9, 8) for name, width in widths.items()} | {
        "rho": torch.ones(1, 1, 6, 9, 8)
    }
    assert max(float(value) for value in residual_terms(nothing, category).values()) < 1e-6
    noise = residual_terms(random_fields(size=(12, 20, 20)), category, settings=EXACT)
    balances = [
        float(noise[name]) for name, term in TERMS[category].items() if term.family in ("pde", "kinematic")
    ]
    assert all(value > 0.3 for value in balances)


def test_the_mask_decides_where_a_law_is_looked_at():
    fields = random_fields(size=(8, 16, 16))
    lawful = an.rigid_translation(an.Lattice.of(8, 16, 16))
    mixed = {
        "u": fields["u"].clone(),
        "d": fields["d"].clone(),
        "eps": fields["eps"],
        "sigma": fields["sigma"],
    }
    for name in ("u", "d"):
        mixed[name][..., :8] = lawful[name].float()[..., :8]
    mask = torch.zeros(1, 1, 8, 16, 16)
    mask[..., :6] = 1
    assert residual_terms(mixed, "Rigid Body", mask=mask, settings=EXACT)["kinematic"] < 1e-6
    assert residual_terms(mixed, "Rigid Body", mask=1 - mask, settings=EXACT)["kinematic"] > 0.3


def test_dropping_a_family_leaves_the_others():
    bank = torch.randn(1, 32, 5, 8, 8)
    for family in FAMILIES:
        kept = residual_terms(bank, "Collision", drop_families=[family])
        assert set(kept) == {name for name, term in TERMS["Collision"].items() if term.family != family}


@pytest.mark.parametrize(
    ("bank", "category", "words"),
    [
        (torch.zeros(1, 32, 3, 8, 8), "Fluid", "at least 4 latent frames; the latent has 3"),
        (torch.zeros(1, 32, 5, 8, 4), "Fluid", "at least 5x5"),
        (torch.zeros(1, 30, 5, 8, 8), "Fluid", "must be"),
        (torch.zeros(1, 32, 5, 8, 8), "Plasma", "must be one of"),
        ({"u": torch.zeros(1, 2, 5, 8, 8)}, "Fluid", "needs the field"),
        ({}, "Fluid", "at least one field"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_reason(bank, category, words):
    with pytest.raises(ValueError, match=words):
        residual_terms(bank, category)


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="pde, kinematic"):
        residual_terms(torch.zeros(1, 32, 5, 8, 8), "Fluid", drop_families=["soft"])
