"""The relational losses against their definitions in float64, which form every N x N matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.kernels import relational
from latent_physics.kernels.relational import reference, tiled
from latent_physics.kernels.relational.engine_torch import TorchEngine
from latent_physics.kernels.relational.tiles import FrameWeight, blocks

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
BATCHES = st.integers(1, 4)
CHANNELS = st.integers(1, 9)
FEW = settings(deadline=None, max_examples=15)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def features(batch, grid, channels, dtype=torch.float64, other_channels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = math.prod(grid)
    student = torch.randn((batch, tokens, channels), generator=generator).to(dtype)
    teacher = torch.randn((batch, tokens, other_channels or channels), generator=generator).to(dtype)
    return student, teacher


def values_and_gradient(loss, student):
    """The loss's values in float64, and the gradient of a sum that tells them apart."""
    student = student.detach().clone().requires_grad_()
    values = loss(student)
    values = values if isinstance(values, tuple) else (values,)
    sum((i + 1) * value for i, value in enumerate(values)).backward()
    assert student.grad.dtype == student.dtype
    return torch.stack([value.detach().double() for value in values]), student.grad.double()


def assert_agree(ours, theirs, tolerance, floor=1e-6, gradient_slack=0.0):
    """Relative in the value and in the gradient's norm; `floor` is the size of what counts as nothing."""
    (value, gradient), (expected, expected_gradient) = ours, theirs
    assert (
        (value - expected).abs()
        <= tolerance * expected.abs() + tolerance * floor + 1e-7 * (tolerance > 1e-8) + 1e-13
    ).all()
    error = (gradient - expected_gradient).norm()
    assert (
        error
        <= (tolerance + gradient_slack) * (expected_gradient.norm() + floor)
        + 1e-7 * (tolerance > 1e-8)
        + 1e-13
    )


def random_mask(batch, tokens, seed=1):
    mask = torch.rand((batch, tokens), generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[:, seed % tokens] = True
    return mask


# -- against the definition ----------------------------------------------------------------------------------


@FEW
@given(
    BATCHES,
    GRIDS,
    CHANNELS,
    CHANNELS,
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([0.05, 0.1, 1.0]),
    st.booleans(),
)
def test_tempered_kl_by_definition(batch, grid, channels, other, dtype, temperature, masked):
    student, teacher = features(batch, grid, channels, dtype, other)
    queries = random_mask(batch, math.prod(grid)) if masked else None
    ours = values_and_gradient(
        lambda x: relational.tempered_kl(x, teacher, grid, temperature, queries), student
    )
    theirs = values_and_gradient(
        lambda x: reference.tempered_kl(x, teacher.double(), grid, temperature, queries), student.double()
    )
    assert_agree(ours, theirs, TOLERANCE[dtype])


@FEW
@given(BATCHES, GRIDS, CHANNELS, CHANNELS, st.sampled_from([None, 0.7, 10.0]), st.sampled_from([0.0, 0.1]))
def test_relation_l1_by_definition(batch, grid, channels, other, decay, margin):
    student, teacher = features(batch, grid, channels, torch.float64, other)
    ours = values_and_gradient(lambda x: relational.relation_l1(x, teacher, grid, decay, margin), student)
    theirs = values_and_gradient(lambda x: reference.relation_l1(x, teacher, grid, decay, margin), student)
    assert_agree(ours, theirs, TOLERANCE[torch.float64])


def kinks(student, teacher, margin):
    """Share of token pairs so close to a kink of |.| or relu that float32 may take the other side."""
    distance = reference.similarity(student.double()) - reference.similarity(teacher.double())
    off = ~torch.eye(distance.shape[-1], dtype=torch.bool)
    return ((distance[:, off].abs() - margin).abs() < 1e-6).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("decay", "margin"), [(None, 0.0), (10.0, 0.0), (None, 0.1)])
