"""Physics-IQ Verified (github.com/google-deepmind/physics-IQ-benchmark, arXiv 2606.18943): real videos
continued from one frame.

198 clips a run, each exactly 5 s at one frame rate, four runs to claim anything. The score of a view of a
scenario is the mean of four ratios, each cut to [0, 1]: the clip's spatial, weighted spatial and
spatio-temporal overlap with the real take over the overlap of two real takes, and the takes' squared error
over the clip's. `final_score_view` is the mean over scenarios and views.

The scorer keeps masks of generated clips under the name of their run and never makes them again, so a crash,
or new clips under an old name, would be scored with wrong masks; they are removed here before it starts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...methods.weights import write_atomically
from ..errors import EvaluationError
from ..files import read_csv
from ..manifest import Record, digest
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import Benchmark, ClipScore, Column, Reading

CLIPS = 198
SECONDS, TOLERANCE = 5.0, 0.001
DATA = "physics-IQ-benchmark-verified"
RUN = "physiq/run_physics_iq.py"
VIEWS = ("perspective-left", "perspective-center", "perspective-right")
OVERLAPS = ("spatial_iou", "weighted_spatial_iou", "spatiotemporal_iou")
EPSILON = 1e-8
"""The scorer's guard against dividing by zero."""


class PhysicsIQ(Benchmark):
    name = "physics-iq"
    title = "Physics-IQ Verified"
    prompts_from = (
        "a descriptions CSV of the repository (best_practice/descriptions_*.csv or descriptions_original.csv)"
    )
    runs = 4

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        rows = read_csv(source, ["scenario", "description", "category", "generated_video_name"])
        taken = [row for row in rows if "_take-1_" in row["scenario"]]
        frames = Path(options["frames"]) if options.get("frames") else None
        prompts = []
        for row in taken:
            number, view, name = row["generated_video_name"].removesuffix(".mp4").split("_", 2)
            image = frames / f"{number}_switch-frames_anyFPS_{view}_{name}.jpg" if frames else ""
            stem = row["generated_video_name"].removesuffix(".mp4")
            groups = (row["category"], view)
            prompts.append(Prompt(id=stem, text=row["description"], groups=groups, image=str(image)))
        return sorted(prompts, key=lambda prompt: prompt.id)

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        return (
            Column(key="verified", title="Physics-IQ Verified"),
            Column(key="spatial_iou", title="spatial"),
            Column(key="weighted_spatial_iou", title="weighted"),
            Column(key="spatiotemporal_iou", title="spatio-temporal"),
            Column(key="mse", title="error"),
        )

    def run_folder(self, plan: Plan, arm: str, run: int) -> str:
        """MODEL-PROMPTS-run_NN, the arm as part of the model's name."""
        return f"{plan.label}_{arm}-{plan.options.get('style', 'bpp')}-run_{run:02}"

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        fps = float(plan.options.get("fps", 0))
        return Spot(
            folder=self.run_folder(plan, arm, run), name=f"{prompt.id}.mp4", frames=round(SECONDS * fps)
        )

    def objection(self, plan: Plan, record: Record) -> str | None:
        fps = float(plan.options.get("fps", record.fps))
        if abs(record.fps - fps) > 0.01:
            return (
                f"{record.file} has {record.fps:g} frames a second and the plan says {fps:g}; save the clip"
                f" at {fps:g}."
            )
        need = round(SECONDS * fps)
        if abs(need - SECONDS * fps) > SECONDS * TOLERANCE:
            return f"at {fps:g} frames a second no clip lasts exactly 5 s; use 8, 16, 24 or 30."
        if record.frames < need:
            have = record.frames / record.fps
            return (
                f"{record.file} lasts {have:.2f} s, and Physics-IQ needs 5 s: make {need} frames or more at"
                f" {fps:g} fps."
            )
        if record.frames > need and "fps" not in plan.options:
            return (
                f"{record.file} has {record.frames} frames, and its first {need} last exactly 5 s: plan again"
                f" with --fps {fps:g}, so that the layout cuts it, or make {need} frames."
            )
        if record.frames == need and abs(record.seconds - SECONDS) > TOLERANCE:
            return (
                f"{record.file} states {record.seconds:.4f} s instead of 5 s; save it as mp4 with a constant"
                " frame rate."
            )
        return None

    def warnings(self, plan: Plan) -> list[str]:
        found = []
        if len(plan.prompts) != CLIPS:
            found.append(
                f"Physics-IQ has {CLIPS} prompts and this plan {len(plan.prompts)}: its scorer will refuse"
                " the folders."
            )
        if plan.runs < 4:
            found.append(
                f"{plan.runs} runs: the board wants four and their deviation (0.4 to 1.5 points) to claim a"
                " record."
            )
        if not all(prompt.image for prompt in plan.prompts):
            found.append(
                "no first frames are given (--frames FOLDER/switch-frames): Physics-IQ is an image-to-video"
                " benchmark."
            )
        return found

    def score(self, scoring: Scoring) -> None:
        scorer = scoring.installed()
        root = scorer.place("root")
        data = scorer.place("data", DATA)
        descriptions = Path(str(scoring.plan.options["source"]))
        if not descriptions.is_file():
            raise EvaluationError(f"{descriptions}, the plan's prompt file, is gone; the scorer needs it.")
        for (arm, run), records in scoring.runs().items():
            name = self.run_folder(scoring.plan, arm, run)
            output = scoring.results / DATA / "results" / f"{name}.csv"
            content = digest(sorted(record.job for record in records))
            state = scoring.results / f"{name}.json"
            if not self._same(state, content):
                output.unlink(missing_ok=True)
            if output.is_file():
                continue
            shutil.rmtree(data / "video-masks" / "generated" / name, ignore_errors=True)
            for record in records:
                scoring.clip(record)
            write_atomically(state, json.dumps({"clips": content}).encode())
            command = [
                root / RUN,
                "--input_folders",
                scoring.views / name,
                "--output_folder",
                scoring.results,
            ]
            command += ["--descriptions_file", descriptions, "--benchmark_base_folder", scorer.data]
            scoring.call(f"{self.title}, {name}", command, scoring.results / f"{name}.log", root)
            if not output.is_file():
                raise EvaluationError(f"the scorer wrote no {output.name}; see {scoring.results / name}.log.")

    @staticmethod
    def _same(state: Path, content: str) -> bool:
        try:
            return json.loads(state.read_text(encoding="utf-8"))["clips"] == content
        except (OSError, ValueError, KeyError):
            return False

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        for arm, run in scoring.runs():
            name = self.run_folder(scoring.plan, arm, run)
            results = scoring.results / DATA / "results"
            if not (results / f"{name}.csv").is_file():
                reading.notes.append(f"Physics-IQ: {name} has no results and is left out.")
                continue
            clips = clip_scores(results / f"{name}.csv", arm, run, scoring.plan)
            reading.clips += clips
            stated = stated_score(results / f"{name}_metrics.json")
            own = sum(clip.values["verified"] for clip in clips) / len(clips)
            if stated is not None and abs(stated - own) > 1e-3:
                reading.notes.append(
                    f"Physics-IQ: {name} states {100 * stated:.2f}, its CSV gives {100 * own:.2f}; the table"
                    " has the CSV's."
                )
        if not reading.clips:
            raise EvaluationError(
                f"{scoring.results} holds no results of Physics-IQ: run `latent-physics evaluate score`"
                " first."
            )
        counts = {arm: len(reading.runs(arm)) for arm in reading.arms()}
        if min(counts.values()) < 4:
            reading.notes.append("Physics-IQ: fewer than four runs; a deviation over them claims nothing.")
        return reading


