"""`latent-physics compare`: the toy backbone fine-tuned plainly and with each objective, same steps and data;
one table of physics.

Every fine-tune starts from the shipped toy model. A run that was stopped is resumed by the same command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ...toyworld.statistics import paired_difference, standard_error
from ..backbones import Backbone, load_backbone
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.toy import make_toy_clips
from ..data.toy_prompts import toy_prompts
from ..recipes import load_recipe, names
from ..tasks.finetune import FinetuneConfig, finetune
from .kept import base_folder, keep, kept, load_trained
from .plan import check_toy
from .sampling import SCORES, toy_scores

CONTROL, BEFORE = "toy-plain", "before"
"""The rows that others are compared with: fine-tuned without an objective, and not fine-tuned."""


def toy_recipes() -> list[str]:
    """The toy twins, the control first."""
    return sorted(
        (name for name in names() if name.startswith("toy-")), key=lambda name: (name != CONTROL, name)
    )


@dataclass(kw_only=True)
class CompareConfig:
    """Fine-tunes the toy model with each objective and scores what each draws."""

    out: Path = Path("runs/compare")
    """Folder of the runs and of the table."""
    recipes: list[str] = field(default_factory=toy_recipes)
    """Recipes to compare."""
    steps: int | None = None
    """Steps of every fine-tune; left out, the recipes'."""
    clips: int = 512
    """Drawn clips to train on, all with right dynamics."""
    prompts: int = 64
    """Clips to sample and score per model."""
    sampling_steps: int = 20
    """Sampler steps."""
    cfg: float = 2.0
    """Classifier-free guidance while sampling; 1 for none."""
    seed: int = 0
    """Seeds data, training and sampling."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


def compare(
    config: CompareConfig, stop: StopRequest, progress: ProgressLine
) -> dict[str, dict[str, list[float]]]:
    """Runs what is not done yet; returns every clip's scores by model, the clips in the order of
    `prompts_of`. Raises what
    `finetune` raises."""
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    backbone = load_backbone("toy")
    data = config.out / "data"
    make_toy_clips(data, backbone, config.clips, config.seed + 1, progress=progress)
    before = runs_of(config) / f"{BEFORE}.json"
    results = {BEFORE: kept(before, basis(config)) or scored(config, before, backbone, progress)}
    for name in config.recipes:
        settings = recipe_for(config, name, data)
        saved = settings.out / "scores.json"
        found = kept(saved, basis(config))
        if found is None:
            outcome, _ = finetune(settings, stop, ProgressLine(name, progress.stream))
            if outcome.stopped:
                break
            load_trained(backbone, settings.out)
            found = scored(config, saved, backbone, progress)
        results[name] = found
    return results


def check(config: CompareConfig) -> None:
    """Raises TrainingError before the first run for what would only fail after it."""
    if config.prompts < 2:
        raise TrainingError(f"prompts is {config.prompts}; a mean with its error needs at least 2.")
    for name in config.recipes:
        check_toy(load_recipe(name, FinetuneConfig), name)


def recipe_for(config: CompareConfig, name: str, data: Path) -> FinetuneConfig:
    """The recipe with this comparison's data, seed and steps."""
    settings = load_recipe(name, FinetuneConfig)
    trainer = replace(
        settings.trainer, seed=config.seed, steps=config.steps or settings.trainer.steps, tensorboard=False
    )
    return replace(settings, data=data, out=runs_of(config) / name, trainer=trainer, export_dtype="float32")


def scored(
    config: CompareConfig, path: Path, backbone: Backbone, progress: ProgressLine
) -> dict[str, list[float]]:
    """Every clip's scores with the backbone as it is now, also written to `path` with what they depend on."""
    progress.say(f"scoring {path.parent.name if path.stem == 'scores' else path.stem}")
    backbone.dit.eval()
    prompts, worlds = prompts_of(config)
    scores = toy_scores(
        backbone, prompts, worlds, steps=config.sampling_steps, cfg=config.cfg, seed=config.seed + 77
    )
    values = {name: value.tolist() for name, value in scores.items()}
    keep(path, values, basis(config))
    return values


def prompts_of(config: CompareConfig) -> tuple[list[str], list[str]]:
    """Prompts and worlds of the scored clips."""
    return toy_prompts(config.prompts, config.seed + 10_007)


def basis(config: CompareConfig) -> dict[str, Any]:
    """The settings that scores depend on."""
    names = ("steps", "clips", "prompts", "sampling_steps", "cfg", "seed")
    return {name: getattr(config, name) for name in names} | {"scores": list(SCORES)}


def runs_of(config: CompareConfig) -> Path:
    """The folder of the runs."""
    return base_folder(config.out)


def table(results: Mapping[str, Mapping[str, Sequence[float]]], prompts: Sequence[str]) -> str:
    """Markdown: mean and standard error of every score, and the paired difference to `CONTROL` with its 95 %
    interval.

    Errors and intervals count prompts. The model as it was before has no difference; nor has anything where
    the control is missing.
    """
    lines = ["| model | " + " | ".join(f"{name.replace('_', ' ')} | less plain" for name in SCORES) + " |"]
    lines.append("|---" * (1 + 2 * len(SCORES)) + "|")
    for model, values in results.items():
        cells = [model]
        for name in SCORES:
            cells.append(f"{fmean(values[name]):.3f} +- {standard_error(values[name], prompts):.3f}")
            paired = CONTROL in results and model not in (CONTROL, BEFORE)
            cells.append(
                str(paired_difference(values[name], results[CONTROL][name], prompts)) if paired else ""
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
