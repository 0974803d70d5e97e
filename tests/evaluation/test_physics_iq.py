"""Physics-IQ Verified: four runs of exact length, the scorer's CSV read back by its own formula, stale
masks."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

import pytest
from latent_physics.evaluation.benchmarks import BENCHMARKS
from latent_physics.evaluation.benchmarks.physics_iq import DATA, VIEWS, mean_of
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.scoring import Scorer, Scoring
from latent_physics.evaluation.table import make_table
from latent_physics.evaluation.video import probe
from latent_physics.evaluation.views import build_views

HEADER = ["scenario", "description", "category", "generated_video_name"]
PROGRAM = """
import argparse, csv, json, os, pathlib, shutil, sys
p = argparse.ArgumentParser()
p.add_argument('--input_folders', nargs='+'); p.add_argument('--output_folder'); p.add_argument('--descriptions_file')
p.add_argument('--benchmark_base_folder')
a = p.parse_args()
base = pathlib.Path(a.benchmark_base_folder, 'physics-IQ-benchmark-verified')
results = pathlib.Path(a.output_folder, 'physics-IQ-benchmark-verified', 'results'); results.mkdir(parents=True, exist_ok=True)
assert any('take-2' in row['scenario'] for row in csv.DictReader(open(a.descriptions_file)))
for folder in map(pathlib.Path, a.input_folders):
    films = sorted(folder.iterdir())
    assert all(film.suffix == '.mp4' for film in films)
    masks = base / 'video-masks' / 'generated' / folder.name
    if not masks.exists():          # as the real one: what is there is never made again
        masks.mkdir(parents=True)
        (masks / 'of.txt').write_text(str(films[0].stat().st_size))
    if os.environ.get('CRASH'):
        sys.exit('ValueError: missing frames')
    assert (masks / 'of.txt').read_text() == str(films[0].stat().st_size), 'masks of other clips'
    shutil.copy(pathlib.Path(a.benchmark_base_folder, folder.name + '.csv'), results / (folder.name + '.csv'))
