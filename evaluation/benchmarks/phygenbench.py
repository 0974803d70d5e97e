"""PhyGenBench (github.com/OpenGVLab/PhyGenBench at b6416b7): 160 prompts, three stages, a closed and an open
route.

The repository has no licence file, so nothing of it is shipped: prompts are read from the user's clone. Its
scripts hold absolute paths and do not run as published (multiimage_clip.py reads a third description that the
questions lack, video/GPT4o.py a fourth and fifth; it also writes into another folder than overall.py reads),
so they are not started from here; this reader takes whatever stage files there are, from either folder, and
counts prompts that a stage has no answer for.

Per prompt and route: round((single + multi + video) / 3), 0 to 3. The published average of both routes is
floored per prompt, (closed + open) // 2, which costs the published Kling row 0.565 -> 0.4875; it is named
apart from the mean without the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import read_json
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import NAN, Benchmark, Column, Reading, clip_score

HIGHEST = 3
CATEGORIES = {
    "Force": "mechanics",
    "Light": "optics",
    "Heat": "thermal",
    "Physical Properties": "material",
    "Chemical Properties": "material",
}
"""The repository's main categories and the columns of papers' tables."""
STAGES = {
    "single": ("single/prompt_replace_augment_single_question_{model}_res.json",),
    "multi_gpt": ("multi/prompt_replace_augment_multi_question_{model}_res.json",),
    "multi_llava": ("multi/prompt_replace_augment_multi_question_{model}_res_llava.json",),
    "video_gpt": (
        "video/prompt_replace_augment_video_question_{model}_res.json",
        "video/Phy_Score/prompt_replace_augment_video_question_{model}_res.json",
    ),
    "video_intern": (
        "video/prompt_replace_augment_video_question_{model}_res_intern.json",
        "video/MTScore/prompt_replace_augment_video_question_{model}_res_intern.json",
    ),
}
"""Stage -> places of its file below PhyGenEval, the one that overall.py reads first."""
ROUTES = {"closed": ("single", "multi_gpt", "video_gpt"), "open": ("single", "multi_llava", "video_intern")}


class PhyGenBench(Benchmark):
    name = "phygenbench"
    title = "PhyGenBench"
    prompts_from = "PhyGenBench/prompts.json of the repository"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        path = source / "PhyGenBench" / "prompts.json" if source.is_dir() else source
        try:
            entries = [(entry["caption"], entry["main_category"]) for entry in read_json(path)]
        except (TypeError, KeyError) as error:
            raise EvaluationError(
                f"{path} is no prompts.json: its entries need caption and main_category."
            ) from error
        return [
            Prompt(id=str(number), text=caption, groups=(CATEGORIES.get(category, category.lower()),))
            for number, (caption, category) in enumerate(entries, 1)
        ]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        found = [
            Column(key="closed", title="closed route", digits=3, scale=1),
            Column(key="open", title="open route", digits=3, scale=1),
            Column(key="average", title="average", digits=3, scale=1),
            Column(key="average_floor", title="average, floored as published", digits=3, scale=1),
        ]
        for group in dict.fromkeys(prompt.groups[0] for prompt in plan.prompts):
            found.append(Column(key=f"average_floor:{group}", title=f"{group}, floored", digits=3, scale=1))
        return tuple(found)

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        return Spot(folder=f"PhyVideos/{self.folder(arm, run)}", name=f"output_video_{prompt.id}.mp4")

    def warnings(self, plan: Plan) -> list[str]:
        return [
            "PhyGenBench's own scripts are run by hand (they hold absolute paths and need repairs:"
            " docs/evaluate.md)."
        ]

    def score(self, scoring: Scoring) -> None:
        raise EvaluationError(
            "PhyGenBench's published scripts cannot be started as they are (absolute paths, missing keys);"
            " run your repaired"
            f" copies on {scoring.views / 'PhyVideos'} and put their PhyGenEval folder into"
            f" {scoring.results}, then `table`."
        )

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        for (arm, run), records in scoring.runs().items():
            model = self.folder(arm, run)
            stages = stage_scores(scoring, model)
            if not stages:
                continue
            size = len(scoring.plan.prompts)
            wrong = [name for name, values in stages.items() if len(values) != size]
            if wrong:
                raise EvaluationError(
                    f"the {wrong[0]} stage of {model} has {len(stages[wrong[0]])} answers for {size} prompts."
                )
            reading.notes += gaps(stages, model, size)
            for record in records:
                number = int(record.prompt_id) - 1
                here = {name: values[number] for name, values in stages.items()}
                group = scoring.plan.prompt(record.prompt_id).groups[0]
                reading.clips.append(clip_score(record, numbers(here, group)))
        if not reading.clips:
            raise EvaluationError(
                f"{scoring.results} holds no stage files of PhyGenBench; see docs/evaluate.md for their"
                " places."
            )
        reading.notes.append(
            "PhyGenBench: papers print the floored average; closed-route numbers are not comparable with it."
        )
        return reading


def numbers(stages: Mapping[str, float], group: str) -> dict[str, float]:
    """Routes and averages of one prompt, each in [0, 1]; nan for what a missing stage leaves open."""
    found = {}
    for route, parts in ROUTES.items():
        values = [stages.get(part, NAN) for part in parts]
        known = not any(math.isnan(value) for value in values)
        found[route] = float(round(sum(values) / len(values))) if known else NAN
    both = found["closed"] + found["open"]
    known = not math.isnan(both)
    values = {"average": both / 2, "average_floor": float(both // 2) if known else NAN}
    scaled = {key: value / HIGHEST for key, value in {**found, **values}.items()}
    return {**scaled, f"average_floor:{group}": scaled["average_floor"]}


def gaps(stages: Mapping[str, list[float]], model: str, size: int) -> list[str]:
    """Notes on stages without a file or with prompts that have no answer."""
    notes = [f"PhyGenBench: {model} has no {name} stage." for name in STAGES if name not in stages]
    for name, values in stages.items():
        lacking = sum(math.isnan(value) for value in values)
        if lacking:
            notes.append(
                f"PhyGenBench: {lacking} of {size} prompts of {model} have no answer of the {name} stage and"
                " are left out."
            )
    return notes


def stage_scores(scoring: Scoring, model: str) -> dict[str, list[float]]:
    """Score (0 to 3) of every prompt by stage, from result/MODEL.json or the stages' files; empty if there is
    neither.
    """
    whole = scoring.results / "result" / f"{model}.json"
    if whole.is_file():
        return from_result(read_json(whole))
    root = scoring.results / "PhyGenEval"
    found = {}
    for name, places in STAGES.items():
        path = next(
            (
                root / place.format(model=model)
                for place in places
                if (root / place.format(model=model)).is_file()
            ),
            None,
        )
        if path is not None:
            found[name] = [guarded(READERS[name], entry, model) for entry in read_json(path)]
    return found


def from_result(entries: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Stages of a file that overall.py wrote (result/kelingall.json is one)."""
    return {
        name: [float(entry.get(name, NAN)) for entry in entries]
        for name in STAGES
        if any(name in e for e in entries)
    }


