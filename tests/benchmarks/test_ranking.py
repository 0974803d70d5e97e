"""The scores against eyes: pairs are drawn without a score, and a ranking counts for its own base alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from latent_physics.benchmarks import run
from latent_physics.benchmarks.toyworld import ranking
from latent_physics.toyworld import WORLDS, sample
from latent_physics.toyworld.corruption import VIOLATIONS, recoloured

ASKED = ("law", "lasting")


def clips_of(make) -> torch.Tensor:
    """A clip of each of two worlds, `B 3 T H W`."""
    found = []
    for name in ("rigid_body", "fluid"):
        world = WORLDS[name]
        frames = make(world, world.draw(np.random.default_rng(3)), np.random.default_rng(4))
        found.append(torch.from_numpy(np.ascontiguousarray(frames)).movedim(0, 1))
    return torch.stack(found)


def pairs_of(a, b) -> ranking.Pairs:
    worlds = ("rigid_body", "fluid")
    prompts = [sample(name, 1, 3)[1][0] for name in worlds]
    return ranking.Pairs(worlds=worlds, prompts=prompts, a=clips_of(a), b=clips_of(b))


def real(world, scene, rng):
    return world.render(scene)


def write(path, pairs, base="here"):
    path.write_text(json.dumps({"base": base, "pairs": pairs}))
    return path


def test_measures_prefer_the_clip_that_keeps_what_they_measure() -> None:
    shuffled = ranking.preferences(pairs_of(real, VIOLATIONS["shuffled"]))
    assert min(shuffled["law score"]) > 0.5
    assert min(shuffled["residual"]) > 0  # the smaller residual is preferred
    assert max(map(abs, shuffled["permanence"])) < 0.05  # the order of frames is no part of it
    swapped = ranking.preferences(pairs_of(VIOLATIONS["shuffled"], real))
    for measure, values in shuffled.items():
        assert swapped[measure] == pytest.approx([-value for value in values])
    assert max(ranking.preferences(pairs_of(recoloured, real))["permanence"]) < -0.3
    assert ranking.preferences(pairs_of(real, real)) == {key: [0.0, 0.0] for key in shuffled}


def test_agreement_counts_decided_pairs_and_ties_apart() -> None:
    found = ranking.agreement(list("AABB=="), [0.2, -0.1, -0.3, 0.0, 0.5, 0.0])
    assert found == ranking.Agreement(agreed=2, decided=3, judged_equal=2, scored_equal=1)
    turned = ranking.agreement(list("BBAA=="), [0.2, -0.1, -0.3, 0.0, 0.5, 0.0])
    assert turned == ranking.Agreement(agreed=1, decided=3, judged_equal=2, scored_equal=1)
    with pytest.raises(ValueError, match="2 answers meet 1 scored pairs"):
        ranking.agreement("AB", [0.1])


def test_pairs_are_drawn_without_a_score_and_answers_are_never_overwritten(tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("a pair was scored while it was drawn")

    pairs = pairs_of(real, VIOLATIONS["jump"])
    for module, name in ((ranking, "evaluate"), (ranking, "preferences")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(ranking, "sampled_pairs", lambda: pairs)
    assert ranking.main(["--draw", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pair_00.png",
        "pair_01.png",
        "ranking.json",
    ]
    form = json.loads((tmp_path / "ranking.json").read_text())
    assert form == {"base": ranking.base_digest(), "pairs": [dict.fromkeys(ASKED, "")] * 2}
    write(tmp_path / "ranking.json", [dict.fromkeys(ASKED, "A")] * 2)
    ranking.main(["--draw", str(tmp_path)])
    assert json.loads((tmp_path / "ranking.json").read_text())["base"] == "here"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"does not exist: draw the pairs with --draw FOLDER"),
        ("{", r"is no ranking \(Expecting"),
        ('{"base": "here"}', r"is no ranking \('pairs'\)"),
        ('{"base": "here", "pairs": [{"law": "A"}, {"law": "A"}]}', r"is no ranking \('lasting'\)"),
        (
            '{"base": "there", "pairs": []}',
            r"ranks clips of the base there and this one is here: draw its pairs",
        ),
        (
            '{"base": "here", "pairs": [{"law": "A", "lasting": "="}]}',
            r"ranks 1 pairs and there are 2: judge",
        ),
        (
            '{"base": "here", "pairs": [{"law": "A", "lasting": "="}, {"law": "", "lasting": "B"}]}',
            r"answers '' to law of pair 1; answers are A, B, =\.$",
        ),
    ],
)
def test_what_is_no_ranking_of_these_pairs_is_one_sentence(tmp_path, text, words) -> None:
    path = tmp_path / "ranking.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        ranking.answers_in(path, "here", 2)


def test_the_table_has_every_question_against_every_measure(tmp_path, monkeypatch, capsys) -> None:
    pairs = pairs_of(real, VIOLATIONS["shuffled"])
    monkeypatch.setattr(ranking, "sampled_pairs", lambda: pairs)
    monkeypatch.setattr(ranking, "COUNT", 2)
    monkeypatch.setattr(ranking, "base_digest", lambda: "here")
    path = write(tmp_path / "ranking.json", [{"law": "A", "lasting": "="}, {"law": "B", "lasting": "="}])
    assert ranking.main(["--ranking", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| keeps the law better | law score | 1 of 2 | 0.50 [0.09, 0.91] | 0 | 0 |" in lines
    assert "| keeps its things better | permanence | 0 of 0 | nan [nan, nan] | 2 | 0 |" in lines
    assert len([line for line in lines if line.startswith("| keeps")]) == 6
    write(path, [], base="there")
    assert ranking.main(["--ranking", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_every_world_has_five_pairs_of_two_noises_each(monkeypatch) -> None:
    seeds = []

    def sampled(backbone, prompts, *, cfg, seed):
        seeds.append(range(seed, seed + len(prompts)))
        return torch.zeros(len(prompts), 3, 1, 1, 1), 0.0

    monkeypatch.setattr(ranking.load, "load_backbone", lambda family: None)
    monkeypatch.setattr(ranking, "sampled_clips", sampled)
    pairs = ranking.sampled_pairs()
    assert ranking.COUNT == len(pairs.prompts) == len(pairs.worlds) == 40
    assert {name: list(pairs.worlds).count(name) for name in WORLDS} == dict.fromkeys(WORLDS, 5)
    assert not set(seeds[0]) & set(seeds[1])
    assert run.find("toyworld/ranking").module == ranking.__name__
