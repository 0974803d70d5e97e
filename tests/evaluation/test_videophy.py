"""VideoPhy and VideoPhy-2: layout, the scorers' own file formats, resuming after a crash, both ways to
average."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from latent_physics.evaluation.benchmarks import BENCHMARKS
from latent_physics.evaluation.benchmarks.videophy import scores
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.plan import Plan
from latent_physics.evaluation.scoring import Scorer, Scoring
from latent_physics.evaluation.views import build_views

# The interfaces of the real programs: options, columns, headerless appending output, a batch at a time.
PREPARE = """
import argparse, csv, os
p = argparse.ArgumentParser(); p.add_argument('--input_csv'); p.add_argument('--output_folder'); a = p.parse_args()
rows = list(csv.DictReader(open(a.input_csv, newline='')))
for name, text in (('sa_testing.csv', 'Human: Does it entail: "{}"?\\nAI: '), ('physics_testing.csv', 'Human: laws?\\nAI: ')):
    with open(os.path.join(a.output_folder, name), 'w', newline='') as f:
        w = csv.writer(f); w.writerow(['videopath', 'caption'])
        w.writerows([r['videopath'], text.format(r['caption'])] for r in rows)
"""
INFER = """
import argparse, csv, json, os, pathlib, sys
p = argparse.ArgumentParser(); p.add_argument('--input_csv'); p.add_argument('--output_csv'); p.add_argument('--checkpoint')
a = p.parse_args()
table = json.loads(pathlib.Path(a.checkpoint, 'scores.json').read_text())
task = 'sa' if 'sa' in os.path.basename(a.output_csv) else 'pc'
with open(pathlib.Path(a.checkpoint, 'calls.txt'), 'a') as f:
    f.write(task + ' ')
for number, row in enumerate(csv.DictReader(open(a.input_csv, newline=''))):
    if number == int(os.environ.get('CRASH_AFTER', '99')):
        with open(a.output_csv, 'a') as f:
            f.write(row['videopath'] + ',"half a tem')
        sys.exit('RuntimeError: CUDA error')
    assert os.path.getsize(row['videopath']) > 0
    arm, name = row['videopath'].split(os.sep)[-2:]
    with open(a.output_csv, 'a') as f:
        csv.writer(f).writerow([row['videopath'], row['caption'], table[arm.partition('-')[0]][name][task]])
"""
RATE = """
import argparse, csv, json, os, pathlib, sys
p = argparse.ArgumentParser()
for name in ('--input_csv', '--checkpoint', '--output_csv', '--task'):
    p.add_argument(name, required=True)
a = p.parse_args()
table = json.loads(pathlib.Path(a.checkpoint, 'scores.json').read_text())
with open(pathlib.Path(a.checkpoint, 'calls.txt'), 'a') as f:
    f.write(os.path.basename(a.output_csv) + ' ')
if os.environ.get('CRASH_IN') == os.path.basename(a.output_csv):
    sys.exit('RuntimeError: CUDA error')
rows = list(csv.DictReader(open(a.input_csv, newline='')))
with open(a.output_csv, 'w', newline='') as f:
    w = csv.writer(f); w.writerow(['', *rows[0], 'score'])
    for number, row in enumerate(rows):
        arm, name = row['videopath'].split(os.sep)[-2:]
        value = table[arm.partition('-')[0]][name][row.get('rule', a.task)]
        w.writerow([number, *row.values(), float(value)])
"""
CAPTIONS = ["Shoe squishes a bug.", "Water pours, slowly", 'A "hot" spoon stirs soup.', "Oil meets water."]
STATES = ["solid_solid", "solid_fluid", "solid_fluid", "fluid_fluid"]
NAMES = [
    "Shoe_squishes_a_bug.mp4",
    "Water_pours,_slowly.mp4",
    'A_"hot"_spoon_stirs_soup.mp4',
    "Oil_meets_water.mp4",
]
SA = {"plain": [0.9, 0.5, 0.2, 0.1], "lamo": [0.95, 0.4, 0.6, 0.8]}
PC = {"plain": [0.6, 0.1, 0.7, 0.3], "lamo": [0.7, 0.5, 0.4, 0.9]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone with the programs' names."""
    root = tmp_path / "clone"
    for name, text in {
        "utils/prepare_data.py": PREPARE,
        "videocon/training/pipeline_video/entailment_inference.py": INFER,
        "VIDEOPHY2/inference.py": RATE,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "checkpoint").mkdir()
    return root