def test_relation_l1_in_low_precision(dtype, decay, margin):
    """A pair on a kink has an arbitrary slope, so each of the few such pairs excuses its share of the
    gradient, and no more.
    """
    grid = (4, 7, 6)
    student, teacher = features(2, grid, 24, dtype)
    ours = values_and_gradient(lambda x: relational.relation_l1(x, teacher, grid, decay, margin), student)
    theirs = values_and_gradient(
        lambda x: reference.relation_l1(x, teacher.double(), grid, decay, margin), student.double()
    )
    share = kinks(student, teacher, margin)
    assert share < 1e-4
    assert_agree(ours, theirs, TOLERANCE[dtype], gradient_slack=4 * math.sqrt(share))


# -- however the relation is cut -----------------------------------------------------------------------------


@FEW
@given(GRIDS, st.integers(1, 40), st.booleans())
def test_tiles_of_any_size_give_the_same(grid, tile, masked):
    """Tiles smaller than a frame, of several frames, larger than the clip, and N not a multiple of any of
    them.
    """
    student, teacher = features(2, grid, 5)
    queries = [mask.nonzero()[:, 0] for mask in random_mask(2, math.prod(grid))] if masked else None

    def kl(tile):
        return tiled.tempered_kl(
            student, teacher, grid, 0.1, queries, True, TorchEngine(student, torch.float64, tile)
        )

    def l1(tile):
        return tiled.relation_l1(
            student, teacher, grid, 3.0, 0.05, True, TorchEngine(student, torch.float64, tile)
        )

    for loss in (kl, l1):
        torch.testing.assert_close(loss(tile), loss(10**4), rtol=1e-9, atol=1e-12)


@FEW
@given(GRIDS, st.integers(1, 40))
def test_blocks_cover_every_token_once_and_know_their_frames(grid, target):
    frames, per_frame = grid[0], grid[1] * grid[2]
    found = blocks(frames, per_frame, target)
    assert [token for block in found for token in range(block.tokens.start, block.tokens.stop)] == list(
        range(frames * per_frame)
    )
    for block in found:
        assert block.frames == range(
            block.tokens.start // per_frame, (block.tokens.stop - 1) // per_frame + 1
        )
        assert block.size <= max(target, per_frame)


@pytest.mark.parametrize("decay", [None, 2.5])
@pytest.mark.parametrize("same", [True, False])
def test_weight_table_holds_the_weights(same, decay):
    weight = FrameWeight(same=same, decay=decay)
    first, second = blocks(5, 4, 12)
    table = weight.table(first, second, torch.zeros(1, dtype=torch.float64))
    for i, f in enumerate(first.frames):
        for j, g in enumerate(second.frames):
            assert table[i, 0, j, 0].item() == pytest.approx(weight.of(abs(f - g)), rel=1e-12)
    assert weight.between(first, second) == (0.0 if same else 1.0 if decay is None else None)


def test_large_frames_and_cold_temperatures_take_the_other_path():
    """Neither a frame wider than two tiles nor a temperature below 1/64 may use one exponential both ways."""
    engine = TorchEngine(torch.zeros(1), torch.float32, tile=640)
    assert engine.takes_both(1280, 0.1)
    assert not engine.takes_both(1281, 0.1)
    assert not engine.takes_both(100, 0.01)
    grid = (2, 5, 5)
    student, teacher = features(1, grid, 6, torch.float32)
    ours = values_and_gradient(lambda x: relational.tempered_kl(x, teacher, grid, 0.01), student)
    theirs = values_and_gradient(
        lambda x: reference.tempered_kl(x, teacher.double(), grid, 0.01), student.double()
    )
    assert_agree(ours, theirs, 1e-4)


# -- closed forms and invariants -----------------------------------------------------------------------------


def test_gradcheck():
    grid = (2, 2, 2)
    student, teacher = features(2, grid, 3)
    student.requires_grad_()
    queries = torch.tensor([[0, 5, 5], [7, 1, 2]])
    assert torch.autograd.gradcheck(lambda x: relational.tempered_kl(x, teacher, grid, 0.3), student)
    assert torch.autograd.gradcheck(lambda x: relational.tempered_kl(x, teacher, grid, 0.3, queries), student)
    assert torch.autograd.gradcheck(lambda x: relational.relation_l1(x, teacher, grid, 2.0, 0.05), student)
    assert torch.autograd.gradcheck(lambda x: relational.relation_l1(x, teacher, (1, 4, 2)), student)


