"""Relational alignment, MoAlign's modules and LDO's predictive dynamics alignment, against naive computations
in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.kernels.relational import relation_l1
from latent_physics.methods import ldo, moalign, relational

GRID = (4, 2, 3)


def features(width: int, seed: int, grid=GRID, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, math.prod(grid), width, generator=generator, dtype=torch.float64)


def naive_relations(tokens: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, one dot product at a time."""
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    return torch.stack(
        [torch.stack([torch.stack([row @ other for other in sample]) for row in sample]) for sample in unit]
    )


def frame_of(index: int, grid) -> int:
    return index // (grid[1] * grid[2])


def naive_tsa(student, teacher, grid, temperature, mask=None):
    """Eqs 6-9 and 13, pair by pair."""
    r_s, r_t = naive_relations(student), naive_relations(teacher)
    per_frame = grid[1] * grid[2]
    total = []
    for b in range(len(student)):
        sample = []
        for i in range(math.prod(grid)):
            if mask is not None and not mask[b].flatten()[i]:
                continue
            for f in range(grid[0]):
                keys = slice(f * per_frame, (f + 1) * per_frame)
                p_s, p_t = (
                    torch.softmax(r_s[b, i, keys] / temperature, 0),
                    torch.softmax(r_t[b, i, keys] / temperature, 0),
                )
                sample.append((p_t * (p_t / p_s).log()).sum())
        total.append(torch.stack(sample).mean())
    return torch.stack(total).mean()


def naive_l1(student, teacher, grid, weight_of_gap, margin=0.0):
    """MoAlign's eqs 5-8, pair by pair."""
    distance = (naive_relations(student) - naive_relations(teacher)).abs()
    distance = torch.relu(distance - margin)
    count = math.prod(grid)
    spatial, temporal = [], []
    for i in range(count):
        for j in range(count):
            gap = abs(frame_of(i, grid) - frame_of(j, grid))
            (spatial if gap == 0 else temporal).append(
                distance[:, i, j] * (1 if gap == 0 else weight_of_gap(gap))
            )
    return torch.stack(spatial).mean(), torch.stack(temporal).sum(0).mean() / count**2


def assert_same(loss_of, naive_of, student):
    """Value and gradient."""
    results = []
    for function in (loss_of, naive_of):
        leaf = student.clone().requires_grad_(True)
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-7, atol=1e-10)


def test_losses_equal_their_definitions():
    student, teacher = features(5, 0), features(7, 1)
    mask = relational.top_share(torch.rand(2, *GRID), 0.4)
    assert_same(
        lambda s: relational.tsa(s, teacher, GRID), lambda s: naive_tsa(s, teacher, GRID, 0.1), student
    )
    assert_same(
        lambda s: relational.mtsa(s, teacher, GRID, mask),
        lambda s: naive_tsa(s, teacher, GRID, 0.1, mask),
        student,
    )
    decayed = lambda s: sum(naive_l1(s, teacher, GRID, lambda gap: math.exp(-gap / 10)))  # noqa: E731
    assert_same(lambda s: relational.soft_trd(s, teacher, GRID), decayed, student)


def test_trd_is_videorepas_single_mean():
    student, teacher = features(5, 2), features(7, 3)

    def naive(s):
        return torch.relu((naive_relations(s) - naive_relations(teacher)).abs() - 0.1).mean()

    assert_same(lambda s: relational.trd(s, teacher, GRID), naive, student)


def test_repa_is_one_minus_the_mean_cosine():
    student, teacher = features(5, 4), features(5, 5)

    def naive(s):
        pairs = zip(s.flatten(0, 1), teacher.flatten(0, 1))
        return 1 - torch.stack([a @ b / (a.norm() * b.norm()) for a, b in pairs]).mean()

    assert_same(lambda s: relational.repa(s, teacher), naive, student)
    with pytest.raises(ValueError, match="differ in shape"):
        relational.repa(student, features(6, 0))


