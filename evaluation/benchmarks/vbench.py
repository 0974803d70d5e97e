"""VBench (github.com/Vchitect/VBench, Apache-2.0): sixteen dimensions of video quality and of what the prompt
asked for.

Names are `PROMPT-INDEX.mp4`, index 0 to 4; temporal flickering wants 25, of which its own filter keeps the
still ones: they lie in a folder of their own, beside and not below the others, because VBench takes the
suffix of the first entry. The standard suite takes the prompts of VBench_full_info.json; other prompts go
through the custom mode and its seven dimensions. Clips of 5 s and more belong to VBench-Long (issue 136 of
the repository).

Total = (4 quality + semantic) / 5, each a weighted mean of dimensions scaled by the bounds below
(scripts/constant.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import read_json
from ..manifest import Record
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import Benchmark, ClipScore, Column, Reading, by_path, captions, clip_score

DRIVER = Path(__file__).parent.parent / "drivers" / "vbench_driver.py"
LONG = 5.0
"""Seconds from which a clip belongs to VBench-Long."""
FLICKER = "temporal_flickering"
CUSTOM = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    FLICKER,
)
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    FLICKER: (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
}
"""Dimension -> (lowest, highest, weight)."""
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
IMAGES = "imaging_quality"
"""Reported per clip out of 100, as a mean out of 1."""


class VBench(Benchmark):
    name = "vbench"
    title = "VBench"
    prompts_from = "VBench_full_info.json of the repository, or a text file for the custom mode"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        if source.suffix != ".json":
            rows = captions(source)
            return [Prompt(id=str(n), text=row["caption"], groups=CUSTOM) for n, row in enumerate(rows, 1)]
        return joined(standard(source, options, lambda groups: 25 if FLICKER in groups else 5))

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        dims = dimensions_of(plan)
        totals = (
            [] if custom(plan) else [Column(key=key, title=key) for key in ("total", "quality", "semantic")]
        )
        return (*totals, *(Column(key=name, title=name.replace("_", " ")) for name in dims))

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        apart = not custom(plan) and FLICKER in prompt.groups
        folder = self.folder(arm, run) + (f"-{FLICKER}" if apart else "")
        return Spot(folder=folder, name=f"{prompt.text.replace('/', ' ')}-{index}.mp4")

    def objection(self, plan: Plan, record: Record) -> str | None:
        if record.frames / record.fps < LONG:
            return None
        limit = int(LONG * record.fps - 1e-6)
        return (
            f"{record.file} lasts {record.frames / record.fps:.2f} s, and clips of 5 s and more belong to"
            " VBench-Long:"
            f" make at most {limit} frames at {record.fps:g} fps."
        )

    def score(self, scoring: Scoring) -> None:
        scorer = scoring.installed()
        for arm, run in scoring.runs():
            name = self.folder(arm, run)
            for dimension in scorer.dimensions or dimensions_of(scoring.plan):
                output = scoring.results / name / f"{dimension}_eval_results.json"
                if output.is_file():
                    continue
                still = dimension == FLICKER and not custom(scoring.plan)
                videos = scoring.views / (f"{name}-{FLICKER}" if still else name)
                mode = "custom_input" if custom(scoring.plan) else "vbench_standard"
                command = [DRIVER, "--videos", videos, "--dimension", dimension, "--output", output.parent]
                command += ["--device", scorer.device, "--mode", mode, *(["--filter"] if still else [])]
                log = output.with_name(f"{dimension}.log")
                scoring.call(f"{self.title}, {name}: {dimension}", command, log, output.parent)
                if not output.is_file():
                    raise EvaluationError(f"the scorer wrote no {output.name}; see {log}.")

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        names = by_path(scoring)
        for arm, run in scoring.runs():
            found = dimension_results(scoring.results / self.folder(arm, run))
            if not found:
                continue
            totals = {name: float(mean) for name, (mean, _) in found.items()}
            if not custom(scoring.plan):
                totals |= totals_of(totals)
                lacking = [name for name in (*QUALITY, *SEMANTIC) if name not in totals]
                if lacking:
                    reading.notes.append(
                        f"VBench: {arm}, run {run} lacks {len(lacking)} dimensions, so it has no total."
                    )
            reading.totals[arm, run] = totals
            reading.clips += per_clip(found, self.folder(arm, run), names)
        if not reading.totals:
            raise EvaluationError(
                f"{scoring.results} holds no results of VBench: run `latent-physics evaluate score` first."
            )
        return reading


def custom(plan: Plan) -> bool:
    """Whether the prompts are the user's own."""
    return all(prompt.groups == CUSTOM for prompt in plan.prompts)


