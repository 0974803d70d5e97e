"""PhyGenBench: stage files as the published scripts write them, floor and no floor by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from latent_physics.evaluation.benchmarks import BENCHMARKS
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.scoring import Scoring
from latent_physics.evaluation.views import build_views

MODEL = "plain-run_01"
CATEGORIES = ["Force", "Light", "Heat", "Physical Properties", "Chemical Properties"]


@pytest.fixture
def scoring(tmp_path: Path, make_plan, filled) -> Scoring:
    """Five prompts, one of each category, in the clone's file."""
    clone = tmp_path / "clone" / "PhyGenBench"
    clone.mkdir(parents=True)
    entries = [{"caption": f"prompt {n}", "main_category": name} for n, name in enumerate(CATEGORIES, 1)]
    (clone / "prompts.json").write_text(json.dumps(entries))
    benchmark = BENCHMARKS["phygenbench"]
    plan = make_plan(
        "phygenbench", benchmark.prompts(tmp_path / "clone", {}), arms={"plain": {}}, baselines=False
    )
    manifest = filled(plan)
    build_views(plan, benchmark, manifest)
    return Scoring(plan=plan, benchmark=benchmark, manifest=manifest)


def single(kind: str, value: float, retrieval: float = 0.5) -> dict[str, Any]:
    """Stage 1 of one prompt: one question at the last frame, one at a retrieved frame, or two."""
    if kind == "two":
        return {"singleimage_question": [{}, {}], f"{MODEL}_descrete": value}
    question = {"Retrieval Prompt": "Last Frame" if kind == "last" else "the ball", MODEL: value}
    if kind == "retrieved":
        question |= {MODEL: value + retrieval, "clip_retrieval": retrieval}
    return {"singleimage_question": [question]}


def answers(*choices: str) -> dict[str, Any]:
    return {"multiimage_question": {f"GPT4o_{n}": {"Choice": text} for n, text in enumerate(choices, 1)}}


STAGES: dict[str, list[dict[str, Any]]] = {
    # 0.6 -> 2, 0.2 -> 0, 0.8 -> 3, discretised 1, 0.26 -> 1
    "single/prompt_replace_augment_single_question_{}_res.json": [
        single("last", 0.6),
        single("retrieved", 0.2),
        single("last", 0.8),
        single("two", 1),
        single("retrieved", 0.26),
    ],
    # 3, 1, 2 (of scores), 0, 2
    "multi/prompt_replace_augment_multi_question_{}_res.json": [
        answers("Yes", "yes, it does", "Yes."),
        answers("No", "Yes", "no"),
        {
            "multiimage_question": {
                "CLIP_Index": "0,1,2",
                "GPT4o_1_Score": 1.5,
                "GPT4o_2_Score": 1.49,
                "GPT4o_3_Score": 1.9,
            }
        },
        answers("no", "No", "No"),
        answers("Yes", "Yes", "No"),
    ],
    "multi/prompt_replace_augment_multi_question_{}_res_llava.json": [
        {"multiimage_question": {"LLava_1": "Yes", "LLava_2": "No", "LLava_3": "No"}},
        {"multiimage_question": {"LLava_1": "Yes", "LLava_2": "Yes", "LLava_3": "Yes"}},
        {
            "multiimage_question": {  # frames 0 and 1 for the first question, 1 for the second
                "CLIP_Index": "0,1,2",
                "LLava_1_0": "No",
                "retrieval_1_0": 0.9,
                "LLava_1_1": "Yes",
                "retrieval_1_1": 0.6,
                "LLava_2_1": "Yes",
                "retrieval_2_1": 0.4,
                "LLava_3": "Yes",
            }
        },
        {"multiimage_question": {"LLava_1": "No", "LLava_2": "No", "LLava_3": "No"}},
        {"multiimage_question": {"LLava_1": "Yes", "LLava_2": "Yes", "LLava_3": "No"}},
    ],
    "video/Phy_Score/prompt_replace_augment_video_question_{}_res.json": [
        {"GPT4o_score": n} for n in (3, 2, 3, 0, 1)
    ],
    "video/prompt_replace_augment_video_question_{}_res_intern.json": [
        {"InternVideo2_score": n} for n in (1, 3, 3, 1, 1)
    ],
}
# closed: round(8/3)=3, round(3/3)=1, round(8/3)=3, round(1/3)=0, round(4/3)=1
# open, with multi 1, 3, 2, 0, 2: round(4/3)=1, round(6/3)=2, round(8/3)=3, round(2/3)=1, round(4/3)=1
CLOSED, OPEN = [3, 1, 3, 0, 1], [1, 2, 3, 1, 1]