"""


def names(view_first: int = 1) -> list[str]:
    return [
        f"{n:04}_{view}_trimmed-{'ball' if n <= 3 else 'ramp'}"
        for n, view in enumerate([*VIEWS, *VIEWS], view_first)
    ]


@pytest.fixture
def descriptions(tmp_path: Path) -> Path:
    """Two scenarios of three views, both takes, as the repository writes them."""
    path = tmp_path / "descriptions_base.csv"
    rows = []
    for take in (1, 2):
        for name in names():
            number, view, scenario = name.split("_", 2)
            number = f"{int(number) + 198 * (take - 1):04}"
            rows.append(
                [
                    f"{number}_{view}_take-{take}_{scenario}.mp4",
                    f"a {scenario}, {view}",
                    "Solid Mechanics",
                    f"{name}.mp4",
                ]
            )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def test_the_198_rows_of_take_one_become_prompts_with_first_frames(
    descriptions: Path, tmp_path: Path
) -> None:
    prompts = BENCHMARKS["physics-iq"].prompts(descriptions, {"frames": str(tmp_path / "switch")})
    assert [prompt.id for prompt in prompts] == names()
    assert prompts[0].image.endswith("switch/0001_switch-frames_anyFPS_perspective-left_trimmed-ball.jpg")
    assert prompts[0].text == "a trimmed-ball, perspective-left"
    (tmp_path / "x.csv").write_text("scenario,description,category\n")
    with pytest.raises(EvaluationError, match="no column 'generated_video_name'"):
        BENCHMARKS["physics-iq"].prompts(tmp_path / "x.csv", {})


@pytest.fixture
def scoring(tmp_path: Path, descriptions: Path, make_plan, filled) -> Scoring:
    """Four runs of six clips, two arms, 81 frames at 16 as Wan makes them."""
    benchmark = BENCHMARKS["physics-iq"]
    prompts = benchmark.prompts(descriptions, {})
    options = {"fps": 16.0, "style": "bpp", "source": str(descriptions)}
    plan = make_plan("physics-iq", prompts, runs=4, label="wan2.2", options=options, baselines=False)
    manifest = filled(plan, frames=81)
    build_views(plan, benchmark, manifest)
    root, data = tmp_path / "clone", tmp_path / "data"
    (root / "physiq").mkdir(parents=True)
    (root / "physiq" / "run_physics_iq.py").write_text(PROGRAM)
    (data / DATA).mkdir(parents=True)
    scorer = Scorer(name="physics-iq", python=sys.executable, root=str(root), data=str(data))
    return Scoring(plan=plan, benchmark=benchmark, manifest=manifest, scorer=scorer)


def test_the_layout_is_four_runs_of_exactly_five_seconds(scoring: Scoring) -> None:
    folders = sorted(path.name for path in scoring.views.iterdir())
    assert folders == [f"wan2.2_{arm}-bpp-run_{run:02}" for arm in ("lamo", "plain") for run in (1, 2, 3, 4)]
    for folder in scoring.views.iterdir():
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.mp4" for name in names()]
    facts = probe(scoring.views / "wan2.2_plain-bpp-run_03" / f"{names()[0]}.mp4")
    assert (facts.frames, facts.fps, facts.seconds) == (80, 16.0, 5.0)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (49, 16.0, "lasts 3.06 s, and Physics-IQ needs 5 s: make 80 frames"),
        (81, 15.0, "save the clip at 16"),
        (80, 16.0, None),
    ],
)
def test_clips_of_another_length_or_rate_are_told_at_once(
    descriptions, make_plan, filled, frames, fps, message
) -> None:
    prompts = BENCHMARKS["physics-iq"].prompts(descriptions, {})[:1]
    plan = make_plan("physics-iq", prompts, options={"fps": 16.0}, baselines=False)
    manifest = filled(plan, frames=frames, fps=fps)
    objection = BENCHMARKS["physics-iq"].objection(plan, manifest.records["plain", prompts[0].id, 1, 0])
    assert (objection is None) == (message is None)
    assert message is None or message in objection


def test_a_plan_without_a_rate_cannot_cut_clips_and_says_so_at_the_first(
    descriptions, make_plan, filled
) -> None:
    """Wan's 81 frames at 16 a second are 5.0625 s, which the scorer refuses after all are made."""
    benchmark = BENCHMARKS["physics-iq"]
    prompts = benchmark.prompts(descriptions, {})[:1]
    plan = make_plan("physics-iq", prompts, arms={"plain": {}}, baselines=False)
    manifest = filled(plan, frames=81, fps=16.0)
    with pytest.raises(
        EvaluationError, match=r"81 frames, and its first 80 last .* plan again with --fps 16"
    ):
        build_views(plan, benchmark, manifest)


def metrics(ratio: float) -> dict[str, str]:
    """One view's columns: three overlaps of `ratio` of the takes' own, an error of twice the takes'."""
    return {
        "spatial_iou_v1": repr(0.8 * ratio),
        "weighted_spatial_iou_v1": repr(0.5 * ratio),
        "spatiotemporal_iou_v1": f"[{0.4 * ratio}, {0.4 * ratio}]",
        "v1_mse": "[np.float32(0.002), np.float32(0.002)]",
        "variance_spatial": "0.8",
        "variance_weighted_spatial": "0.5",
        "variance_spatiotemporal_iou": "[0.4, 0.4]",
        "variance_mse": "[0.001, 0.001]",
    }