def prompts_file(folder: Path) -> Path:
    path = folder / "captions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["caption", "states_of_matter"], *zip(CAPTIONS, STATES)])
    return path


def scoring_for(name: str, manifest: Manifest, plan: Plan, root: Path, **environment: str) -> Scoring:
    checkpoint = root.parent / "checkpoint"
    scorer = Scorer(
        name=name, python=sys.executable, root=str(root), checkpoint=str(checkpoint), environment=environment
    )
    return Scoring(plan=plan, benchmark=BENCHMARKS[name], manifest=manifest, scorer=scorer)


@pytest.fixture
def videophy(tmp_path: Path, make_plan, filled, root: Path) -> Scoring:
    prompts = BENCHMARKS["videophy"].prompts(prompts_file(tmp_path), {})
    plan = make_plan("videophy", prompts, baselines=False)
    manifest = filled(plan)
    build_views(plan, BENCHMARKS["videophy"], manifest)
    table = {
        arm: {name: {"sa": SA[arm][n], "pc": PC[arm][n]} for n, name in enumerate(NAMES)}
        for arm in ("plain", "lamo")
    }
    (tmp_path / "checkpoint" / "scores.json").write_text(json.dumps(table))
    return scoring_for("videophy", manifest, plan, root)


def test_names_follow_the_caption(videophy: Scoring) -> None:
    for arm in ("plain", "lamo"):
        assert sorted(path.name for path in (videophy.views / f"{arm}-run_01").iterdir()) == sorted(NAMES)


def test_both_aggregations_equal_the_table_by_hand(videophy: Scoring) -> None:
    videophy.benchmark.score(videophy)
    reading = videophy.benchmark.read(videophy)
    by_hand = {
        "plain": {"sa": 2 / 4, "pc": 2 / 4, "joint": 1 / 4, "sa_mean": 1.7 / 4, "pc_mean": 1.7 / 4},
        "lamo": {"sa": 3 / 4, "pc": 3 / 4, "joint": 2 / 4, "sa_mean": 2.75 / 4, "pc_mean": 2.5 / 4},
    }
    for arm, values in by_hand.items():
        for key, value in values.items():
            assert reading.of_run(arm, 1, key) == pytest.approx(value), (arm, key)
    assert reading.of_run("plain", 1, "sa:solid_fluid") == 0.5
    assert reading.of_run("plain", 1, "pc:solid_fluid") == 0.5
    assert reading.of_run("lamo", 1, "pc:fluid_fluid") == 1.0
    assert reading.of_run("plain", 1, "sa:fluid_fluid") == 0.0


def test_a_scorer_that_crashed_is_resumed_with_what_is_left(videophy: Scoring, root: Path) -> None:
    crashing = scoring_for("videophy", videophy.manifest, videophy.plan, root, CRASH_AFTER="2")
    for left in (2, 0):  # four clips a task, two a call
        with pytest.raises(
            EvaluationError, match=r"status 1 \(RuntimeError: CUDA error\).*same command to resume"
        ):
            crashing.benchmark.score(crashing)
        output = crashing.results / "plain-run_01" / "sa.csv"
        assert len(scores(output)) == 4 - left
    whole = scoring_for("videophy", videophy.manifest, videophy.plan, root)
    whole.benchmark.score(whole)
    for arm in ("plain", "lamo"):
        for task in ("sa", "pc"):
            with (whole.results / f"{arm}-run_01" / f"{task}.csv").open(newline="") as file:
                rows = list(csv.reader(file))
            assert [len(row) for row in rows] == [3] * 4
            assert len({row[0] for row in rows}) == 4
    assert whole.benchmark.read(whole).of_run("lamo", 1, "joint") == 0.5


def test_a_second_call_scores_nothing_again(videophy: Scoring, root: Path) -> None:
    videophy.benchmark.score(videophy)
    calls = (root.parent / "checkpoint" / "calls.txt").read_text()
    videophy.benchmark.score(videophy)
    assert (root.parent / "checkpoint" / "calls.txt").read_text() == calls == "sa pc sa pc "


def test_scores_never_lie_in_a_scored_folder(videophy: Scoring) -> None:
    videophy.benchmark.score(videophy)
    assert {path.suffix for path in videophy.views.glob("**/*") if path.is_file()} == {".mp4"}


