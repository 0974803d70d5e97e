"""The table: means, deviations, paired differences by hand, published rows, claims."""

from __future__ import annotations

import csv
import io
import math
import statistics

import numpy as np
import pytest
from latent_physics.evaluation.benchmarks import BENCHMARKS, ClipScore, Column, Reading
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.published import FILE, published
from latent_physics.evaluation.table import as_csv, claims, make_table, markdown, write_table

COLUMNS = (Column(key="pc", title="PC"), Column(key="flaw", title="flaws", scale=1, digits=2, rising=False))


def reading_of(values: dict[str, list[list[float]]], key: str = "pc") -> Reading:
    """Values by arm, run and prompt."""
    clips = [
        ClipScore(arm=arm, prompt_id=str(number), run=run, index=0, values={key: value})
        for arm, runs in values.items()
        for run, numbers in enumerate(runs, 1)
        for number, value in enumerate(numbers)
    ]
    return Reading(columns=COLUMNS, clips=clips)


def test_mean_deviation_and_difference_by_hand(make_plan) -> None:
    values = {"plain": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], "lamo": [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]}
    table = make_table(make_plan("own", ["a", "b", "c"], runs=2), "t", reading_of(values))
    plain, lamo = (row.cells["pc"] for row in table.rows)
    assert (plain.mean, plain.interval) == (pytest.approx(1 / 3), None)
    assert lamo.mean == pytest.approx((2 / 3 + 1) / 2)
    assert lamo.deviation == pytest.approx(statistics.stdev([2 / 3, 1]))
    assert lamo.interval.mean == pytest.approx((2 + 1 + 0) / 6)
    # resampled over three prompts whose differences are 1, 1/2 and 0: the interval spans all of them
    assert (lamo.interval.low, lamo.interval.high) == (
        pytest.approx(0.0, abs=1 / 6),
        pytest.approx(1.0, abs=1 / 6),
    )


def test_clips_that_do_not_count_in_both_arms_are_not_paired(make_plan) -> None:
    nan = math.nan
    values = {"plain": [[0.5, nan, 0.5, 0.5]], "lamo": [[0.75, 1.0, nan, 0.75]]}
    table = make_table(make_plan("own", list("abcd")), "t", reading_of(values))
    cell = table.rows[1].cells["pc"]
    assert cell.interval.mean == pytest.approx(0.25)
    assert cell.mean == pytest.approx(2.5 / 3)


def test_markdown_and_csv_hold_the_same_numbers(make_plan, tmp_path) -> None:
    values = {"static": [[1.0, 1.0]], "plain": [[0.2, 0.3]], "lamo": [[0.4, 0.5]]}
    plan = make_plan("videophy", ["a", "b"], label="wan")
    table = make_table(plan, "VideoPhy", reading_of(values), published("videophy"))
    text = markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| row | runs | PC | less plain |"
    assert lines[2].startswith("| static baseline | 1 | 100.0 |")
    assert lines[3] == "| wan plain | 1 | 25.0 |  |"
    assert lines[4] == "| wan lamo | 1 | 45.0 | +20.0 [+20.0, +20.0] |"
    assert "| LaMo-5B [1] |  | 41.0 |  |" in lines
    assert "[1] LaMo (arXiv 2605.23878), Table 1" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert {row["row"]: float(row["mean"]) for row in rows}["wan lamo"] == pytest.approx(0.45)
    assert next(row for row in rows if "M-TSA" in row["row"])["source"].startswith("TSA")
    paths = write_table(table, tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.png"]
    assert paths[2].read_bytes()[:4] == b"\x89PNG"


def test_a_gain_inside_its_interval_is_not_called_one(make_plan) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, 40)
    plan = make_plan("own", [str(n) for n in range(40)])
    plain = [0.5] * 40
    for gain, claimed in ((0.5, True), (0.01, False), (-0.5, False)):
        values = {"plain": [plain], "lamo": [[0.5 + gain + value for value in noise - noise.mean()]]}
        sentences, supported = claims(make_table(plan, "t", reading_of(values)), plan, "lamo")
        assert supported == claimed
        assert ("gains over" in sentences[0]) == claimed
    assert "loses against" in sentences[0]