def clip_scores(path: Path, arm: str, run: int, plan: Plan) -> list[ClipScore]:
    """Score of every clip, computed from the scorer's CSV (a row a scenario, columns METRIC_VIEW, lists as
    text).
    """
    rows = read_csv(path, ["scenario", *columns_of(VIEWS[0])])
    by_name = {(prompt.id.split("_", 2)[2], prompt.groups[1]): prompt for prompt in plan.prompts}
    clips = []
    for row in rows:
        name = row["scenario"].removesuffix(".mp4")
        for view in VIEWS:
            prompt = by_name.get((name, view))
            if prompt is None:
                raise EvaluationError(
                    f"{path.name} scores the scenario {name} ({view}), which is not in the plan."
                )
            values = view_score(row, view)
            clips.append(ClipScore(arm=arm, prompt_id=prompt.id, run=run, index=0, values=values))
    return clips


def columns_of(view: str) -> list[str]:
    """Columns of the scorer's CSV that one view's score needs."""
    names = [f"{overlap}_v1" for overlap in OVERLAPS] + ["v1_mse", "variance_mse"]
    names += ["variance_spatial", "variance_weighted_spatial", "variance_spatiotemporal_iou"]
    return [f"{name}_{view}" for name in names]


def view_score(row: Mapping[str, str], view: str) -> dict[str, float]:
    """Four ratios in [0, 1] of one view and their mean."""
    means = {name: mean_of(row[name]) for name in columns_of(view)}
    variances = {
        "spatial_iou": "variance_spatial",
        "weighted_spatial_iou": "variance_weighted_spatial",
        "spatiotemporal_iou": "variance_spatiotemporal_iou",
    }
    found = {
        overlap: cut(means[f"{overlap}_v1_{view}"] / (means[f"{variance}_{view}"] + EPSILON))
        for overlap, variance in variances.items()
    }
    error = means[f"v1_mse_{view}"] / (means[f"variance_mse_{view}"] + EPSILON)
    found["mse"] = cut(1 / error) if error > 0 else 1.0
    return {**found, "verified": sum(found.values()) / len(found)}


def mean_of(text: str) -> float:
    """Mean of a number or of a list written as text, NumPy's type names among it; list entries count with
    four decimals.
    """
    numbers = re.findall(r"(?<![\w.])[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)
    if not numbers:
        raise EvaluationError(f"{text[:60]!r} in a result of Physics-IQ holds no number.")
    if not text.lstrip().startswith("["):
        return float(numbers[0])
    values = [round(float(number), 4) for number in numbers]
    return sum(values) / len(values)


def cut(value: float) -> float:
    """`value` cut to [0, 1]."""
    return min(max(value, 0.0), 1.0)


def stated_score(path: Path) -> float | None:
    """`final_score_view` of a run's metrics file; None if there is none."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["final_score_view"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
