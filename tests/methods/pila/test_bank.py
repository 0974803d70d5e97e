import pytest
import torch
from latent_physics.methods.pila import bank
from latent_physics.methods.pila.experts import RECIPES
from latent_physics.tests.methods.pila.recipes import recipe_mask


def compact_fields(batch=2, size=(3, 4, 5), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    fields = {
        name: scale * torch.randn(batch, width, *size, generator=generator)
        for name, width in bank.COMPACT.items()
    }
    fields["alpha"] = fields["alpha"].sigmoid()
    return fields


def test_the_contract():
    assert bank.BANK_CHANNELS == 32
    assert list(bank.WIDTHS.values()) == [4, 4, 2, 2, 2, 2, 4, 4, 4, 4]
    assert bank.OFFSETS["alpha"] == 14
    assert bank.OFFSETS["psi"] == 28
    assert sum(bank.COMPACT.values()) == 21


def test_reading_a_packed_bank_gives_the_fields_back():
    fields = compact_fields()
    read = bank.read(bank.pack(fields), velocity=lambda scaffold: scaffold[:, :2])
    for name, values in fields.items():
        expected = values[:, :2] if name == "u" else values
        torch.testing.assert_close(read[name], expected)


def test_missing_slots_are_exactly_zero():
    packed = bank.pack({"p": torch.ones(1, 1, 2, 3, 3)})
    assert torch.equal(bank.slot_of(packed, "p"), torch.ones(1, 2, 2, 3, 3))
    assert packed.abs().sum() == 2 * 18


def test_large_displacements_survive_and_other_slots_are_limited_softly():
    fields = compact_fields(scale=30.0)
    packed = bank.pack(fields)
    torch.testing.assert_close(bank.read(packed)["d"], fields["d"])
    assert bank.slot_of(packed, "p").abs().max() <= 10.0


def test_soft_limit_is_identity_up_to_five_and_smooth_beyond():
    x = torch.linspace(-40, 40, 4001, dtype=torch.float64, requires_grad=True)
    y = bank.soft_limit(x)
    inner = x.abs() < 5
    assert torch.equal(y[inner], x[inner])
    assert y.abs().max() <= 10
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.min() >= 0
    assert slope.diff().abs().max() < 0.02  # no kink


def test_phase_readout_is_clipped_but_keeps_its_gradient():
    packed = torch.zeros(1, 32, 1, 2, 2)
    bank.slot_of(packed, "alpha").fill_(1.5)
    packed.requires_grad_(True)
    alpha = bank.read(packed, ["alpha"])["alpha"]
    assert alpha.max() == 1.0
    alpha.sum().backward()
    assert packed.grad[:, 14:16].abs().min() > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "at least one"),
        ({"mass": torch.zeros(1, 1, 2, 2, 2)}, "not a slot"),
        ({"d": torch.zeros(1, 4, 2, 2, 2)}, "must be"),
    ],
)
def test_bad_fields_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        bank.pack(fields)
    with pytest.raises(ValueError, match="32"):
        bank.read(torch.zeros(1, 31, 2, 2, 2))


def test_recipes_cover_every_slot_and_masks_match_them():
    covered = set().union(*RECIPES.values())
    assert covered == set(bank.SLOTS)
    for category, slots in RECIPES.items():
        assert int(recipe_mask(category).sum()) == sum(bank.WIDTHS[name] for name in slots)