def test_fewer_flaws_are_a_gain(make_plan) -> None:
    plan = make_plan("own", ["a", "b", "c"])
    table = make_table(plan, "t", reading_of({"plain": [[3, 3, 3.0]], "lamo": [[1, 1, 2.0]]}, key="flaw"))
    assert claims(table, plan, "lamo")[1]
    worse = make_table(plan, "t", reading_of({"plain": [[1, 1, 1.0]], "lamo": [[3, 3, 2.0]]}, key="flaw"))
    assert not claims(worse, plan, "lamo")[1]


def test_what_cannot_be_paired_is_not_claimed(make_plan) -> None:
    reading = Reading(columns=COLUMNS, totals={("plain", 1): {"pc": 0.1}, ("lamo", 1): {"pc": 0.9}})
    plan = make_plan("own", ["a"])
    sentences, supported = claims(make_table(plan, "t", reading), plan, "lamo")
    assert not supported
    assert "cannot be paired" in sentences[0]


def test_claims_of_the_reference_and_of_nothing_are_refused(make_plan) -> None:
    plan = make_plan("own", ["a", "b"])
    table = make_table(plan, "t", reading_of({"plain": [[0.1, 0.2]]}))
    with pytest.raises(EvaluationError, match="compared with"):
        claims(table, plan, "plain")
    with pytest.raises(EvaluationError, match="no row of the arm 'lamo'"):
        claims(table, plan, "lamo")
    with pytest.raises(EvaluationError, match="no number to print"):
        make_table(plan, "t", Reading(columns=COLUMNS))


@pytest.mark.parametrize("name", ["videophy", "videophy2", "vbench", "vbench2", "phygenbench", "physics-iq"])
def test_published_columns_are_those_of_the_readers(name: str, make_plan) -> None:
    from latent_physics.evaluation.benchmarks.phygenbench import CATEGORIES
    from latent_physics.evaluation.benchmarks.vbench import QUALITY, SEMANTIC
    from latent_physics.evaluation.benchmarks.vbench2 import GROUPS
    from latent_physics.evaluation.plan import Prompt

    groups = {
        "videophy": ["solid_solid", "solid_fluid", "fluid_fluid"],
        "vbench": [*QUALITY, *SEMANTIC],
        "vbench2": [name for names in GROUPS.values() for name in names],
        "phygenbench": list(dict.fromkeys(CATEGORIES.values())),
    }.get(name, ["x"])
    prompts = [Prompt(id=str(n), text=g, groups=(g,), rules=("r",)) for n, g in enumerate(groups)]
    known = {column.key for column in BENCHMARKS[name].columns(make_plan(name, prompts))}
    rows = published(name)
    assert rows
    for row in rows:
        assert row.values.keys() <= known, row.method
        assert all(0 <= value <= 1 for value in row.values.values()), row.method
        assert row.source
        assert row.url.startswith("https://")


def test_published_averages_follow_from_their_parts() -> None:
    """A slip in copying would break these: VBench-2.0's total is the mean of five, PhyGenBench's average
    counts prompts.
    """
    parts = ("creativity", "commonsense", "controllability", "human fidelity", "physics")
    for row in published("vbench2", ["total"]):
        assert row.values["total"] == pytest.approx(
            statistics.fmean(row.values[part] for part in parts), abs=1.1e-3
        )
    for row in published("vbench", ["quality"]):
        total = (4 * row.values["quality"] + row.values["semantic"]) / 5
        assert row.values["total"] == pytest.approx(total, abs=1.1e-3)
    counts = {"mechanics": 40, "optics": 50, "thermal": 30, "material": 40}
    main = [row for row in published("phygenbench") if row.source.endswith("Table 3")]
    assert len(main) == 8
    for row in main:
        total = sum(counts[name] * row.values[f"average_floor:{name}"] for name in counts) / 160
        assert row.values["average_floor"] == pytest.approx(total, abs=1.5e-3), row.method


def test_boards_deviations_are_kept() -> None:
    (row,) = [row for row in published("physics-iq") if row.method == "Wan 2.2"]
    assert (row.values["verified"], row.deviations["verified"]) == (
        pytest.approx(0.322),
        pytest.approx(0.006),
    )
    assert FILE.stat().st_size < 100_000
