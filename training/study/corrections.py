"""Corrections of a plan's arms, said in words: "lamo predictor=FILE bound=0.5", "pila adapter=FILE".

Files are those that ship with the toy world, by name, or paths; "{seed}" in a path is a seed of the plan and
"{base}" a hash of the base's weights, as `benchmarks/pila/toyworld.py` names its folders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...methods.labels.rules import rule_labels
from ...methods.lamo import MotionPriorGuidance, load_predictor
from ...methods.pila import PilaCorrection, PilaSettings, label_batch, load_adapter
from ...methods.step import Correction
from ..backbones import load
from ..settings import Count, NotNegative, Positive, Share, kind_and_settings
from .ablations import build


@dataclass(frozen=True, kw_only=True)
class LamoWords:
    """LaMo guidance, with LaMo Guidance's defaults."""

    predictor: str
    scale: NotNegative = 25.0
    """lambda of eq 9."""
    bound: Positive | None = 0.5
    """Largest share of the step that cannot overshoot; none is the paper's rule."""
    start: Share = 0.9
    """Noise level below which it acts."""
    lag: Count | None = None
    """Left out, the predictor's."""
    edit: Literal["output", "noisy"] = "output"
    """noisy: the paper's ablation, which edits z_t."""

    def corrections(self, path: Path, prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
        """The correction of any prompts. Raises WeightsError."""
        predictor, info = load_predictor(path, latent_space="toy")
        guidance = MotionPriorGuidance(
            predictor, scale=self.scale, lag=self.lag or info.config["lag"], bound=self.bound,
            start=self.start, edit=self.edit,
        )  # fmt: skip
        return lambda rows: [guidance]


@dataclass(frozen=True, kw_only=True)
class PilaWords:
    """A PILA adapter, or an ablation of it."""

    adapter: str
    strength: NotNegative = 1.0
    branch: Literal["conditional", "both", "guided"] = "conditional"

    def corrections(self, path: Path, prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
        """The correction, with the labels of a slice of the prompts. Raises WeightsError."""
        adapter, _ = load_adapter(path, build=build)
        labels = (label_batch([rule_labels(prompt) for prompt in prompts]) > 0).float()
        return lambda rows: [
            PilaCorrection(
                adapter, PilaSettings(labels=labels[rows], strength=self.strength, branch=self.branch)
            )
        ]


KINDS = {"lamo": LamoWords, "pila": PilaWords}


def parse(text: str) -> Any:
    """Settings of a correction in words. Raises TrainingError for an unknown kind or setting."""
    return kind_and_settings(text, KINDS, "correction")[1]


def file_of(name: str) -> Path:
    """A file of the toy world's by name, or a path."""
    shipped = load.TOY_WEIGHTS / name
    return shipped if shipped.is_file() else Path(name)


def files_of(texts: Sequence[str]) -> list[Path]:
    """The files that some corrections need."""
    found = map(parse, texts)
    return [file_of(words.predictor if isinstance(words, LamoWords) else words.adapter) for words in found]


def edits_noise(texts: Sequence[str]) -> bool:
    """Whether one of them edits z_t, which no denoised estimate shows."""
    return any(getattr(words, "edit", "output") == "noisy" for words in map(parse, texts))


def corrections_of(texts: Sequence[str], prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
    """The corrections for slices of the prompts, in order. Raises WeightsError where a file does not fit."""
    made = [words.corrections(path, prompts) for words, path in zip(map(parse, texts), files_of(texts))]
    return lambda rows: [correction for of_rows in made for correction in of_rows(rows)]