def write(scoring: Scoring, leave_out: str = "") -> None:
    for name, entries in STAGES.items():
        path = scoring.results / "PhyGenEval" / name.format(MODEL)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not leave_out or leave_out not in name:
            path.write_text(json.dumps(entries))


def test_names_follow_the_order_of_the_prompts(scoring: Scoring) -> None:
    folder = scoring.views / "PhyVideos" / MODEL
    assert sorted(path.name for path in folder.iterdir()) == [f"output_video_{n}.mp4" for n in range(1, 6)]


def test_routes_and_averages_equal_the_table_by_hand(scoring: Scoring) -> None:
    write(scoring)
    reading = scoring.benchmark.read(scoring)
    floor = sum((a + b) // 2 for a, b in zip(CLOSED, OPEN)) / 15
    expected = {"closed": 8 / 15, "open": 8 / 15, "average": 16 / 30, "average_floor": floor}
    assert floor == pytest.approx(7 / 15)
    for key, value in expected.items():
        assert reading.of_run("plain", 1, key) == pytest.approx(value), key
    assert reading.of_run("plain", 1, "average_floor:mechanics") == pytest.approx(2 / 3)
    assert reading.of_run("plain", 1, "average_floor:material") == pytest.approx((0 + 1) / 6)


def test_a_result_file_of_the_published_script_gives_the_same(scoring: Scoring) -> None:
    write(scoring)
    from_stages = scoring.benchmark.read(scoring)
    path = scoring.results / "result" / f"{MODEL}.json"
    path.parent.mkdir()
    stages = {"single": [2, 0, 3, 1, 1], "multi_gpt": [3, 1, 2, 0, 2], "multi_llava": [1, 3, 2, 0, 2]}
    stages |= {"video_gpt": [3, 2, 3, 0, 1], "video_intern": [1, 3, 3, 1, 1]}
    path.write_text(json.dumps([{name: values[n] for name, values in stages.items()} for n in range(5)]))
    from_result = scoring.benchmark.read(scoring)
    assert from_result.clips == from_stages.clips


def test_a_stage_that_is_missing_leaves_its_route_open_and_says_so(scoring: Scoring) -> None:
    write(scoring, leave_out="llava")
    reading = scoring.benchmark.read(scoring)
    assert reading.of_run("plain", 1, "closed") == pytest.approx(8 / 15)
    assert reading.of_run("plain", 1, "open") != reading.of_run("plain", 1, "open")
    assert any("plain-run_01 has no multi_llava stage" in note for note in reading.notes)


def test_answers_that_a_script_swallowed_are_counted(scoring: Scoring) -> None:
    """multiimage_clip.py asks for a third description that the questions lack and drops the answer."""
    write(scoring)
    path = (
        scoring.results / "PhyGenEval" / "multi" / f"prompt_replace_augment_multi_question_{MODEL}_res.json"
    )
    entries = json.loads(path.read_text())
    entries[0]["multiimage_question"] = {"Description1": "a", "Description2": "b"}
    path.write_text(json.dumps(entries))
    reading = scoring.benchmark.read(scoring)
    assert any("1 of 5 prompts" in note and "multi_gpt" in note for note in reading.notes)
    assert reading.of_run("plain", 1, "closed") == pytest.approx(5 / 12)
    assert reading.of_run("plain", 1, "open") == pytest.approx(8 / 15)


def test_files_of_another_number_of_prompts_and_none_at_all_are_refused(scoring: Scoring) -> None:
    with pytest.raises(EvaluationError, match="no stage files"):
        scoring.benchmark.read(scoring)
    write(scoring)
    path = (
        scoring.results / "PhyGenEval" / "single" / f"prompt_replace_augment_single_question_{MODEL}_res.json"
    )
    path.write_text(json.dumps(json.loads(path.read_text())[:3]))
    with pytest.raises(EvaluationError, match="single stage of plain-run_01 has 3 answers for 5 prompts"):
        scoring.benchmark.read(scoring)


def test_its_scripts_are_not_started(scoring: Scoring) -> None:
    with pytest.raises(EvaluationError, match="cannot be started as they are"):
        scoring.benchmark.score(scoring)
