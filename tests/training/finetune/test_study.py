"""The study: what it keeps, what it refuses, what it reads without sampling, and that stopping changes
nothing."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from latent_physics.methods.lamo import load_predictor
from latent_physics.methods.step import SamplingStep
from latent_physics.tests.training.backbones import tiny
from latent_physics.toyworld import sample
from latent_physics.training.backbones import load, load_backbone
from latent_physics.training.commands import cli, pila, predictor
from latent_physics.training.commands import study as command
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.toy import make_toy_clips
from latent_physics.training.objectives import parse
from latent_physics.training.recipes import recipe_in
from latent_physics.training.study import (
    corrections,
    cost,
    files,
    gate,
    pace,
    plan,
    readouts,
    report,
    scene,
    study,
)  # fmt: skip
from latent_physics.training.study.frames import ROWS
from latent_physics.training.study.kept import exported
from latent_physics.training.study.sampling import SCORES
from latent_physics.training.tasks.grpo.settings import GrpoConfig

ALIGN = "block=1 teacher=toy_oracle stride=1 hidden=8 grid=tokens centre=true"
PREDICTOR = load.TOY_WEIGHTS / "toy_predictor_order1.safetensors"
PLAN = {
    "seeds": [0, 1],
    "tests": ["alignment", "law"],
    "readout_clips": 12,
    "sigmas": [0.5],
    "refit_steps": 1,
    "prompts": 2,
    "sampling_steps": 1,
    "cfg": 1.0,
    "regimes": [
        {"name": "mixture", "clips": 5, "steps": 2, "validate_every": 1,
         "readouts": ["alignment", "clips", "speed"]}
    ],
    "arms": [
        {"name": "plain", "recipe": "toy-plain"},
        {"name": "REPA", "recipe": "toy-repa", "objectives": [f"repa weight=0.5 {ALIGN}"]},
        {"name": "TSA", "recipe": "toy-tsa", "objectives": [f"tsa weight=0.5 {ALIGN}"]},
        {"name": "LaMo", "corrections": [f"lamo predictor={PREDICTOR}"]},
        {"name": "z_t", "corrections": [f"lamo predictor={PREDICTOR} edit=noisy"]},
        {"name": "GRPO", "dit": "nowhere-{seed}.safetensors"},
    ],
}  # fmt: skip


WORDS = ["--recipe", "toy", "--cache", "{clips}", "--steps", "2", "--width", "8", "--blocks", "1"]
MADE = {"name": "made", "command": "predictor", "arguments": [*WORDS, "--seed", "{seed}"], "clips": 4}
"""A file that a study makes, once for each seed."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "TOY_WEIGHTS", tiny.toy_weights(tmp_path_factory.mktemp("weights")))
        yield load.TOY_WEIGHTS


def reading(arm: str, **changes) -> gate.Reading:
    values = {"arm": arm, "objective": "tsa", "teacher": "toy_videomae", "frozen": 0.1, "expressed": 0.9,
              "entropy": 0.6, "entropy_moving": 0.5, "teacher_r2": 0.4, "base_r2": 0.2}  # fmt: skip
    return gate.Reading(**(values | changes))


@pytest.fixture
def gates(monkeypatch):
    """TSA's gate is closed, and no other."""

    def planted(texts, *rest):
        return [reading(arm, frozen=0.89 if arm == "TSA" else 0.1) for arm in texts]

    monkeypatch.setattr(study, "read_gate", planted)


def quiet() -> ProgressLine:
    return ProgressLine("test", io.StringIO())


def config(folder: Path, **changes) -> study.StudyConfig:
    path = folder / "tiny.json"
    path.write_text(json.dumps(PLAN | changes))
    return study.StudyConfig(out=folder / "out", plan=str(path))


