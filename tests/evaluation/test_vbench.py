"""VBench and VBench-2.0: names, totals from dimension files by hand, the driver, resuming dimension by
dimension."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from latent_physics.evaluation.benchmarks import BENCHMARKS
from latent_physics.evaluation.benchmarks.vbench import QUALITY, SEMANTIC, totals_of
from latent_physics.evaluation.benchmarks.vbench2 import GROUPS, categories
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.plan import Prompt
from latent_physics.evaluation.scoring import Scorer, Scoring
from latent_physics.evaluation.views import build_views, check_names, ignores_case

# The Python class that the driver calls, with the real one's names, file names and result format.
PACKAGE = """
import json, os, pathlib
class {name}:
    def __init__(self, device, full_info, output):
        assert os.path.isfile(full_info), full_info
        self.device, self.output = device, output
    def evaluate(self, videos_path, name, dimension_list, mode, **settings):
        (dimension,) = dimension_list
        if dimension == os.environ.get('CRASH_ON'):
            raise RuntimeError('no weights')
        films = sorted(os.listdir(videos_path))
        assert all(film.endswith('.mp4') for film in films), films
        table = json.loads(pathlib.Path(os.environ['SCORES']).read_text())[dimension]
        entries = [{{'video_path': os.path.join(videos_path, f), 'video_results': table[f]}} for f in films if f in table]
        counted = [entry['video_results'] for entry in entries if entry['video_results'] != -1]
        mean = sum(counted) / len(counted)
        path = os.path.join(self.output, name + '_eval_results.json')
        json.dump({{dimension: [mean, entries]}}, open(path, 'w'))
        with open(os.environ['SCORES'] + '.calls', 'a') as f:
            f.write(dimension + ' ' + mode + ' ' + self.device + '|')
"""


def package(folder: Path, name: str, full_info: str) -> Path:
    """A package `folder`/`name` that stands for the scorer's."""
    (folder / name.lower()).mkdir(parents=True)
    (folder / name.lower() / "__init__.py").write_text(PACKAGE.format(name=name))
    (folder / name.lower() / full_info).write_text("[]")
    return folder


def full_info(folder: Path, entries: list[tuple[str, list[str]]]) -> Path:
    path = folder / "full_info.json"
    path.write_text(json.dumps([{"prompt_en": text, "dimension": dims} for text, dims in entries]))
    return path


def test_standard_names_numbers_and_the_folder_of_flickering(tmp_path: Path, make_plan, filled) -> None:
    entries = [
        ("a cat, zoom in", ["subject_consistency", "dynamic_degree"]),
        ("a still vase", ["temporal_flickering"]),
    ]
    prompts = BENCHMARKS["vbench"].prompts(full_info(tmp_path, entries), {})
    assert [prompt.samples for prompt in prompts] == [5, 25]
    plan = make_plan("vbench", prompts, arms={"plain": {}}, baselines=False)
    manifest = filled(plan)
    counts = build_views(plan, BENCHMARKS["vbench"], manifest)
    assert counts == {"plain-run_01": 5, "plain-run_01-temporal_flickering": 25}
    names = sorted(path.name for path in (tmp_path / "views" / "vbench" / "plain-run_01").iterdir())
    assert names == [f"a cat, zoom in-{index}.mp4" for index in range(5)]


def test_a_prompt_of_two_entries_is_made_once_for_all_their_dimensions(tmp_path: Path, make_plan) -> None:
    """As in the published list, whose suite could not be planned: two prompts stand in it twice, and two more
    differ in case alone."""
    entries = [
        ("The bund Shanghai, oil painting", ["appearance_style"]),
        ("a red cup", ["temporal_flickering"]),
        ("The bund Shanghai, oil painting", ["overall_consistency", "imaging_quality"]),
        ("A fantasy landscape", ["overall_consistency"]),
        ("a fantasy landscape", ["overall_consistency"]),
        ("a red cup", ["color"]),
    ]
    prompts = BENCHMARKS["vbench"].prompts(full_info(tmp_path, entries), {})
    assert [(prompt.id, prompt.samples, prompt.groups) for prompt in prompts] == [
        ("1", 5, ("appearance_style", "overall_consistency", "imaging_quality")),
        ("2", 25, ("temporal_flickering",)),
        ("4", 5, ("overall_consistency",)),
        ("5", 5, ("overall_consistency",)),
        ("6", 5, ("color",)),
    ]
    plan = make_plan("vbench", prompts)
    if not ignores_case(tmp_path):
        check_names(plan, BENCHMARKS["vbench"], tmp_path / "not there yet")
    with pytest.raises(EvaluationError, match=r"would both be called a fantasy landscape-0.mp4"):
        check_names(plan, BENCHMARKS["vbench"])


