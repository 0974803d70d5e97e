"""The gate, with teachers whose answers are planted: one that must pass, and one for each way to fail."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from latent_physics.methods import relational
from latent_physics.toyworld import WORLDS
from latent_physics.toyworld.oracle import CHANNELS, oracle_features, things, world_of
from latent_physics.training.backbones import Activation
from latent_physics.training.data.oracle import OracleFlow
from latent_physics.training.objectives import parse
from latent_physics.training.study import gate
from latent_physics.training.study.probes import r2, velocity_r2

CLIPS, FRAMES = 24, 16
LIMITS = gate.Limits()


def paths() -> torch.Tensor:
    """Places of a thing, `B T 2` x and y in pixels: four pixels a frame to the left or to the right, every
    4th frame a token."""
    generator = torch.Generator().manual_seed(0)
    way = torch.randint(0, 2, (CLIPS, 1), generator=generator) * 2 - 1
    x = 32 + 3.5 * way * (torch.arange(FRAMES) - FRAMES / 2)
    y = torch.randint(4, 60, (CLIPS, 1), generator=generator).expand(-1, FRAMES).float()
    return torch.stack([x, y], dim=-1).clamp(1, 62)


def scene(
    *, moves: bool = True, coarse: bool = True, haze: float = 0.0, teacher_knows=True, base_knows=False
):
    """(a scene of 8 x 8 x 8 teacher cells and 4 x 4 x 4 tokens, the paths). The thing's cell says that it is
    there and how it moves; every other cell has the code of its place.

    moves: or stands still in its first place. coarse: a step is as large as a token; otherwise the thing
    jumps inside its token. haze: length of what all features have in common. *_knows: whether the velocity is
    in the features.
    """
    generator = torch.Generator().manual_seed(1)
    where = paths()
    cells = where[:, ::2]
    if not moves:
        cells = cells[:, :1].expand(-1, FRAMES // 2, -1)
    column, row = (cells / 8).long().unbind(-1)
    if not coarse:  # from one half of its token to the other and back
        column = (where[:, :1, 0] / 16).long() * 2 + torch.arange(FRAMES // 2) % 2
        row = row[:, :1].expand(-1, FRAMES // 2)
    codes = torch.nn.functional.normalize(torch.randn(24, 8, 8, generator=generator), dim=0)
    volume = torch.cat([codes, torch.zeros(3, 8, 8)])[None, :, None].repeat(CLIPS, 1, FRAMES // 2, 1, 1)
    way = (where[:, -1, 0] - where[:, 0, 0]).sign()
    for b in range(CLIPS):
        for f in range(FRAMES // 2):
            volume[b, :, f, row[b, f], column[b, f]] = 0
            volume[b, 24, f, row[b, f], column[b, f]] = 1
            volume[b, 25, f, row[b, f], column[b, f]] = way[b] * 0.5 * teacher_knows
    volume[:, 26] = haze
    volume += 0.01 * torch.randn(volume.shape, generator=generator)
    tokens = 0.1 * torch.randn(CLIPS, 5 * 16, 6, generator=generator)
    if base_knows:
        tokens[:, :, 0] += way[:, None]
    need = parse.needed_teachers(["tsa block=1 teacher=toy_oracle"])[0]
    features = {
        need.key: {"features": volume, "exact_saliency": torch.rand(CLIPS, 8, 8, 8, generator=generator)}
    }
    videos = torch.rand(CLIPS, 3, FRAMES + 1, 64, 64, generator=generator)
    taps = {1: Activation(tokens=tokens, grid=(5, 4, 4))}
    return gate.Scene(
        videos=videos, latents=torch.zeros(CLIPS, 4, 5, 8, 8), taps=taps, features=features
    ), where


def reading(text: str, **kinds) -> gate.Reading:
    made, where = scene(**kinds)
    widths = {need.key: 27 for need in parse.needed_teachers([text])}
    (objective,) = parse.build([text], width=6, blocks=2, channels=widths).values()
    return gate.read_arm("arm", objective, made, made, where)


ARM = "block=1 stride=1 hidden=8 teacher=toy_oracle"


@pytest.mark.parametrize("kind", ["repa", "trd", "soft_trd", "tsa", "mtsa"])
def test_a_teacher_that_knows_what_moves_passes(kind):
    found = reading(f"{kind} {ARM} grid=tokens centre=true")
    assert found.faults(LIMITS) == []
    assert found.teacher_r2 > 0.8 > 0.2 > found.base_r2
    assert found.expressed == pytest.approx(1)  # the comparison is on the student's own grid


def test_a_teacher_whose_features_stand_still_is_closed():
    found = reading(f"repa {ARM}", moves=False)
    assert found.frozen > 0.99
    assert any("a frozen clip satisfies" in words for words in found.faults(LIMITS))


def test_motion_inside_a_token_is_closed():
    """The thing jumps to and fro inside one token: averaged to the student's grid nothing is left of it."""
    found = reading(f"repa {ARM}", coarse=False)
    assert found.expressed < 0
    assert any("the student's grid expresses" in words for words in found.faults(LIMITS))


def test_a_haze_closes_what_compares_correspondences_and_nothing_else():
    hazy, clear = (reading(f"tsa {ARM} temperature=0.1", haze=haze) for haze in (5.0, 0.0))
    assert hazy.entropy > 0.9 > clear.entropy
    assert any("of a uniform entropy" in words for words in hazy.faults(LIMITS))
    assert not any("entropy" in words for words in replace(hazy, objective="trd").faults(LIMITS))