def guarded(read: Callable[[Mapping[str, Any], str], float], entry: Mapping[str, Any], model: str) -> float:
    """A stage's score of one prompt; nan where the published script swallowed an error and left the answer
    out.
    """
    try:
        return float(read(entry, model))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return NAN


def single_score(entry: Mapping[str, Any], model: str) -> float:
    """Stage 1.

    One question: VQA score less the retrieval's, in quarters; two: discretised by the script itself.
    """
    questions = entry["singleimage_question"]
    if len(questions) != 1:
        return entry[f"{model}_descrete"]
    score = questions[0][model]
    if questions[0]["Retrieval Prompt"] != "Last Frame":
        score -= questions[0]["clip_retrieval"]
    return int(score / 0.25) if 0 <= score < 0.75 else HIGHEST


def multi_gpt_score(entry: Mapping[str, Any], model: str) -> float:
    """Stage 2, closed route: three yes-or-no answers, or three scores that count from 1.5."""
    answers = entry["multiimage_question"]
    if "CLIP_Index" in answers:
        return sum(answers[f"GPT4o_{number}_Score"] >= 1.5 for number in (1, 2, 3))
    return sum(says_yes(answers[f"GPT4o_{number}"]["Choice"]) for number in (1, 2, 3))


def multi_llava_score(entry: Mapping[str, Any], model: str) -> float:
    """Stage 2, open route: the third answer, and the best frame's answer plus retrieval score of the first
    two.
    """
    answers = entry["multiimage_question"]
    if "CLIP_Index" not in answers:
        return sum(says_yes(answers[f"LLava_{number}"]) for number in (1, 2, 3))
    start, middle, end = map(int, answers["CLIP_Index"].split(","))
    total = int(says_yes(answers["LLava_3"]))
    for number, frames in ((1, range(start, middle + 1)), (2, range(middle, end))):
        best = max(
            answers[f"retrieval_{number}_{k}"] + says_yes(answers[f"LLava_{number}_{k}"]) for k in frames
        )
        total += best >= 1.5
    return total


def says_yes(answer: str) -> int:
    """1 for an answer that holds "yes" and no "no", as overall.py reads it."""
    words = answer.strip().lower()
    return int("no" not in words and "yes" in words)


READERS: dict[str, Callable[[Mapping[str, Any], str], float]] = {
    "single": single_score,
    "multi_gpt": multi_gpt_score,
    "multi_llava": multi_llava_score,
    "video_gpt": lambda entry, model: entry["GPT4o_score"],
    "video_intern": lambda entry, model: entry["InternVideo2_score"],
}