class StopAt(StopRequest):
    """Asks for a stop when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    @asked.setter
    def asked(self, value: bool) -> None:
        pass


@pytest.fixture
def encoded_once(monkeypatch):
    """The readouts' clips are encoded by the first study and remembered, and scores are brightness: both are
    most of a tiny study's time, and no subject of it."""
    made = []

    def remembered(*arguments):
        if not made:
            made.append(scene.encoded(*arguments))
        return made[0]

    def brightness(clips, prompts, worlds):
        return {name: clips.mean(dim=(1, 2, 3, 4)) for name in SCORES}

    monkeypatch.setattr(study, "encoded", remembered)
    monkeypatch.setattr(study, "scores_of", brightness)


def test_a_study_that_is_stopped_over_and_over_comes_out_the_same(tmp_path, weights, gates, encoded_once):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    once = study.Study(config(whole), StopRequest(), quiet())
    text = report.tables(once.plan, once.go())
    again, calls = study.Study(config(parts), StopRequest(), quiet()), 0
    shutil.copytree(once.out / "data", again.out / "data")  # drawing clips is no subject here
    while True:
        again = study.Study(config(parts), StopAt(11), quiet())
        results = again.go()
        calls += 1
        assert calls < 30, "it does not get on"
        if not results.stopped:
            break
    assert calls > 2
    assert report.tables(again.plan, results) == text
    written = {path: path.stat().st_mtime_ns for path in again.out.rglob("*.json")}
    third = study.Study(config(parts), StopRequest(), quiet())
    third.go()
    assert report.write_report(third) == text
    assert {path: path.stat().st_mtime_ns for path in third.out.rglob("*.json")} == written
    assert (third.out / "tables.md").read_text() == text + "\n"
    assert {path.name for path in third.out.glob("*.png")} == {
        "effects.png",
        "sheet-mixture.png",
        "sheet-sampled.png",
    }
    check_tables(once, text)
    changed = json.loads(Path(config(parts).plan).read_text())["regimes"][0] | {"steps": 3}
    with pytest.raises(TrainingError, match="holds a training of other settings"):
        study.Study(config(parts, regimes=[changed]), StopRequest(), quiet()).go()


def test_what_another_process_is_making_is_made_last_and_waited_for(tmp_path, weights, gates, encoded_once):
    arms = [arm for arm in PLAN["arms"] if arm["name"] in ("plain", "REPA")]
    made = study.Study(config(tmp_path, arms=arms, seeds=[0]), StopRequest(), quiet())
    taken, other = made.out / "mixture" / "plain" / "seed-0", made.out / "mixture" / "REPA" / "seed-0"
    taken.parent.mkdir(parents=True)
    lock = FileLock(taken.with_name("seed-0.lock"), thread_local=False)  # released by a thread
    lock.acquire()

    def release() -> None:
        while exported(other) is None:
            time.sleep(0.1)
        lock.release()

    with ThreadPoolExecutor(1) as elsewhere:
        released = elsewhere.submit(release)
        results = made.go()
        released.result()
    assert exported(taken).stat().st_mtime_ns > exported(other).stat().st_mtime_ns
    assert [*results.found["mixture"]] == ["plain", "REPA"]  # in the plan's order all the same
    assert "steps to equal loss" in results.found["mixture"]["REPA"][0]  # read once the control was there
    with FileLock(taken.with_name("seed-0.lock")):
        assert study.Study(config(tmp_path, arms=arms, seeds=[0]), StopAt(2), quiet()).go().stopped


def check_tables(made: study.Study, text: str) -> None:
    """What the study of `PLAN` must say."""
    assert "- TSA: its gate is closed: a frozen clip satisfies 89% of it." in text
    assert "- GRPO: nowhere-0.safetensors is not there." in text
    assert "| **plain** | 2 |" in text
    assert "| REPA | 2 |" in text
    assert "| LaMo | 1 |" in text
    sampled = made.results.found["sampled"]
    assert [*sampled] == [*ROWS, "base", "LaMo", "z_t"]
    assert "moving 0.5" in sampled["LaMo"][0]
    assert "moving 0.5" not in sampled["z_t"][0]  # no denoised estimate shows it
    trained = made.results.found["mixture"]
    assert [*trained] == ["plain", "REPA"]
    assert all(len(each["alignment REPA"]) == 12 and len(each["law"]) == 2 for each in trained["REPA"])
    assert (
        trained["plain"][0]["law"] != trained["plain"][1]["law"] or trained["plain"][0] != trained["plain"][1]
    )
    assert not list(made.out.rglob("checkpoint.safetensors"))