def test_limits():
    """Infinite decay makes soft-TRD TRD, a mask of everything M-TSA TSA; a student like its teacher has
    nothing to learn."""
    student, teacher = features(5, 6), features(7, 7)
    torch.testing.assert_close(
        relational.soft_trd(student, teacher, GRID, math.inf),
        relational.trd(student, teacher, GRID, margin=0, pooled=False),
    )
    everything = relational.top_share(torch.rand(2, *GRID), 1.0)
    assert everything.all()
    torch.testing.assert_close(
        relational.mtsa(student, teacher, GRID, everything), relational.tsa(student, teacher, GRID)
    )
    for loss in (relational.tsa, relational.trd, relational.soft_trd):
        assert loss(3 * teacher, teacher, GRID).item() == pytest.approx(0, abs=1e-12)
    assert relational.repa(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([(2, 4, 4), (1, 3, 2)]),
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
)
def test_motion_mask_equals_a_loop(frames, rows, columns, patch, keep):
    shape = (frames * patch[0] + patch[0] - 1, rows * patch[1] + 1, columns * patch[2])
    video = torch.rand(2, 3, *shape)
    mask = relational.motion_mask(video, patch, keep)
    assert mask.shape == (2, frames, rows, columns)
    assert mask.dtype == torch.bool
    want = math.ceil(keep * rows * columns - 1e-9)
    for b in range(2):
        change = torch.zeros(frames, rows, columns)
        for f in range(frames):
            now, before = max(f, 1), max(f, 1) - 1
            for y in range(rows):
                for x in range(columns):
                    place = (slice(y * patch[1], (y + 1) * patch[1]), slice(x * patch[2], (x + 1) * patch[2]))
                    cut = [
                        video[(b, slice(None), slice(t * patch[0], (t + 1) * patch[0]), *place)]
                        for t in (now, before)
                    ]
                    change[f, y, x] = (cut[0] - cut[1]).abs().sum()
            ranked = sorted(
                range(rows * columns), key=lambda i: (-round(change[f].flatten()[i].item(), 3), i)
            )
            assert set(mask[b, f].flatten().nonzero().flatten().tolist()) == set(ranked[:want])


