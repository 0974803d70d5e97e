"""What the scores are for: real clips win, shuffled and frozen ones lose, and wrong prompts are noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from latent_physics import toyworld
from latent_physics.toyworld.corruption import warped
from latent_physics.toyworld.prompts import understand, vocabulary
from latent_physics.toyworld.worlds import WORLDS

CLIPS = 6


@pytest.fixture(scope="module")
def real():
    return {name: toyworld.sample(name, CLIPS, seed=77) for name in WORLDS}


@pytest.mark.parametrize("name", WORLDS)
def test_real_shuffled_frozen(real, name):
    clips, prompts = real[name]
    scores = toyworld.evaluate(clips, name, prompts)
    assert scores.law.mean() > 0.85
    assert scores.adherence.min() > 0.9
    assert 0.3 < scores.dynamic_degree.mean() < 2
    order = torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(1))
    assert toyworld.score(clips[:, :, order], name).mean() < 0.25
    still = clips[:, :, :1].expand_as(clips)
    assert toyworld.score(still, name).mean() < 0.3
    assert toyworld.dynamic_degree(still, name).max() == 0


@pytest.mark.parametrize("name", WORLDS)
def test_uneven_time_and_wrong_constants_score_lower(name):
    world, rng = WORLDS[name], np.random.default_rng(5)
    kinds = {"real": [], "warped": [], "wrong": []}
    constant = next(iter(world.constants))
    for _ in range(CLIPS):
        scene = world.draw(rng)
        kinds["real"].append(world.render(scene))
        kinds["warped"].append(world.render(scene, warped(rng)))
        kinds["wrong"].append(world.render(scene, **{constant: 2 * world.constants[constant]}))
    found = {
        kind: toyworld.score(torch.tensor(np.stack(clips)).movedim(1, 2), name).mean()
        for kind, clips in kinds.items()
    }
    assert found["warped"] < found["real"] - 0.15
    assert found["wrong"] < found["real"] - 0.05


def swap_colours(prompt: str) -> str:
    """Red for green and green for red."""
    return prompt.replace("red ", "GREEN ").replace("green ", "red ").replace("GREEN ", "green ")


def test_prompts_of_other_worlds_and_colours_are_noticed(real):
    names = list(WORLDS)
    for index, name in enumerate(names):
        clips, prompts = real[name]
        assert toyworld.adherence(clips, real[names[index - 1]][1]).max() == 0
        swapped = [swap_colours(prompt) for prompt in prompts]
        single = [len(understand(prompt).colours) == 1 for prompt in prompts]
        changed = [index for index in range(CLIPS) if single[index] and prompts[index] != swapped[index]]
        if changed:
            assert toyworld.adherence(clips[changed], [swapped[index] for index in changed]).max() < 0.3
    assert toyworld.adherence(real[names[0]][0][:1], ["a city at night"]).item() == 0


def test_every_phrasing_is_understood_and_every_word_known(real):
    known = set(vocabulary())
    for name, (_, prompts) in real.items():
        for prompt in prompts:
            request = understand(prompt)
            assert request.world == name
            assert request.colours
            assert {word.strip(",:") for word in prompt.lower().split()} <= known


def test_the_same_seed_gives_the_same_clips():
    first, second, other = (toyworld.sample("fluid", 2, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_mixture_is_as_wrong_as_asked():
    right = toyworld.mixture(16, 9, wrong=0.0)
    wrong = toyworld.mixture(16, 9, wrong=1.0)
    assert toyworld.score(right[0], right[2]).mean() > 0.85
    assert toyworld.score(wrong[0], wrong[2]).mean() < 0.75
    assert set(right[2]) == set(WORLDS)


@pytest.mark.parametrize(
    ("shape", "worlds", "match"),
    [
        ((1, 3, 33, 32, 32), "fluid", "toy clips are"),
        ((1, 3, 5, 64, 64), "fluid", "12 or more frames"),
        ((1, 3, 33, 64, 64), "plasma", "no toy world 'plasma'"),
        ((2, 3, 33, 64, 64), ["fluid"], "1 worlds were named for 2 clips"),
    ],
)
def test_bad_input_is_one_sentence(shape, worlds, match):
    with pytest.raises(ValueError, match=match):
        toyworld.score(torch.zeros(shape), worlds)


def test_empty_clips_score_zero():
    """A clip of bare scenery, and one of noise, keep no law."""
    for name, world in WORLDS.items():
        bare = torch.from_numpy(world.background)[None, :, None].expand(1, 3, 33, 64, 64)
        assert toyworld.score(bare, name).item() < 0.05
        assert (
            toyworld.score(
                torch.rand(1, 3, 33, 64, 64, generator=torch.Generator().manual_seed(0)), name
            ).item()
            < 0.35
        )


def test_words_that_only_hold_a_clue_do_not_count():
    for prompt, world in {
        "a nice red ball thrown to the left": "rigid_body",  # no ice
        "a pink ring of light": "optical",  # no ink
        "two slices of bread": None,
    }.items():
        assert understand(prompt).world == world


def test_clips_that_are_not_finite_have_no_score(real):
    clips, prompts = real["fluid"]
    broken = clips.clone()
    broken[1, 0, 3, 5, 5] = float("nan")
    for measure in (toyworld.score, toyworld.dynamic_degree):
        with pytest.raises(ValueError, match="NaN"):
            measure(broken, "fluid")
    with pytest.raises(ValueError, match="NaN"):
        toyworld.adherence(broken, prompts)
