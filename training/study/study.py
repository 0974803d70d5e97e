"""The toy world's study of objectives: the gate first, then the comparison of the arms whose gate is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backbones import load_backbone
from ..console import ProgressLine, StopRequest
from ..objectives import parse
from ..objectives.settings import AlignSettings
from ..recipes import load_recipe
from ..tasks.finetune import FinetuneConfig
from .compare import CompareConfig, check, compare
from .gate import Limits, Reading, read_gate, require_open


@dataclass(kw_only=True)
class StudyConfig(CompareConfig):
    """Fine-tunes the toy model with each objective whose gate is open and scores what each draws."""

    out: Path = Path("runs/study")
    """Folder of the runs and of the table."""
    gate: bool = False
    """Print the gate of every recipe and stop: nothing is trained."""
    gate_clips: int = 32
    """Real clips that the gate looks at; the probes take three times as many."""


def arms(recipes: Sequence[str]) -> dict[str, str]:
    """The alignment objectives of some recipes, by recipe (numbered where it has several). Others need no
    gate.

    Raises RecipeError and TrainingError.
    """
    found: dict[str, str] = {}
    for name in recipes:
        texts = [
            text
            for text in load_recipe(name, FinetuneConfig).objectives
            if isinstance(parse.parse(text)[1], AlignSettings)
        ]
        found |= {name if number == 0 else f"{name} {number + 1}": text for number, text in enumerate(texts)}
    return found


def gate(config: StudyConfig, progress: ProgressLine) -> list[Reading]:
    """The gate of every alignment among the recipes, on the toy base that ships."""
    return read_gate(arms(config.recipes), load_backbone("toy"), config.gate_clips, config.seed, progress)


def study(
    config: StudyConfig, readings: Sequence[Reading], stop: StopRequest, progress: ProgressLine
) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The comparison, as `compare` returns it. Raises GateError where an arm's gate is closed: its result
    could only have been a null result, whoever is right."""
    check(config)
    require_open(readings, Limits())
    return compare(config, stop, progress)
