"""Corrections of a plan's arms, said in words: "lamo predictor=FILE bound=0.5", "pila adapter=FILE", "still
share=0.1".

Files are those that ship with the toy world, by name, or paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...methods.labels.rules import rule_labels
from ...methods.lamo import MotionPriorGuidance, load_predictor
from ...methods.pila import PilaCorrection, PilaSettings, label_batch, load_adapter
from ...methods.step import Correction, SamplingStep
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

    @property
    def file(self) -> str:
        """The file that it needs."""
        return self.predictor

    def corrections(self, prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
        """The correction of any prompts. Raises WeightsError."""
        path = file_of(self.predictor)
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

    @property
    def file(self) -> str:
        """The file that it needs."""
        return self.adapter

    def corrections(self, prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
        """The correction, with the labels of a slice of the prompts. Raises WeightsError."""
        adapter, _ = load_adapter(file_of(self.adapter), build=build)
        labels = (label_batch([rule_labels(prompt) for prompt in prompts]) > 0).float()
        return lambda rows: [
            PilaCorrection(
                adapter, PilaSettings(labels=labels[rows], strength=self.strength, branch=self.branch)
            )
        ]


@dataclass(frozen=True, kw_only=True)
class StillWords:
    """What takes motion away and knows no law: the yardstick of a correction that takes some away too."""

    share: Share = 0.1
    """Share of the way from each latent frame to the clip's mean over time."""
    start: Share = 0.9
    """Noise level below which it acts, as LaMo's."""
    file = None

    def corrections(self, prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
        """The correction of any prompts."""
        return lambda rows: [Stilling(self.share, self.start)]


class Stilling:
    """Moves every latent frame towards the clip's mean over time, so that all that moves does so less.
    (Smoothing frames by their neighbours took no motion away: docs/evidence.md, "The yardstick".)"""

    def __init__(self, share: float, start: float) -> None:
        self.share, self.start = share, start

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """As `Correction.correct`; a step without a noise level is acted on."""
        if step.level is not None and step.level.max() > self.start:
            return x0
        return x0.lerp(x0.mean(dim=2, keepdim=True), self.share)


KINDS = {"lamo": LamoWords, "pila": PilaWords, "still": StillWords}


def parse(text: str) -> Any:
    """Settings of a correction in words. Raises TrainingError for an unknown kind or setting."""
    return kind_and_settings(text, KINDS, "correction")[1]


def file_of(name: str) -> Path:
    """A file of the toy world's by name, or a path."""
    shipped = load.TOY_WEIGHTS / name
    return shipped if shipped.is_file() else Path(name)


def files_of(texts: Sequence[str]) -> list[Path]:
    """The files that some corrections need."""
    return [file_of(words.file) for words in map(parse, texts) if words.file is not None]


def edits_noise(texts: Sequence[str]) -> bool:
    """Whether one of them edits z_t, which no denoised estimate shows."""
    return any(getattr(words, "edit", "output") == "noisy" for words in map(parse, texts))


def corrections_of(texts: Sequence[str], prompts: Sequence[str]) -> Callable[[slice], list[Correction]]:
    """The corrections for slices of the prompts, in order. Raises WeightsError where a file does not fit."""
    made = [words.corrections(prompts) for words in map(parse, texts)]
    return lambda rows: [correction for of_rows in made for correction in of_rows(rows)]