def dimensions_of(plan: Plan) -> tuple[str, ...]:
    """Dimensions that the plan has clips for."""
    return tuple(dict.fromkeys(group for prompt in plan.prompts for group in prompt.groups))


def standard(source: Path, options: Mapping[str, Any], samples: Any) -> list[Prompt]:
    """Prompts of a full_info file, of chosen dimensions only where the options name some.

    Raises EvaluationError.
    """
    entries = read_json(source)
    try:
        found = [(entry["prompt_en"], tuple(entry["dimension"])) for entry in entries]
    except (TypeError, KeyError) as error:
        raise EvaluationError(
            f"{source} is no full_info file: its entries need prompt_en and dimension."
        ) from error
    wanted = set(options.get("dimensions") or ())
    unknown = wanted - {name for _, dims in found for name in dims}
    if unknown:
        raise EvaluationError(f"{source.name} has no dimension {sorted(unknown)[0]!r}.")
    chosen = [(text, dims) for text, dims in found if not wanted or wanted & set(dims)]
    return [
        Prompt(
            id=str(number),
            text=text,
            groups=tuple(name for name in dims if not wanted or name in wanted),
            samples=samples(dims),
        )
        for number, (text, dims) in enumerate(chosen, 1)
    ]


def joined(prompts: list[Prompt]) -> list[Prompt]:
    """Prompts that occur in several entries once, with the dimensions of all: the scorer reads the same files
    for them. Those of temporal flickering have files of their own."""
    found: dict[tuple[str, bool], Prompt] = {}
    for prompt in prompts:
        key = prompt.text, FLICKER in prompt.groups
        first = found.setdefault(key, prompt)
        found[key] = replace(first, groups=tuple(dict.fromkeys(first.groups + prompt.groups)))
    return list(found.values())


def totals_of(values: Mapping[str, float]) -> dict[str, float]:
    """Quality, semantic and total score where all their dimensions are there.

    The repository's script counts missing dimensions as 0, which makes totals of unlike runs look comparable.
    """
    found = {}
    for key, table in (("quality", QUALITY), ("semantic", SEMANTIC)):
        if all(name in values for name in table):
            scaled = [
                (values[name] - low) / (high - low) * weight for name, (low, high, weight) in table.items()
            ]
            found[key] = sum(scaled) / sum(weight for _, _, weight in table.values())
    if len(found) == 2:
        found["total"] = (4 * found["quality"] + found["semantic"]) / 5
    return found


def dimension_results(folder: Path) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """Mean and entries of every dimension in a folder of *_eval_results.json files.

    Raises EvaluationError for other contents.
    """
    found = {}
    for path in sorted(folder.glob("**/*_eval_results.json")):
        values = read_json(path)
        for name, result in values.items() if isinstance(values, dict) else []:
            if not isinstance(result, list) or len(result) < 2 or not isinstance(result[0], int | float):
                raise EvaluationError(f"{path} holds no [mean, entries] for {name}.")
            found[name] = (result[0], result[1])
    return found


def per_clip(
    found: Mapping[str, tuple[float, list[dict[str, Any]]]], folder: str, names: Mapping[str, Record]
) -> list[ClipScore]:
    """Values by clip of all dimensions that report single videos, for pairing arms."""
    values: dict[str, dict[str, float]] = {}
    for dimension, (_, entries) in found.items():
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict) or not isinstance(entry.get("video_results"), int | float):
                continue
            path = Path(str(entry.get("video_path")))
            if "filtered_videos" in path.parts:
                continue  # the filter gives its clips new numbers
            inside = f"{folder}/{path.name}"
            value = float(entry["video_results"]) / (100 if dimension == IMAGES else 1)
            values.setdefault(inside, {})[dimension] = value
    return [clip_score(names[name], numbers) for name, numbers in values.items() if name in names]
