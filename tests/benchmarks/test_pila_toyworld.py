"""One command trains PILA and the plain adapter in the toy world and compares them with the base model."""

from __future__ import annotations

import csv

import pytest
from latent_physics.benchmarks.pila import toyworld
from latent_physics.methods.pila import PilaConfig
from latent_physics.toyworld.worlds import WORLDS
from latent_physics.training.loop import shown
from latent_physics.training.loop.checkpoint import CHECKPOINT
from latent_physics.training.tasks.pila.columns import EXPORT
from latent_physics.training.tasks.pila.settings import RECIPES, PilaTraining

QUICK = PilaTraining(
    observable_steps=2, recovery_steps=2, alpha_start=0, impulse_start=1, wave_start=1, coupling_steps=2,
    freeze_steps=1,
    batch=1, learning_rate=1e-3, shift=3.0, every=100, held_out_clips=0,
)  # fmt: skip
SAMPLING = ["--clips", "1", "--steps", "1", "--per-prompt", "2"]


@pytest.fixture
def script(monkeypatch):
    """benchmarks/pila/toyworld.py with two steps per stage, a small adapter and one world."""
    monkeypatch.setattr(toyworld, "WORLDS", {"thermal": WORLDS["thermal"]})
    monkeypatch.setattr(shown, "draw_curves", lambda *_: None)  # takes longer than everything else here
    monkeypatch.setitem(RECIPES, "toy", (QUICK, PilaConfig(hidden=8, blocks=1, head_width=8)))
    return toyworld


def table(text):
    """The printed table: a dictionary per row, by the model's name. "less base" is each score's own there."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    names = [
        "model",
        "parameters",
        "steps",
        "min",
        "law",
        "law gain",
        "adherence",
        "adherence gain",
        "dynamic",
        "dynamic gain",
    ]
    return {line[0]: dict(zip(names, line)) for line in lines[1:]}


def without_times(rows):
    return [{name: cell for name, cell in row.items() if name != "min"} for row in rows.values()]


def test_one_command_trains_what_is_missing_and_compares(script, tmp_path, capsys):
    command = [
        "--train",
        str(tmp_path),
        "--train-clips",
        "4",
        *SAMPLING,
        "--out",
        str(tmp_path / "scores.csv"),
    ]
    assert script.main(command) == 0
    first = capsys.readouterr().out
    rows = table(first)
    assert list(rows) == ["base", "PILA", "plain adapter"]
    assert (
        rows["PILA"]["steps"] == rows["plain adapter"]["steps"] == "10"
    )  # the plain adapter has no stages A and B
    sizes = [int(rows[name]["parameters"].replace(",", "")) for name in ("PILA", "plain adapter")]
    assert sizes[1] == pytest.approx(
        sizes[0], rel=0.05
    )  # width 8 leaves the block that fills the gap no finer steps
    assert "[" in rows["PILA"]["law gain"]
    assert not rows["base"]["law gain"]
    assert "PILA less plain adapter: law " in first
    with open(tmp_path / "scores.csv", newline="") as file:
        clips = list(csv.DictReader(file))
    assert [row["model"] for row in clips] == ["base"] * 2 + ["PILA"] * 2 + ["plain adapter"] * 2
    assert len({row["prompt"] for row in clips}) == 1

    runs = sorted(tmp_path.glob("base-*/*"))
    assert [run.name for run in runs] == ["full-seed0", "plain_adapter-seed0"]
    made = [(run / name).stat().st_mtime_ns for run in runs for name in (CHECKPOINT, EXPORT)]
    assert script.main([*command, "--ablations", "full", "--adapters", str(runs[1] / EXPORT)]) == 0
    again = table(capsys.readouterr().out)
    assert [
        (run / name).stat().st_mtime_ns for run in runs for name in (CHECKPOINT, EXPORT)
    ] == made  # nothing was trained
    assert without_times(again) == without_times(rows)


def test_seeds_are_rows_and_a_mean(script, tmp_path, capsys):
    command = [
        "--train",
        str(tmp_path),
        "--train-clips",
        "2",
        "--ablations",
        "plain_adapter",
        "--seeds",
        "0",
        "1",
        *SAMPLING,
    ]
    assert script.main([*command, "--train-steps", "1"]) == 0
    rows = table(capsys.readouterr().out)
    assert list(rows) == [
        "base",
        "plain adapter, seed 0",
        "plain adapter, seed 1",
        "plain adapter, mean of 2",
    ]
    assert rows["plain adapter, seed 1"]["steps"] == "1"


def test_every_ablation_has_the_same_number_of_steps_and_a_name_of_its_own(script):
    from latent_physics.training.study.ablations import ABLATIONS
    from latent_physics.training.tasks.pila.stages import stages_of

    for name, method in ABLATIONS.items():
        config, _ = script.same_budget(name, 3, None)
        assert sum(stage.steps for stage in stages_of(config, method)) == 10
        assert config.seed == 3
    assert len({script.name_of(name) for name in ABLATIONS}) == len(ABLATIONS)


def test_what_cannot_be_trained_is_said_in_one_sentence(script, tmp_path, capsys):
    assert script.main(["--train", str(tmp_path), "--train-steps", "8"]) == 1
    assert capsys.readouterr().err.startswith("error: --train-steps is 8; full needs more than 8, which ")
    for arguments, words in ([], "--train FOLDER"), (["--train", "x", "--clips", "0"], "--clips is 0"):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert words in capsys.readouterr().err


def test_a_training_that_is_stopped_ends_the_command(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "train", lambda run, stop: None)
    assert script.main(["--train", str(tmp_path), "--train-clips", "2", *SAMPLING]) == 130
    out = capsys.readouterr().out
    assert "Stopped at step 0 of 10" in out
    assert "| model" not in out