def test_a_teacher_that_knows_less_than_the_base_is_closed():
    found = reading(f"tsa {ARM} grid=tokens centre=true", teacher_knows=False, base_knows=True)
    assert found.base_r2 > 0.8 > found.teacher_r2
    assert any("reads velocities no better than the base" in words for words in found.faults(LIMITS))


def test_shares_equal_their_closed_forms():
    """Orthogonal codes of 4 places that stand still: REPA costs who knows nothing 1 - 1/2 and a frozen clip
    0. Two codes in turn everywhere: both know the mean, 1 - 1/sqrt 2."""
    eye = torch.eye(8)
    places = eye[:4].T.reshape(1, 8, 1, 2, 2).repeat(2, 1, 4, 1, 1)
    turns = eye[[0, 1, 0, 1]].T.reshape(1, 8, 4, 1, 1).repeat(2, 1, 1, 2, 2)
    (objective,) = parse.build(
        [f"repa {ARM}"], width=6, blocks=1, channels={"toy_oracle, default": 8}
    ).values()
    for volume, expected in ((places, (0.5, 0.0)), (turns, (1 - 0.5**0.5, 1 - 0.5**0.5))):
        made, _ = scene()
        made.videos, made.latents = made.videos[:2], made.latents[:2]
        made.taps = {1: Activation(tokens=torch.zeros(2, 5 * 4, 6), grid=(5, 2, 2))}
        made.features = {"toy_oracle, default": {"features": volume}}
        nothing, still, squeezed = gate.losses(objective, made)
        assert (nothing, still) == pytest.approx(expected, abs=1e-6)
        assert squeezed == pytest.approx(0, abs=1e-6)
        share, _ = gate.entropies(objective, made, temperature=0.5)
        weights = np.exp([2.0, 0, 0, 0]) / np.exp([2.0, 0, 0, 0]).sum()
        own = -(weights * np.log(weights)).sum() / math.log(4)
        assert share == pytest.approx(own if volume is places else 1, abs=1e-5)


def test_the_probe_is_ridge_regression_on_held_out_clips():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(5, 2, generator=generator, dtype=torch.float64) + 3
    even = torch.arange(400) % 2 == 0
    assert r2(x, y, even, ~even, 1e-6) == pytest.approx(1, abs=1e-6)
    noise = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    assert -0.2 < r2(noise, y, even, ~even, 1e-3) < 0.1
    constant = torch.cat([x, torch.zeros(400, 1)], dim=1)
    constant[1, 5] = 1e6  # never seen to vary while it was fitted
    assert r2(constant[:, :5], y, even, ~even, 1e-6) > 0.99
    made, where = scene()
    volume = relational.fit(next(iter(made.features.values()))["features"], (4, 4, 4))
    assert velocity_r2(volume, where) > 0.8
    assert velocity_r2(volume[:, :24], where) < 0.2


def test_the_oracle_knows_places_and_velocities():
    """Against the scene that was drawn: the balls' horizontal speed, their mass, and a code for every place
    of the background."""
    world, rng = WORLDS["rigid_body"], np.random.default_rng(5)
    drawn = world.draw(rng)
    clip = torch.from_numpy(world.render(drawn)).movedim(1, 0)
    assert world_of(clip) is world
    opacity, velocity = things(clip)
    k = int(opacity.sum(dim=(0, 2, 3)).argmax())
    assert float(velocity[2:-2, k, 0].median()) == pytest.approx(drawn.values["speed"], abs=0.05)
    found = oracle_features(clip[:, 1:], (2, 8, 8))
    assert found.shape == (CHANNELS, 16, 8, 8)
    seen = (
        opacity[1:].unflatten(0, (16, 2)).mean(1).unflatten(2, (8, 8)).unflatten(4, (8, 8)).mean(dim=(3, 5))
    )
    torch.testing.assert_close(found[:5], seen.movedim(1, 0))
    empty = seen.sum(dim=1).sum(dim=0) == 0
    codes = found[15:, :, empty]
    torch.testing.assert_close(codes, codes[:, :1].expand_as(codes))
    torch.testing.assert_close(codes.norm(dim=0), torch.ones(16, int(empty.sum())))


def test_the_worlds_own_flow_moves_the_things_and_nothing_else():
    """Against the ball's speed, at its own size and at twice it; where no thing is the flow is 0."""
    world, rng = WORLDS["rigid_body"], np.random.default_rng(5)
    drawn = world.draw(rng)
    clip = torch.from_numpy(world.render(drawn)).movedim(1, 0)
    opacity, _ = things(clip)
    flow = OracleFlow().flow(clip[None, :, 1:], step=2, size=(64, 64))[0]
    assert flow.shape == (2, 15, 64, 64)
    inside = opacity[1:-2:2].sum(dim=1) > 0.99
    speed = drawn.values["speed"]
    for number in range(2, 12):
        assert float(flow[0, number][inside[number]].median()) == pytest.approx(2 * speed, abs=0.15)
    assert not flow[:, opacity[1:-2:2].sum(dim=1) == 0].any()
    large = OracleFlow().flow(clip[None, :, 1:], step=2, size=(128, 128))[0]
    assert float(large[0].abs().amax()) == pytest.approx(2 * float(flow[0].abs().amax()), rel=0.05)