def test_chosen_dimensions_leave_the_other_prompts_out(tmp_path: Path) -> None:
    path = full_info(tmp_path, [("a", ["color"]), ("b", ["scene", "color"]), ("c", ["scene"])])
    found = BENCHMARKS["vbench"].prompts(path, {"dimensions": ["color"]})
    assert [(prompt.text, prompt.groups) for prompt in found] == [("a", ("color",)), ("b", ("color",))]
    with pytest.raises(EvaluationError, match="no dimension 'colour'"):
        BENCHMARKS["vbench"].prompts(path, {"dimensions": ["colour"]})
    (tmp_path / "x.json").write_text('[{"caption": "a"}]')
    with pytest.raises(EvaluationError, match="no full_info file"):
        BENCHMARKS["vbench"].prompts(tmp_path / "x.json", {})


@pytest.mark.parametrize(
    ("frames", "fps", "fits"), [(81, 16.0, False), (79, 16.0, True), (80, 16.0, False), (49, 8.0, False)]
)
def test_clips_of_five_seconds_belong_to_vbench_long(make_plan, filled, frames, fps, fits) -> None:
    plan = make_plan("vbench", ["a"], arms={"plain": {}}, baselines=False)
    manifest = filled(plan, frames=frames, fps=fps)
    objection = BENCHMARKS["vbench"].objection(plan, manifest.records["plain", "1", 1, 0])
    assert (objection is None) == fits
    if not fits:
        assert f"at most {int(fps * 5) - 1} frames" in objection


def test_total_from_dimension_values_by_hand() -> None:
    values = {name: high for name, (_, high, _) in {**QUALITY, **SEMANTIC}.items()}
    assert totals_of(values) == pytest.approx({"quality": 1.0, "semantic": 1.0, "total": 1.0})
    values["dynamic_degree"] = 0.0  # half a weight of six and a half
    values["scene"] = 0.4111  # half of its highest, one of nine
    by_hand = {"quality": 6 / 6.5, "semantic": (8 + 0.5) / 9}
    by_hand["total"] = (4 * by_hand["quality"] + by_hand["semantic"]) / 5
    assert totals_of(values) == pytest.approx(by_hand)
    del values["color"]
    assert set(totals_of(values)) == {"quality"}


def test_a_published_row_has_the_total_of_its_dimensions() -> None:
    """TSA's Table 3 lists all sixteen dimensions of CogVideoX-2B* and their totals, in percent with one
    decimal."""
    from latent_physics.evaluation.published import published

    rows = [row for row in published("vbench") if set(row.values) >= {*QUALITY, *SEMANTIC}]
    assert len(rows) == 2
    for row in rows:
        found = totals_of({name: row.values[name] for name in (*QUALITY, *SEMANTIC)})
        for key in ("total", "quality", "semantic"):
            assert found[key] == pytest.approx(row.values[key], abs=2e-3), row.method


@pytest.fixture
def custom(tmp_path: Path, make_plan, filled, monkeypatch) -> Scoring:
    """Prompts of one's own through VBench's custom mode, three dimensions."""
    (tmp_path / "p.txt").write_text("a ball\na cup\n")
    plan = make_plan("vbench", BENCHMARKS["vbench"].prompts(tmp_path / "p.txt", {}), baselines=False)
    manifest = filled(plan)
    build_views(plan, BENCHMARKS["vbench"], manifest)
    films = {"a ball-0.mp4": 0.8, "a cup-0.mp4": 0.4}
    table = {
        "temporal_flickering": films,
        "dynamic_degree": {"a ball-0.mp4": True, "a cup-0.mp4": False},
        "imaging_quality": {"a ball-0.mp4": 60.0, "a cup-0.mp4": 40.0},
    }
    (tmp_path / "scores.json").write_text(json.dumps(table))
    site = package(tmp_path / "site", "VBench", "VBench_full_info.json")
    environment = {"PYTHONPATH": str(site), "SCORES": str(tmp_path / "scores.json")}
    scorer = Scorer(
        name="vbench", python=sys.executable, device="cpu", dimensions=tuple(table), environment=environment
    )
    return Scoring(plan=plan, benchmark=BENCHMARKS["vbench"], manifest=manifest, scorer=scorer)


def test_the_driver_runs_each_dimension_once(custom: Scoring, tmp_path: Path) -> None:
    custom.benchmark.score(custom)
    custom.benchmark.score(custom)
    calls = (tmp_path / "scores.json.calls").read_text().split("|")[:-1]
    assert calls == 2 * [f"{name} custom_input cpu" for name in custom.scorer.dimensions]
    reading = custom.benchmark.read(custom)
    assert reading.of_run("plain", 1, "temporal_flickering") == pytest.approx(0.6)
    assert reading.of_run("plain", 1, "dynamic_degree") == 0.5
    pairs = reading.paired("lamo", "plain", "temporal_flickering")
    assert pairs == ([0.8, 0.4], [0.8, 0.4], ["1", "2"])
    assert [clip.values["imaging_quality"] for clip in reading.clips][:2] == [0.6, 0.4]


