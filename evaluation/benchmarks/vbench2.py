"""VBench-2.0 (github.com/Vchitect/VBench, folder VBench-2.0, Apache-2.0): physics, common sense, control,
people, creativity.

A folder for each dimension; names are the short prompt cut at 180 characters, `-0` to `-2` (Diversity to
`-19`), whatever prompt the model was given. A missing clip ends the scorer with an exception.

Trap: a clip that fails a judge's first question ("is the scene there?") gets -1 and leaves the denominator,
so a model that misses its scenes can score higher. The number of clips that count stands beside each score
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import read_lines
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import NAN, Benchmark, Column, Reading, by_path, clip_score
from .vbench import DRIVER, dimension_results, dimensions_of, standard

CUT = 180
"""Characters of a prompt in a file's name."""
INVALID = -1
GROUPS = {
    "creativity": ("Composition", "Diversity"),
    "commonsense": ("Instance_Preservation", "Motion_Rationality"),
    "controllability": (
        "Camera_Motion",
        "Complex_Landscape",
        "Complex_Plot",
        "Dynamic_Attribute",
        "Dynamic_Spatial_Relationship",
        "Human_Interaction",
        "Motion_Order_Understanding",
    ),
    "human fidelity": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
    "physics": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
}
"""Category -> dimensions, averaged; total = mean of the categories (scripts/constant.py)."""


class VBench2(Benchmark):
    name = "vbench2"
    title = "VBench-2.0"
    prompts_from = "VBench2_full_info.json of the repository"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        found = standard(source, options, lambda groups: 20 if "Diversity" in groups else 3)
        augmented = self._augmented(found, options)
        return [
            Prompt(
                id=prompt.id, text=prompt.text, used=used, groups=prompt.groups[:1], samples=prompt.samples
            )
            for prompt, used in zip(found, augmented)
        ]

    def _augmented(self, prompts: list[Prompt], options: Mapping[str, Any]) -> list[str]:
        """Augmented prompts (a text file a dimension, in the order of the short ones), empty where none are
        given.
        """
        if not options.get("upsampled"):
            return [""] * len(prompts)
        lines = {}
        for name in dict.fromkeys(prompt.groups[0] for prompt in prompts):
            lines[name] = iter(read_lines(Path(options["upsampled"]) / f"{name}.txt"))
        try:
            return [next(lines[prompt.groups[0]]) for prompt in prompts]
        except StopIteration as error:
            raise EvaluationError(
                f"{options['upsampled']} has fewer lines for a dimension than it has prompts."
            ) from error

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        dims = dimensions_of(plan)
        categories = [key for key, names in GROUPS.items() if all(name in dims for name in names)]
        totals = ["total", *categories] if len(categories) == len(GROUPS) else categories
        found = [Column(key=key, title=key) for key in totals]
        for name in dims:
            found.append(Column(key=name, title=name.replace("_", " ")))
            found.append(
                Column(
                    key=f"{name}:valid",
                    title=f"{name.replace('_', ' ')}: clips that count",
                    scale=1,
                    digits=0,
                )
            )
        return tuple(found)

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        folder = f"{self.folder(arm, run)}/{prompt.groups[0]}"
        return Spot(folder=folder, name=f"{prompt.text[:CUT].replace('/', ' ')}-{index}.mp4")

    def score(self, scoring: Scoring) -> None:
        scorer = scoring.installed()
        for arm, run in scoring.runs():
            name = self.folder(arm, run)
            for dimension in scorer.dimensions or dimensions_of(scoring.plan):
                output = scoring.results / name / f"{dimension}_eval_results.json"
                if output.is_file():
                    continue
                command = [DRIVER, "--package", "vbench2", "--videos", scoring.views / name / dimension]
                command += ["--dimension", dimension, "--output", output.parent, "--device", scorer.device]
                command += ["--root", scorer.root] if scorer.root else []
                log = output.with_name(f"{dimension}.log")
                scoring.call(f"{self.title}, {name}: {dimension}", command, log, output.parent)
                if not output.is_file():
                    raise EvaluationError(f"the scorer wrote no {output.name}; see {log}.")

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        names = by_path(scoring)
        for arm, run in scoring.runs():
            folder = self.folder(arm, run)
            found = dimension_results(scoring.results / folder)
            if not found:
                continue
            totals = {}
            for dimension, (mean, entries) in found.items():
                totals |= counted(dimension, mean, entries)
                reading.clips += clips_of(dimension, entries, f"{folder}/{dimension}", names)
            reading.totals[arm, run] = totals | categories(totals)
        if not reading.totals:
            raise EvaluationError(
                f"{scoring.results} holds no results of VBench-2.0: run `latent-physics evaluate score`"
                " first."
            )
        reading.notes.append(
            "VBench-2.0: clips that fail a judge's first question leave the mean; compare the numbers that"
            " count."
        )
        return reading


def counted(dimension: str, mean: float, entries: Any) -> dict[str, float]:
    """A dimension's score and the number of clips in it."""
    results = [entry.get("video_results") for entry in entries if isinstance(entry, dict)]
    numbers = [value for value in results if isinstance(value, int | float)]
    return {dimension: float(mean), f"{dimension}:valid": float(sum(value != INVALID for value in numbers))}


def clips_of(dimension: str, entries: Any, folder: str, names: Mapping[str, Any]) -> list[Any]:
    """Values of single clips; nan for those that do not count."""
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("video_results"), int | float):
            continue
        record = names.get(f"{folder}/{Path(str(entry.get('video_path'))).name}")
        if record is not None:
            value = float(entry["video_results"])
            found.append(clip_score(record, {dimension: NAN if value == INVALID else value}))
    return found


def categories(values: Mapping[str, float]) -> dict[str, float]:
    """Means of the categories whose dimensions are all there, and the total of all five."""
    found = {
        key: sum(values[name] for name in names) / len(names)
        for key, names in GROUPS.items()
        if all(name in values and not math.isnan(values[name]) for name in names)
    }
    if len(found) == len(GROUPS):
        found["total"] = sum(found.values()) / len(found)
    return found