def test_the_gate_is_printed_and_nothing_trained(tmp_path, weights, gates, capsys):
    settings = config(tmp_path)
    assert command.main(["--gate", "--plan", settings.plan, "--out", str(settings.out)]) == 0
    out = capsys.readouterr().out
    assert "| TSA | toy_videomae | 89% | 90% | 60% / 50% | 0.40 / 0.20 | closed: a frozen clip" in out
    assert "Not comparable: TSA: its gate is closed" in out
    assert not list(settings.out.rglob("*.safetensors"))
    assert command.main(["--gate", "--plan", settings.plan, "--arms", "none"]) == 1
    assert "arm 'none' is unknown; the plan has plain, REPA" in capsys.readouterr().err


def test_a_plan_without_an_alignment_reads_no_gate(tmp_path, weights, monkeypatch, capsys):
    def reads(*arguments):
        raise AssertionError("the gate is read")

    monkeypatch.setattr(study, "read_gate", reads)
    settings = config(tmp_path, arms=[PLAN["arms"][0], PLAN["arms"][3]])
    made = study.Study(settings, StopRequest(), quiet())
    assert made.read_gate() == []
    assert "gate" not in report.tables(made.plan, made.results).lower()
    assert command.main(["--gate", "--plan", settings.plan, "--out", str(settings.out)]) == 0
    assert "there is no gate to read" in capsys.readouterr().out


# --- costs --------------------------------------------------------------------------------------------------


class HourEach(dict):
    """A core hour for every unit of work."""

    def __init__(self, *ignored) -> None:
        super().__init__()

    def __missing__(self, unit: str) -> float:
        self[unit] = 3600.0
        return 3600.0


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a table's lines by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines}