def test_a_dimension_that_crashed_is_run_again_alone(custom: Scoring, tmp_path: Path) -> None:
    crashing = Scorer(
        **{**vars(custom.scorer), "environment": {**custom.scorer.environment, "CRASH_ON": "dynamic_degree"}}
    )
    good, custom.scorer = custom.scorer, crashing
    with pytest.raises(
        EvaluationError, match=r"dynamic_degree: the scorer ended with status 1 \(RuntimeError: no weights"
    ):
        custom.benchmark.score(custom)
    assert not list(custom.results.glob("**/*dynamic_degree_eval_results.json"))
    custom.scorer = good
    custom.benchmark.score(custom)
    calls = (tmp_path / "scores.json.calls").read_text().split("|")[:-1]
    assert [call.split()[0] for call in calls].count("temporal_flickering") == 2  # once an arm


def test_vbench2_cuts_names_and_tells_of_collisions(tmp_path: Path, make_plan) -> None:
    long = "word " * 40
    prompts = [
        Prompt(id="1", text=long + "first", groups=("Mechanics",), samples=3),
        Prompt(id="2", text=long + "second", groups=("Mechanics",), samples=3),
    ]
    plan = make_plan("vbench2", prompts)
    spot = BENCHMARKS["vbench2"].spot(plan, "plain", prompts[0], 1, 2)
    assert spot.folder == "plain-run_01/Mechanics"
    assert spot.name == long[:180] + "-2.mp4"
    with pytest.raises(
        EvaluationError,
        match=r"prompt 2, clip 0 and prompt 1, clip 0 would both be called .* VBench-2.0 cuts",
    ):
        check_names(plan, BENCHMARKS["vbench2"])
    apart = make_plan("vbench2", [prompts[0], Prompt(id="2", text=long, groups=("Material",), samples=3)])
    check_names(apart, BENCHMARKS["vbench2"])


def test_vbench2_names_files_by_the_short_prompt(tmp_path: Path) -> None:
    path = full_info(tmp_path, [("a ball", ["Mechanics"]), ("b", ["Diversity"]), ("a cup", ["Mechanics"])])
    (tmp_path / "Mechanics.txt").write_text("a long ball\na long cup\n")
    (tmp_path / "Diversity.txt").write_text("a long b\n")
    found = BENCHMARKS["vbench2"].prompts(path, {"upsampled": str(tmp_path)})
    assert [(prompt.text, prompt.words, prompt.samples) for prompt in found] == [
        ("a ball", "a long ball", 3),
        ("b", "a long b", 20),
        ("a cup", "a long cup", 3),
    ]
    (tmp_path / "Mechanics.txt").write_text("one\n")
    with pytest.raises(EvaluationError, match="fewer lines"):
        BENCHMARKS["vbench2"].prompts(path, {"upsampled": str(tmp_path)})


def test_vbench2_reports_how_many_clips_count(tmp_path: Path, make_plan, filled) -> None:
    prompts = [Prompt(id="1", text="a ball", groups=("Mechanics",), samples=3)]
    plan = make_plan("vbench2", prompts, baselines=False)
    manifest = filled(plan)
    build_views(plan, BENCHMARKS["vbench2"], manifest)
    (tmp_path / "scores.json").write_text(
        json.dumps({"Mechanics": {"a ball-0.mp4": 1, "a ball-1.mp4": -1, "a ball-2.mp4": 0}})
    )
    root = package(tmp_path / "site", "VBench2", "VBench2_full_info.json")
    scorer = Scorer(
        name="vbench2",
        python=sys.executable,
        root=str(root),
        environment={"SCORES": str(tmp_path / "scores.json")},
    )
    scoring = Scoring(plan=plan, benchmark=BENCHMARKS["vbench2"], manifest=manifest, scorer=scorer)
    scoring.benchmark.score(scoring)
    reading = scoring.benchmark.read(scoring)
    assert reading.of_run("plain", 1, "Mechanics") == 0.5
    assert reading.of_run("plain", 1, "Mechanics:valid") == 2
    ours, theirs, _ = reading.paired("lamo", "plain", "Mechanics")
    assert (ours, theirs) == ([1.0, 0.0], [1.0, 0.0])
    titles = [column.title for column in reading.columns]
    assert titles == ["Mechanics", "Mechanics: clips that count"]


def test_vbench2_totals_by_hand() -> None:
    values = dict.fromkeys([name for names in GROUPS.values() for name in names], 0.5)
    values |= {"Mechanics": 0.9, "Diversity": 1.0}
    found = categories(values)
    assert found["physics"] == pytest.approx(0.6)
    assert found["creativity"] == pytest.approx(0.75)
    assert found["total"] == pytest.approx((0.6 + 0.75 + 0.5 * 3) / 5)
    del values["Material"]
    assert "physics" not in categories(values)
    assert "total" not in categories(values)