def test_motion_mask_ties_and_bad_input():
    still = relational.motion_mask(torch.zeros(1, 3, 4, 8, 8), (2, 4, 4), keep=0.5)
    assert still[0, 0].tolist() == [[True, True], [False, False]]
    for keep in (0, -1, 1.5):
        with pytest.raises(ValueError, match="keep is"):
            relational.motion_mask(torch.rand(1, 3, 4, 8, 8), (2, 4, 4), keep)
    with pytest.raises(ValueError, match="1x2x2 tubelets"):
        relational.motion_mask(torch.rand(1, 3, 3, 8, 8), (2, 4, 4))
    with pytest.raises(ValueError, match="must agree"):
        relational.mtsa(features(4, 0), features(4, 1), GRID, torch.ones(2, 4, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize("kind", [relational.TokenProjector, moalign.MotionProjector])
@pytest.mark.parametrize(
    ("grid", "target", "stride"),
    [((12, 30, 45), (24, 10, 15), 3), ((8, 4, 4), (16, 8, 8), 1), ((2, 7, 5), (3, 2, 2), 3)],
)
def test_projectors_bring_tokens_to_the_teachers_grid(kind, grid, target, stride):
    projector = kind(6, 5, 8, stride=stride)
    if kind is moalign.MotionProjector:
        projector = kind(6, motion=5, hidden=8, stride=stride)
    tokens = torch.randn(2, math.prod(grid), 6, requires_grad=True)
    out = projector(tokens, grid, target)
    assert out.shape == (2, math.prod(target), 5)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in projector.parameters())


@pytest.mark.parametrize("kind", [relational.TokenProjector, moalign.MotionProjector])
@pytest.mark.parametrize(
    ("grid", "target", "stride", "cell", "seen"),
    [
        (
            (2, 30, 45),
            (2, 10, 15),
            3,
            (9, 14),
            (range(27, 30), range(42, 45)),
        ),  # CogVideoX at 480 x 720, VideoMAE
        ((2, 30, 52), (2, 10, 17), 3, (0, 16), (range(3), range(48, 51))),  # Wan at 480 x 832, VideoMAE
        (
            (2, 30, 52),
            (2, 16, 16),
            1,
            (8, 4),
            (range(15, 17), range(13, 17)),
        ),  # Wan, V-JEPA 2: 15 rows are 8 cells, 13 columns 4
        (
            (2, 4, 4),
            (2, 4, 4),
            1,
            (2, 3),
            (range(2, 3), range(3, 4)),
        ),  # the toy world, teacher on the student's grid
    ],
)
def test_a_teachers_cell_sees_its_own_patch_of_tokens_and_nothing_else(
    kind, grid, target, stride, cell, seen
):
    """The receptive field, by gradient: VideoREPA's convolution has no padding."""
    sizes = (
        {"motion": 4, "hidden": 4} if kind is moalign.MotionProjector else {"out_channels": 4, "hidden": 4}
    )
    torch.manual_seed(0)
    projector = kind(5, stride=stride, **sizes).double()
    tokens = torch.randn(1, math.prod(grid), 5, dtype=torch.float64, requires_grad=True)
    out = relational.to_volume(projector(tokens, grid, target), target)
    found = torch.autograd.grad(out[:, :, :, cell[0], cell[1]].square().sum(), tokens)[0]
    touched = relational.to_volume(found, grid).abs().sum(dim=(0, 1, 2)) > 0
    expected = torch.zeros(grid[1:], dtype=torch.bool)
    expected[seen[0].start : seen[0].stop, seen[1].start : seen[1].stop] = True
    assert torch.equal(touched, expected)


def test_a_grid_smaller_than_one_patch_is_refused():
    with pytest.raises(
        ValueError, match="a grid of 2x2 tokens holds no patch of 3x3; choose a stride of at most 2"
    ):
        relational.TokenProjector(4, 4, 4)(torch.zeros(1, 8, 4), (2, 2, 2), (2, 1, 1))


def test_fit_takes_means_where_it_shrinks_and_interpolates_where_it_grows():
    volume = torch.randn(1, 2, 4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(relational.fit(volume, (4, 2, 3)), volume.unflatten(3, (2, 3)).mean(4))
    both = relational.fit(volume, (8, 2, 3))
    small = volume.unflatten(3, (2, 3)).mean(4)
    torch.testing.assert_close(both[:, :, 0], small[:, :, 0])  # the border is held
    torch.testing.assert_close(both[:, :, 1], 0.75 * small[:, :, 0] + 0.25 * small[:, :, 1])
    assert relational.fit(volume, (4, 6, 3)) is volume


def test_first_latent_frame_is_left_out():
    tokens = torch.arange(24.0).view(1, 24, 1)
    rest, grid = relational.without_first_frame(tokens, GRID)
    assert grid == (3, 2, 3)
    assert rest.flatten().tolist() == list(range(6, 24))
    torch.testing.assert_close(relational.to_tokens(relational.to_volume(tokens, GRID)), tokens)
    with pytest.raises(ValueError, match="do not fill"):
        relational.to_volume(tokens, (4, 2, 2))
    one, grid = relational.without_first_frame(tokens[:, :6], (1, 2, 3))
    assert (one.shape[1], grid) == (6, (1, 2, 3))  # a still image keeps its only frame


def test_a_token_of_two_latent_frames_loses_one_latent_frame():
    """CogVideoX 1.5: 4 frames of tokens are 8 latent frames, of which 7 remain, each at its place in time."""
    tokens = torch.arange(4.0).repeat_interleave(6).view(1, 24, 1)
    rest, grid = relational.without_first_frame(tokens, GRID, latent_frames=8)
    assert grid == (7, 2, 3)
    times = [min(max((latent + 0.5) / 2 - 0.5, 0), 3) for latent in range(1, 8)]
    assert rest[0, ::6, 0].tolist() == pytest.approx(times)


def test_motion_head_has_the_papers_shapes():
    head = moalign.MotionHead()
    with torch.no_grad():
        motion = head.compressor(torch.randn(1, 768, 24, 10, 15))
        flow = head.decoder(motion)
    assert motion.shape == (1, 64, 24, 10, 15)
    assert flow.shape == (1, 2, 23, 128, 192)
    assert [tuple(layer.kernel_size) for layer in (head.compressor.temporal, head.compressor.pointwise)] == [
        (3, 1, 1),
        (1, 1, 1),
    ]
    assert tuple(head.decoder.between.kernel_size) == (2, 3, 3)
    assert moalign.flow_loss(flow, torch.zeros_like(flow)).item() == pytest.approx(flow.abs().mean().item())
    with pytest.raises(ValueError, match="same shape"):
        moalign.flow_loss(flow, flow[:, :, 1:])
    with pytest.raises(ValueError, match="at least 2"):
        head.decoder(motion[:, :, :1])


def naive_pda(moved, expected, grid, decay):
    """`pda_loss` pair by pair."""
    r_s, r_t = naive_relations(moved), naive_relations(expected)
    weight = expected.square().sum(-1)
    sums = [0.0, 0.0, 0.0, 0.0]
    for b in range(len(moved)):
        for i in range(moved.shape[1]):
            for j in range(moved.shape[1]):
                gap, pair = abs(frame_of(i, grid) - frame_of(j, grid)), weight[b, i] * weight[b, j]
                distance = (r_s[b, i, j] - r_t[b, i, j]).abs()
                sums[0] = sums[0] + (pair * distance if gap == 0 else 0)
                sums[1] = sums[1] + (0 if gap == 0 else pair * distance * math.exp(-gap / decay))
                sums[2] += pair if gap == 0 else 0
                sums[3] += pair
    return sums[0] / sums[2] + sums[1] / sums[3]


@pytest.mark.parametrize("tile", [5, 1024])
def test_pda_weighs_the_relations_of_increments_by_the_teachers_motion(tile, monkeypatch):
    """Equal to the naive sum, in tiles and whole; the student's background, which does not change, plays no
    part."""
    monkeypatch.setattr(ldo, "TILE", tile)
    student, expected, grid = features(5, 8), features(7, 9, (3, 2, 3)), (3, 2, 3)
    student[:, :, 0] += 3

    def ours(s):
        moved, shorter = ldo.increments(s, GRID)
        assert shorter == grid
        return ldo.pda_loss(moved, expected, grid)

    assert_same(ours, lambda s: naive_pda(s[:, 6:] - s[:, :-6], expected, grid, 10.0), student)
    background = features(5, 10, (1, 2, 3)).repeat(1, 4, 1)
    torch.testing.assert_close(ours(student + background), ours(student))
    with pytest.raises(ValueError, match="at least 2"):
        ldo.increments(features(5, 0, (1, 2, 3)), (1, 2, 3))
    with pytest.raises(ValueError, match="do not fit each other"):
        ldo.pda_loss(student, expected, grid)


def test_pda_with_equal_weights_is_moaligns_comparison():
    moved, expected, grid = features(5, 8, (3, 2, 3)), features(7, 9, (3, 2, 3)), (3, 2, 3)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    for decay in (10.0, None):
        alike = sum(relation_l1(moved, expected, grid, decay=decay))
        torch.testing.assert_close(ldo.pda_loss(moved, expected, grid, decay), alike)


def test_pda_asks_nothing_where_nothing_is_expected_to_move():
    """All of it still: 0. Half of it still: what the student does there costs nothing and gets no
    gradient."""
    moved, expected, grid = (
        features(5, 8, (3, 2, 3)).requires_grad_(True),
        features(7, 9, (3, 2, 3)),
        (3, 2, 3),
    )
    assert ldo.pda_loss(moved, torch.zeros_like(expected), grid) == 0
    expected[:, ::2] = 0
    gradient = torch.autograd.grad(ldo.pda_loss(moved, expected, grid), moved)[0].norm(dim=-1)
    assert (gradient[:, ::2] == 0).all()
    assert (gradient[:, 1::2] > 0).all()
    both = torch.cat([expected, 1e-6 * expected.flip(1)])  # a clip that hardly moves beside one that moves
    gradient = torch.autograd.grad(ldo.pda_loss(torch.cat([moved, moved]), both, grid), moved)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(ldo.pda_loss(moved, expected, grid), moved)[0])