def test_missing_parts_are_named_before_anything_runs(videophy: Scoring, tmp_path: Path) -> None:
    fields: dict[str, Any] = vars(videophy.scorer)
    for change, message in (
        ({"root": str(tmp_path / "no")}, "check `root`"),
        ({"root": ""}, "states no `root`"),
        ({"checkpoint": str(tmp_path / "no")}, "check `checkpoint`"),
        ({"python": "/no/python"}, "interpreter /no/python"),
    ):
        videophy.scorer = Scorer(**{**fields, **change})
        with pytest.raises(EvaluationError, match=message):
            videophy.benchmark.score(videophy)
    videophy.scorer = None
    with pytest.raises(EvaluationError, match=r"add \[videophy\]"):
        videophy.benchmark.score(videophy)
    with pytest.raises(EvaluationError, match="evaluate score"):
        videophy.benchmark.read(videophy)


@pytest.fixture
def videophy2(tmp_path: Path, make_plan, filled, root: Path, monkeypatch) -> Scoring:
    monkeypatch.setattr("latent_physics.evaluation.benchmarks.videophy2.PORTION", 2)
    rules = tmp_path / "rules.csv"
    with rules.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["caption", "rule"], [CAPTIONS[0], "falls"], [CAPTIONS[0], "stays"], [CAPTIONS[1], "falls"]]
        )
    prompts = BENCHMARKS["videophy2"].prompts(prompts_file(tmp_path), {"rules": str(rules)})
    plan = make_plan("videophy2", prompts, arms={"plain": {}}, baselines=False)
    manifest = filled(plan)
    build_views(plan, BENCHMARKS["videophy2"], manifest)
    rated = [{"sa": 5, "pc": 4}, {"sa": 4, "pc": 3}, {"sa": 0, "pc": 5}, {"sa": 3, "pc": 1}]
    rated[0] |= {"falls": 1, "stays": 0}
    rated[1] |= {"falls": 2}
    (tmp_path / "checkpoint" / "scores.json").write_text(json.dumps({"plain": dict(zip(NAMES, rated))}))
    return scoring_for("videophy2", manifest, plan, root)


def test_videophy2_equals_the_table_by_hand(videophy2: Scoring) -> None:
    videophy2.benchmark.score(videophy2)
    reading = videophy2.benchmark.read(videophy2)
    expected = {"sa": 2 / 4, "pc": 2 / 4, "joint": 1 / 4, "sa_mean": 12 / 4, "pc_mean": 13 / 4, "rule": 0.5}
    for key, value in expected.items():
        assert reading.of_run("plain", 1, key) == pytest.approx(value), key
    assert any("1 answers held no number" in note for note in reading.notes)


def test_videophy2_is_resumed_at_the_portion_that_crashed(videophy2: Scoring, root: Path) -> None:
    crashing = scoring_for("videophy2", videophy2.manifest, videophy2.plan, root, CRASH_IN="pc_001.out.csv")
    with pytest.raises(EvaluationError, match="portion 1 of 2"):
        crashing.benchmark.score(crashing)
    videophy2.benchmark.score(videophy2)
    calls = (root.parent / "checkpoint" / "calls.txt").read_text().split()
    once = ["sa_001.out.csv", "sa_002.out.csv"]
    assert calls == [
        *once,
        "pc_001.out.csv",
        "pc_001.out.csv",
        "pc_002.out.csv",
        "rule_001.out.csv",
        "rule_002.out.csv",
    ]


def test_upsampled_prompts_go_to_the_model_and_captions_to_the_scorer(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["caption", "upsampled_caption"], ["A ball.", "A red ball, in detail."]])
    (prompt,) = BENCHMARKS["videophy2"].prompts(path, {"prompt_column": "upsampled_caption"})
    assert (prompt.text, prompt.words) == ("A ball.", "A red ball, in detail.")
    with pytest.raises(EvaluationError, match="no column 'long'"):
        BENCHMARKS["videophy2"].prompts(path, {"prompt_column": "long"})
    (tmp_path / "long.txt").write_text("one\ntwo\n")
    with pytest.raises(EvaluationError, match="2 lines for 1 prompts"):
        BENCHMARKS["videophy"].prompts(path, {"upsampled": str(tmp_path / "long.txt")})


def test_a_caption_listed_for_several_models_is_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "test_public.csv"
    path.write_text("caption,states_of_matter\nA ball.,solid_solid\nB.,fluid_fluid\nA ball.,solid_solid\n")
    prompts = BENCHMARKS["videophy"].prompts(path, {})
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("1", "A ball."), ("2", "B.")]