def write_results(folder: Path, arm: str, run: int, ratio: float) -> None:
    """What the scorer computes for a run: the first scenario at `ratio`, the second at 1.5, which is cut to
    1."""
    rows = []
    for scenario, value in (("trimmed-ball.mp4", ratio), ("trimmed-ramp.mp4", 1.5)):
        row = {"scenario": scenario}
        for view in VIEWS:
            row |= {f"{key}_{view}": text for key, text in metrics(value).items()}
        rows.append(row)
    with (folder / f"wan2.2_{arm}-bpp-run_{run:02}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


RATIOS = {"plain": [0.2, 0.25, 0.3, 0.25], "lamo": [0.4, 0.4, 0.5, 0.3]}


def by_hand(ratio: float) -> float:
    """Mean over two scenarios of the mean of three overlaps and the error's inverse ratio, 1/2."""
    return ((3 * ratio + 0.5) / 4 + (3 * 1.0 + 0.5) / 4) / 2


def test_four_runs_give_mean_and_deviation_by_hand(scoring: Scoring, tmp_path: Path) -> None:
    for arm, ratios in RATIOS.items():
        for run, ratio in enumerate(ratios, 1):
            write_results(tmp_path / "data", arm, run, ratio)
    scoring.benchmark.score(scoring)
    reading = scoring.benchmark.read(scoring)
    table = make_table(scoring.plan, "t", reading)
    for row, arm in zip(table.rows, ("plain", "lamo")):
        runs = [by_hand(ratio) for ratio in RATIOS[arm]]
        assert row.cells["verified"].mean == pytest.approx(statistics.fmean(runs), abs=1e-5)
        assert row.cells["verified"].deviation == pytest.approx(statistics.stdev(runs), abs=1e-5)
    gap = table.rows[1].cells["verified"].interval
    expected = statistics.fmean(map(by_hand, RATIOS["lamo"])) - statistics.fmean(
        map(by_hand, RATIOS["plain"])
    )
    assert gap.mean == pytest.approx(expected, abs=1e-5)
    assert not [note for note in reading.notes if "fewer than four" in note]


def test_another_score_in_the_json_than_in_the_csv_is_told(scoring: Scoring, tmp_path: Path) -> None:
    for run in (1, 2, 3, 4):
        for arm in RATIOS:
            write_results(tmp_path / "data", arm, run, 0.5)
    scoring.benchmark.score(scoring)
    results = scoring.results / DATA / "results"
    name = "wan2.2_plain-bpp-run_02"
    (results / f"{name}_metrics.json").write_text(json.dumps({"final_score_view": by_hand(0.5)}))
    assert not scoring.benchmark.read(scoring).notes
    (results / f"{name}_metrics.json").write_text(json.dumps({"final_score_view": 0.1}))
    assert (
        f"{name} states 10.00, its CSV gives {100 * by_hand(0.5):.2f}"
        in scoring.benchmark.read(scoring).notes[0]
    )


def test_masks_of_a_crash_or_of_other_clips_are_not_used(scoring: Scoring, tmp_path: Path) -> None:
    for run in (1, 2, 3, 4):
        for arm in RATIOS:
            write_results(tmp_path / "data", arm, run, 0.5)
    good = scoring.scorer
    scoring.scorer = Scorer(**{**vars(good), "environment": {"CRASH": "1"}})
    with pytest.raises(EvaluationError, match="missing frames"):
        scoring.benchmark.score(scoring)
    masks = tmp_path / "data" / DATA / "video-masks" / "generated"
    assert (masks / "wan2.2_plain-bpp-run_01").is_dir()
    (masks / "wan2.2_plain-bpp-run_01" / "of.txt").write_text("another clip")
    scoring.scorer = good
    scoring.benchmark.score(scoring)
    assert len(scoring.benchmark.read(scoring).clips) == 2 * 4 * 6
    for record in list(scoring.manifest.records.values()):  # other clips under the same names
        scoring.manifest.records[record.key] = type(record)(**{**vars(record), "job": "0" * 16})
    (masks / "wan2.2_plain-bpp-run_01" / "of.txt").write_text("of the old clips")
    scoring.benchmark.score(scoring)
    assert (masks / "wan2.2_plain-bpp-run_01" / "of.txt").read_text() != "of the old clips"


def test_fewer_runs_and_prompts_are_warned_of(descriptions: Path, make_plan) -> None:
    plan = make_plan("physics-iq", BENCHMARKS["physics-iq"].prompts(descriptions, {}), runs=1)
    text = " ".join(BENCHMARKS["physics-iq"].warnings(plan))
    for part in ("198 prompts and this plan 6", "the board wants four", "no first frames"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("[0.1, 0.3]", 0.2),
        ("[np.float64(1e-3), np.float64(3e-3)]", 0.002),
        ("[0.00004, 0.00004]", 0.0),
    ],
)
def test_numbers_and_lists_are_read_as_the_scorer_reads_them(text: str, value: float) -> None:
    assert mean_of(text) == pytest.approx(value)
    with pytest.raises(EvaluationError, match="holds no number"):
        mean_of("[]")