def test_gradient_of_the_scores_is_the_difference_of_distributions():
    """TSA eq 10: with one-hot students the scores are free, and the gradient by them is (P_S - P_T) /
    temperature.
    """
    grid, temperature = (1, 1, 4), 0.2
    scores = torch.randn(4, 4, dtype=torch.float64).requires_grad_()
    target = torch.randn(4, 4, dtype=torch.float64).softmax(-1)
    loss = torch.nn.functional.kl_div((scores / temperature).log_softmax(-1), target, reduction="sum")
    (by_autograd,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(by_autograd, ((scores / temperature).softmax(-1) - target) / temperature)
    student, teacher = features(1, grid, 6)
    engine = TorchEngine(student, torch.float64)
    rows = engine.rows(student[0], temperature**-0.5), engine.rows(teacher[0], temperature**-0.5)
    _, slope = engine.tempered_rows((rows[0], rows[0]), (rows[1], rows[1]), 4, True)
    p_student, p_teacher = (
        (reference.similarity(x)[0] / temperature).softmax(-1) for x in (student, teacher)
    )
    torch.testing.assert_close(slope, p_student - p_teacher)


def test_equal_relations_cost_nothing():
    """A rotated and rescaled teacher has the same cosines."""
    grid = (3, 2, 2)
    student, _ = features(2, grid, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    teacher = (student @ rotation) * 7.0
    assert relational.tempered_kl(student, teacher, grid).abs() < 1e-12
    assert all(value < 1e-12 for value in relational.relation_l1(student, teacher, grid))


def test_the_scale_of_features_does_not_matter():
    grid = (2, 3, 2)
    student, teacher = features(1, grid, 4, torch.float32)
    for loss in (relational.tempered_kl, lambda s, t, g: sum(relational.relation_l1(s, t, g))):
        torch.testing.assert_close(
            loss(student * 1e3, teacher * 1e-3, grid), loss(student, teacher, grid), rtol=1e-5, atol=0
        )


def test_videorepa_and_moalign_are_special_cases():
    """spatial / F + temporal is the one mean over all pairs; an endless decay is no decay."""
    grid = (3, 2, 3)
    student, teacher = features(2, grid, 4)
    spatial, temporal = relational.relation_l1(student, teacher, grid, None, 0.1)
    difference = reference.similarity(student) - reference.similarity(teacher)
    torch.testing.assert_close(spatial / 3 + temporal, (difference.abs() - 0.1).relu().mean())
    endless = relational.relation_l1(student, teacher, grid, 1e12)
    torch.testing.assert_close(endless, relational.relation_l1(student, teacher, grid))


def test_queries_as_masks_and_as_indices_agree():
    grid = (3, 3, 2)
    student, teacher = features(2, grid, 5)
    mask = random_mask(2, 18)
    mask[:, :6] = torch.tensor([True, False, True, False, True, True])
    mask[:, 6:] = False
    index = torch.stack([row.nonzero()[:, 0] for row in mask])
    expected = relational.tempered_kl(student, teacher, grid, queries=mask)
    torch.testing.assert_close(
        relational.tempered_kl(student, teacher, grid, queries=mask.view(2, *grid)), expected
    )
    torch.testing.assert_close(relational.tempered_kl(student, teacher, grid, queries=index), expected)
    torch.testing.assert_close(relational.tempered_kl(student, teacher, grid, queries=index[0]), expected)
    every = relational.tempered_kl(student, teacher, grid, queries=torch.ones(2, 18, dtype=torch.bool))
    torch.testing.assert_close(every, relational.tempered_kl(student, teacher, grid))


def test_samples_weigh_the_same_however_many_queries_they_have():
    grid = (2, 2, 2)
    student, teacher = features(2, grid, 5)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, :1] = True
    mask[1, :5] = True
    single = [
        relational.tempered_kl(student[i : i + 1], teacher[i : i + 1], grid, queries=mask[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(relational.tempered_kl(student, teacher, grid, queries=mask), sum(single) / 2)


# -- how it behaves in training ------------------------------------------------------------------------------


def test_the_teacher_is_a_constant():
    grid = (2, 2, 2)
    student, teacher = features(1, grid, 4)
    teacher.requires_grad_()
    student.requires_grad_()
    loss = relational.tempered_kl(student, teacher, grid) + sum(
        relational.relation_l1(student, teacher, grid)
    )
    loss.backward()
    assert teacher.grad is None
    assert student.grad.norm() > 0


def test_without_gradient_the_value_is_the_same():
    grid = (2, 3, 2)
    student, teacher = features(1, grid, 4, torch.float32)
    for loss in (relational.tempered_kl, relational.relation_l1):
        torch.testing.assert_close(
            loss(student, teacher, grid), loss(student.clone().requires_grad_(), teacher, grid)
        )
    with torch.no_grad():
        assert not relational.tempered_kl(student.clone().requires_grad_(), teacher, grid).requires_grad


def test_autocast_does_not_lower_the_precision():
    grid = (2, 4, 4)
    student, teacher = features(1, grid, 16, torch.float32)
    expected = relational.tempered_kl(student, teacher, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relational.tempered_kl(student, teacher, grid), expected)


def test_only_one_of_two_values_used_and_a_second_backward():
    grid = (3, 2, 2)
    student, teacher = features(1, grid, 4)
    student.requires_grad_()
    spatial, temporal = relational.relation_l1(student, teacher, grid)
    (first,) = torch.autograd.grad(temporal, student, retain_graph=True)
    (both,) = torch.autograd.grad(spatial + temporal, student, retain_graph=True)
    (again,) = torch.autograd.grad(temporal, student)
    torch.testing.assert_close(first, again)
    assert (both - first).norm() > 0


def test_a_token_of_zeros_gives_finite_numbers():
    grid = (2, 2, 2)
    student, teacher = features(1, grid, 4, torch.float32)
    student[0, 3] = 0
    teacher[0, 5] = 0
    for loss in (
        lambda x: relational.tempered_kl(x, teacher, grid),
        lambda x: relational.relation_l1(x, teacher, grid),
    ):
        _, gradient = values_and_gradient(loss, student)
        assert torch.isfinite(gradient).all()


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": (2, 2, 3)}, "has 12 tokens"),
        ({"grid": (2, 4)}, "three positive whole numbers"),
        ({"grid": (8, 1, 0)}, "three positive whole numbers"),
        ({"student": torch.zeros(8, 4)}, "B N C"),
        ({"student": torch.zeros(1, 8, 4, dtype=torch.int64)}, "floating-point"),
        ({"teacher": torch.zeros(2, 8, 4)}, "must be equal"),
        ({"temperature": 0.0}, "must be positive"),
        ({"temperature": float("nan")}, "must be positive"),
        ({"queries": torch.zeros(1, 8, dtype=torch.bool)}, "no query token"),
        ({"queries": torch.zeros(1, 7, dtype=torch.bool)}, "is a mask of shape"),
        ({"queries": torch.zeros(1, 8)}, "boolean mask or token indices"),
        ({"queries": torch.zeros(2, 3, dtype=torch.int64)}, "boolean mask or token indices"),
    ],
)
def test_tempered_kl_refuses_what_does_not_fit(change, words):
    good = {"student": torch.ones(1, 8, 4), "teacher": torch.ones(1, 8, 4), "grid": (2, 2, 2)}
    with pytest.raises(ValueError, match=words):
        relational.tempered_kl(**{**good, **change})


def test_other_losses_refuse_what_does_not_fit():
    student = torch.ones(1, 8, 4)
    with pytest.raises(ValueError, match="decay is -1"):
        relational.relation_l1(student, student, (2, 2, 2), decay=-1)
    with pytest.raises(ValueError, match=r"margin is -0\.1"):
        relational.relation_l1(student, student, (2, 2, 2), margin=-0.1)
