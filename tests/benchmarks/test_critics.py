"""The benchmarks of critics: the choices they count are those of the node, and their tables can come out
otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from latent_physics.benchmarks.toyworld import best_of_n, critics


def prompt(worth: list[float], early: list[float], law: list[float]) -> dict:
    """A row of the marks file with one critic; `early` are the marks at both looks."""
    marks = {look: {"plausibility": early, "motion": [1.0] * 16} for look in ("x3", "x6")}
    marks["final"] = {"plausibility": worth, "motion": [1.0] * 16}
    scores = dict.fromkeys(("law", "adherence", "dynamic_degree"), law)
    return {"marks": {"geometry": marks}} | scores


def test_choice_is_that_of_the_node() -> None:
    """Unpruned: the best finished clip.

    Pruned: 16, 8, 4, then the best finished one of those that looked best early.
    """
    worth = [float(number) for number in range(16)]
    row = prompt(worth, [-number for number in worth], worth)
    assert best_of_n.choice(row, "geometry", range(16), "frames", pruned=False) == 15
    assert best_of_n.choice(row, "geometry", range(16), "frames", pruned=True) == 3
    row["marks"]["geometry"]["final"]["motion"][15] = 0.0
    assert best_of_n.choice(row, "geometry", range(16), "frames", pruned=False) == 14, (
        "a still clip never wins"
    )


def test_good_and_bad_critics_come_out_between_chance_and_oracle() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(12):
        law = rng.random(16).tolist()
        rows.append(prompt(law, law, law))
    scores = {who: np.mean(best_of_n.chosen(rows, who, 8)) for who in ("random", "oracle", "geometry")}
    assert scores["oracle"] == scores["geometry"] > scores["random"]
    assert np.mean(best_of_n.chosen(rows, "geometry", 8, pruned=True)) == scores["oracle"]
    for row in rows:
        row["marks"]["geometry"]["final"]["plausibility"] = [1 - value for value in row["law"]]
    assert np.mean(best_of_n.chosen(rows, "geometry", 8)) < scores["random"]
    assert best_of_n.chosen(rows, "oracle", 1) == pytest.approx(best_of_n.chosen(rows, "random", 1))


def test_rank_correlation_is_spearmans() -> None:
    assert best_of_n.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1.0)
    assert best_of_n.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert best_of_n.spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_one_scene_is_judged_in_every_version_and_again_from_the_file(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    """One law, one scene, the cheap critics: every table is printed, and a second run judges nothing
    again."""
    monkeypatch.setattr(critics, "WORLDS", {"rigid_body": critics.WORLDS["rigid_body"]})
    found, models = critics.make_critics(8, [8])
    cheap = {name: critic for name, critic in found.items() if name.startswith("motion")}
    monkeypatch.setattr(critics, "make_critics", lambda *settings: (cheap, models))
    arguments = ["--clips", "2", "--rows", str(tmp_path / "rows.json")]
    critics.main(arguments)
    first = capsys.readouterr().out
    assert "| motion order 2 |" in first
    assert "0 of 2" in first, "frozen never first by score"
    monkeypatch.setattr(critics, "versions", None)
    critics.main(arguments)
    assert capsys.readouterr().out == first