def test_a_dry_run_says_what_is_there_and_what_is_left_and_makes_nothing(
    tmp_path, weights, gates, monkeypatch, capsys
):
    monkeypatch.setattr(cost, "Paces", HourEach)
    anew = {"name": "anew", "corrections": ["lamo predictor={made}"]}
    settings = config(tmp_path, arms=[*PLAN["arms"], anew], files=[MADE])
    words = ["--dry-run", "--plan", settings.plan, "--out", str(settings.out)]
    assert command.main(words) == 0
    text = capsys.readouterr().out
    found = rows(text)
    assert not settings.out.exists()
    assert "Not counted: GRPO: nowhere-0.safetensors is not there." in text
    assert "The gate has not been read" in text
    # three arms, two seeds, two steps each; the control is read for both alignments
    assert found["mixture: trainings"] == ["0", "6", "12", "0", "12.00"]
    readouts = 8 * (12 + 1) + 6 * (2 * 1 + 2)  # clips looked at and a step; steps and scores of two clips
    assert found["mixture: readouts"] == ["0", "14", "0", "12", f"{readouts:.2f}"]
    assert found["files by predictor"] == ["0", "2", "4", "0", "4.00"]
    assert found["clips drawn to train on"] == ["0", "3", "0", "0", "24.00"]  # with one teacher's features
    assert found["sampled, without a training"][:2] == ["0", str(len(ROWS) + 5)]
    made = study.Study(settings, StopRequest(), quiet())
    made.read_gate()
    arms = {arm.name: arm for arm in made.arms}
    done, begun = (made.folder("mixture", arms[name], 0) for name in ("plain", "REPA"))
    for path, content in ((done / "x-full.safetensors", ""), (begun / "log.csv", "step,loss\n1,0.5\n")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert command.main(words) == 0
    text = capsys.readouterr().out
    assert "Not counted: TSA: its gate is closed" in text
    assert "has not been read" not in text
    assert rows(text)["mixture: trainings"] == ["1", "3", "5", "0", "5.00"]


NIGHT = {
    "clip": 0.244, "teacher": 0.161, "look": 0.057, "score": 0.325, "sample": 0.0283, "sample lamo": 0.0057,
    "sample pila": 0.0181, "sample still": 0.0, "step plain": 0.376, "step mtsa": 0.421, "step repa": 0.37,
    "step trd": 0.417, "step soft_trd": 0.37, "step tsa": 0.361, "step pda": 0.477, "step drift": 0.384,
    "step predictor": 0.116, "step pila 8": 0.49, "refit mtsa": 0.152, "refit repa": 0.201,
    "refit trd": 0.158, "refit soft_trd": 0.229, "refit tsa": 0.155, "refit pda": 0.188,
}  # fmt: skip
"""Core seconds of docs/evidence.md."""


def test_the_whole_plan_is_one_night_on_two_cores(tmp_path):
    made = study.Study(study.StudyConfig(out=tmp_path), StopRequest(), quiet())
    hours = sum(part.seconds(NIGHT) for part in cost.parts_of(made)) / 3600
    assert 12 < hours < 16


def test_every_unit_of_work_is_timed(tmp_path, weights):
    made = study.Study(config(tmp_path), StopRequest(), quiet())
    paces = pace.Paces(made, tmp_path / "timed")
    for unit in ("step plain", "step repa", "step predictor", "step pila 4", "refit tsa", "teacher", "look",
                 "sample", "sample lamo", "score"):  # fmt: skip
        assert paces[unit] >= 0.0
    assert paces["clip"] > 0.0
    assert not made.out.exists()


# --- files --------------------------------------------------------------------------------------------------


def with_files(folder: Path, **changes) -> study.StudyConfig:
    """A study of one arm that is not trained, whose predictors it makes."""
    arms = [PLAN["arms"][0], {"name": "LaMo, anew", "corrections": ["lamo predictor={made}"]}]
    return config(folder, arms=arms, regimes=[], files=[MADE | changes])


def test_a_study_makes_the_files_that_its_arms_need(tmp_path, weights, gates, encoded_once):
    made = study.Study(with_files(tmp_path), StopRequest(), quiet())
    found = made.go().found["sampled"]["LaMo, anew"]
    assert len(found) == 2  # a row for each seed's file
    paths = sorted((made.out / "files").glob("*.safetensors"))
    assert [path.name for path in paths] == ["made-seed0.safetensors", "made-seed1.safetensors"]
    predictors = [load_predictor(path, latent_space="toy")[0].state_dict() for path in paths]
    assert any((predictors[0][name] != value).any() for name, value in predictors[1].items())
    times = [path.stat().st_mtime_ns for path in paths]
    again = study.Study(with_files(tmp_path), StopRequest(), quiet())
    assert again.go().found["sampled"]["LaMo, anew"] == found
    assert [path.stat().st_mtime_ns for path in paths] == times
    changed = study.Study(with_files(tmp_path, arguments=[*WORDS, "--lag", "1"]), StopRequest(), quiet())
    assert len(changed.go().found["sampled"]["LaMo, anew"]) == 1  # without "{seed}" there is one file
    twice = study.Study(
        with_files(tmp_path, arguments=[*MADE["arguments"], "--lag", "1"]), StopRequest(), quiet()
    )
    with pytest.raises(TrainingError, match="made-seed0\\.safetensors was made with other arguments"):
        twice.go()


def test_a_command_that_was_stopped_stops_the_study_and_one_that_failed_is_said(
    tmp_path, weights, gates, encoded_once, monkeypatch
):
    made = study.Study(with_files(tmp_path), StopRequest(), quiet())
    ended = iter([130, 1])

    def ends(command, **rest):
        return subprocess.CompletedProcess(command, next(ended))

    monkeypatch.setattr(files.subprocess, "run", ends)
    assert made.go().stopped
    with pytest.raises(
        TrainingError, match="latent-physics predictor ended with status 1 and the file 'made' is"
    ):
        made.go()


def test_a_yardstick_takes_motion_away():
    (still,) = corrections.corrections_of(["still share=0.5 start=0.6"], [""])(slice(0, 1))
    clean = torch.tensor([3.0, 0.0, 4.0, 9.0]).view(1, 1, 4, 1, 1)
    step = SamplingStep(
        noisy=clean, sigma=torch.ones(1), gain=torch.ones(1), index=0, count=1, level=torch.tensor([0.5])
    )
    # halfway to the mean, 4
    torch.testing.assert_close(still.correct(clean, step).flatten(), torch.tensor([3.5, 2.0, 4.0, 6.5]))
    assert still.correct(clean, replace(step, level=torch.tensor([0.7]))) is clean
    frozen = torch.ones(1, 2, 5, 3, 3)
    torch.testing.assert_close(still.correct(frozen, step), frozen)


# --- readouts -----------------------------------------------------------------------------------------------


def eyes_of(backbone, count: int = 4) -> readouts.Eyes:
    videos, prompts = sample("rigid_body", count, 3)
    needs = parse.needed_teachers([f"repa {ALIGN}"])
    clips = scene.encoded(videos, prompts, needs, backbone)
    return readouts.Eyes(clips=clips, paths=torch.zeros(count, 32, 2), sigmas=[0.5], blocks=[1], seed=5)


def test_the_error_is_that_of_the_velocity_and_a_correction_changes_it(weights):
    backbone = load_backbone("toy")
    eyes = eyes_of(backbone)
    seen = scene.look(eyes.clips, backbone, [1], 0.5, seed=5)
    noised = backbone.noise(eyes.clips.latents, torch.full((4,), 0.5), torch.Generator().manual_seed(5))
    out = backbone.predict(noised.noisy, torch.full((4,), 0.5), eyes.clips.tokens, eyes.clips.mask)
    torch.testing.assert_close(seen.error, (out - noised.target).square().mean(1), rtol=1e-3, atol=1e-4)

    class Knows:
        def correct(self, x0, step):
            return eyes.clips.latents

    known = scene.look(eyes.clips, backbone, [1], 0.5, seed=5, corrections=lambda rows: [Knows()])
    assert not known.error.any()
    torch.testing.assert_close(known.taps[1].tokens, seen.taps[1].tokens)


def test_the_moving_error_is_a_mean_over_what_changes_most(weights):
    backbone = load_backbone("toy")
    clips = eyes_of(backbone, 2).clips
    frames, rows, columns = clips.latents.shape[2:]
    error = torch.rand(2, frames, rows, columns)
    found = readouts.moving_error(error, clips)
    for number, video in enumerate(clips.videos):
        total, count = 0.0, 0
        for t in range(1, frames):
            of = max(t - 1, 1)  # the first tubelet has none before it and takes its follower's change
            tubelet, last = video[:, 4 * of + 1 : 4 * of + 5], video[:, 4 * of - 3 : 4 * of + 1]
            change = (
                (tubelet - last).abs().sum(dim=(0, 1)).unflatten(0, (rows, -1)).unflatten(2, (columns, -1))
            )
            order = change.sum(dim=(1, 3)).flatten().argsort(descending=True, stable=True)
            chosen = order[: -(-rows * columns // 5)]
            total, count = total + error[number, t].flatten()[chosen].sum(), count + len(chosen)
        assert float(found[number]) == pytest.approx(float(total) / count, rel=1e-5)


def test_a_projector_is_fitted_anew_and_the_transformer_stays(tmp_path, weights):
    backbone = load_backbone("toy")
    make_toy_clips(tmp_path, backbone, 4, 1)
    clips = TrainingClips(tmp_path, batch=4, seed=0)
    before = {name: value.clone() for name, value in backbone.dit.state_dict().items()}
    eyes, told = eyes_of(backbone), (StopRequest(), quiet())
    text = f"repa weight=0.5 {ALIGN}"
    short, long = (readouts.read_alignment(backbone, text, clips, eyes, steps, *told) for steps in (1, 20))
    assert len(short) == 4
    assert sum(long) < 0.97 * sum(short)
    assert short == readouts.read_alignment(backbone, text, clips, eyes, 1, *told)
    assert all(torch.equal(value, before[name]) for name, value in backbone.dit.state_dict().items())
    assert readouts.read_alignment(backbone, text, clips, eyes, 30, StopAt(3), quiet()) is None


def test_steps_to_a_loss_are_read_off_the_straight_line(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,val_denoise\n10,0.5\n15,\n20,0.3\n30,0.31\n")
    assert readouts.last_loss(log) == 0.31
    assert readouts.steps_to(log, 0.4) == pytest.approx(15)
    assert readouts.steps_to(log, 0.5) == 10
    assert readouts.steps_to(log, 0.1) == 30


# --- plan and tables ----------------------------------------------------------------------------------------


COMMANDS = {
    "pila": pila._parse,
    "predictor": predictor._parse,
    "grpo": lambda words: cli.parse(
        GrpoConfig, words, prog="grpo", description="", defaults=vars(recipe_in(words, GrpoConfig, "grpo"))
    ),
}
"""What reads the words of each command, and raises SystemExit for a word that it does not know."""


@pytest.mark.parametrize("name", ["full", "quick"])
def test_plans_that_ship_can_be_run(name):
    made = plan.load_plan(name)
    assert len(made.seeds) >= 4
    assert made.evaluation_seed > 1_000_003 * (max(made.seeds) + 2) + max(r.clips for r in made.regimes)
    assert any(arm.bound for arm in made.arms)
    known = {"alignment", "law", "permanence", *(f"moving {sigma:g}" for sigma in made.sigmas)}
    assert set(made.tests) <= known
    for file in made.files:
        assert file.by_seed  # as many as of every arm
        words = [word.replace("{seed}", "0").replace("{clips}", "clips") for word in file.arguments]
        COMMANDS[file.command]([*words, "--out", "out"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "LaMo"}, "control is 'LaMo'; it must be an arm with a recipe"),
        ({"evaluation_seed": 5}, "evaluation_seed is 5; it must be at least"),
        ({"arms": [*PLAN["arms"], PLAN["arms"][0]]}, "the arm 'plain' needs a name of its own"),
        ({"arms": [{"name": "plain", "recipe": "toy-plain", "seeds": 3}]}, "seeds is 3; it must be left out"),
        ({"arms": [{"name": "plain", "recipe": "tsa-2b"}]}, "comparing works on full fine-tunes of the toy"),
        (
            {"arms": [PLAN["arms"][0], {"name": "x", "corrections": ["lamo force=2"]}]},
            "'force=2' is not a setting of the correction lamo",
        ),
        ({"arms": [PLAN["arms"][0] | {"regimes": ["none"]}]}, "names the regime 'none'; there are mixture"),
        ({"arms": [PLAN["arms"][0] | {"dit": "x"}]}, "has a recipe and a dit"),
        (
            {"arms": [*PLAN["arms"], {"name": "x", "against": "REPA"}]},
            "is against 'REPA'; name an arm that is",
        ),
        (
            {"arms": [*PLAN["arms"], {"name": "x", "worlds": ["moon"]}]},
            "names the world 'moon'; there are rigid",
        ),
        ({"arms": [PLAN["arms"][0] | {"yardstick": True}]}, "'plain' is trained; worlds and yardstick are"),
        ({"files": [MADE | {"name": "seed"}]}, "the file 'seed' needs a name of its own"),
        ({"files": [MADE | {"command": "rm"}]}, "command is 'rm'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(TrainingError, match=message):
        plan.load_plan(config(tmp_path, **changes).plan)


def planted_results(shift: float) -> tuple[plan.Plan, study.Results]:
    """Four trainings of a control, of an arm that is `shift` above it, of one that is equal, and of a
    bound."""
    names = ("plain", "a", "b", "bound")
    arms = [plan.ArmPlan(name=name, recipe="toy-plain", bound=name == "bound") for name in names]
    regime = plan.Regime(name="r", clips=1, steps=1)
    made = plan.Plan(arms=arms, seeds=[0, 1, 2, 3], regimes=[regime], tests=["law"])
    results = study.Results()
    noise = torch.Generator().manual_seed(0)
    for arm, more in (("plain", 0.0), ("a", shift), ("b", 0.0), ("bound", 1.0)):
        for _ in range(4):
            values = 0.3 + more + 0.01 * torch.randn(40, generator=noise)
            results.add("r", arm, {"law": values.tolist(), "residual": values.tolist()})
    return made, results


def test_chances_are_corrected_over_the_arms_and_bounds_are_none():
    made, results = planted_results(0.1)
    found = results.found["r"]
    corrected = report.corrected(made, "r", found, "law")
    single = {arm: report.difference(made, "r", found, arm, "law").p for arm in ("a", "b")}
    assert corrected == {"a": pytest.approx(2 * single["a"]), "b": single["b"]}
    text = report.tables(made, results)
    (row,) = (line for line in text.splitlines() if line.startswith("| a |"))
    assert row.count("**") == 2  # law is tested and bold, residual is not tested
    (bound,) = (line for line in text.splitlines() if line.startswith("| bound |"))
    assert " p " not in bound
    assert "+1.0" in bound


def test_an_arm_is_compared_with_the_one_that_it_is_against_in_the_worlds_that_count():
    made, results = planted_results(0.1)
    of_a = plan.ArmPlan(name="c", recipe="toy-plain", against="a")
    found = results.found["r"] | {"c": results.found["r"]["b"]}
    with_c = replace(made, arms=[*made.arms, of_a])
    assert report.difference(with_c, "r", found, "c", "law").mean == pytest.approx(-0.1, abs=0.01)
    assert "| c (less a) | 4 |" in report.table(with_c, "r", found, ["law"])
    base, arm = {"law": [0.0] * 16}, {"law": [1.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0] * 2}
    both = plan.ArmPlan(name="d", corrections=[], worlds=["rigid_body", "collision"])
    sampled = replace(made, arms=[both], prompts=16)
    effect = report.difference(sampled, "sampled", {"base": [base], "d": [arm]}, "d", "law")
    assert effect.mean == 2.0  # rigid_body is the first world of eight, collision the fifth


def test_law_is_compared_at_equal_dynamic_degree():
    def rows(law: float, motion: float) -> dict:
        return {"law": [law, law + 0.1] * 8, "dynamic_degree": [motion] * 16}

    arms = [
        plan.ArmPlan(name="smooth", corrections=["still share=0.5"], yardstick=True),
        plan.ArmPlan(name="arm", corrections=["still share=0.1"]),
        plan.ArmPlan(name="wild", corrections=["still share=0.2"]),
    ]
    made = plan.Plan(arms=arms, seeds=[0], regimes=[], tests=["law"], prompts=16)
    found = {
        "base": [rows(0.2, 1.0)],
        "smooth": [rows(0.4, 0.5)],
        "arm": [rows(0.5, 0.8)],
        "wild": [rows(1, 2)],
    }
    arm, wild = report.equal_motion(made, found).splitlines()[-2:]
    # 0.8 lies two fifths of the way from the base to the yardstick: law 0.25 + 0.4 (0.45 - 0.25)
    assert arm == "| arm | 0.800 | 0.550 | 0.330 | +0.220 [+0.220, +0.220] |"
    assert wild == "| wild | 2.000 | 1.050 |  | outside the yardstick's range |"
    assert report.corrected(made, "sampled", found, "law").keys() == {"arm", "wild"}
    assert report.equal_motion(replace(made, arms=arms[1:]), found) == ""


def test_an_arm_is_compared_with_the_trainings_that_both_have():
    made, results = planted_results(0.1)
    found = results.found["r"]
    whole = report.difference(made, "r", found, "a", "law")
    found["a"] = found["a"][:2]  # stopped after two
    part = report.difference(made, "r", found, "a", "law")
    assert part.mean == pytest.approx(0.1, abs=0.01)
    assert (part.low, part.high) != (whole.low, whole.high)
    assert report.difference(made, "r", found, "a", "alignment") is None
    assert replace(made, tests=[]).tests == []
