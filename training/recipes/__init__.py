"""Recipes: settings of a fine-tune, of MoAlign's first stage or of a reinforcement, with each paper's
numbers, and plans of studies, one JSON file each, read strictly into typed settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar

from ..console import TrainingError
from ..settings import read

FOLDER = Path(__file__).resolve().parent

Config = TypeVar("Config")


Kind = Literal["finetune", "motion-head", "grpo", "study"]
"""The command that a recipe is for."""


def kind_of(name: str) -> Kind:
    """The command that a recipe of the pack is for, by its name."""
    if name.endswith("-stage1"):
        return "motion-head"
    if name.startswith("study-"):
        return "study"
    return "grpo" if "grpo" in name.split("-") else "finetune"


def names(kind: Kind = "finetune") -> list[str]:
    """The recipes that come with the pack for a command."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if kind_of(path.stem) == kind)


def recipe_name(argv: Sequence[str]) -> str | None:
    """The recipe that a command line names, read before the rest: it decides the other defaults, which --help
    then shows."""
    name = None
    for word, following in zip_longest(argv, argv[1:]):
        if word == "--recipe":
            name = following
        elif word.startswith("--recipe="):
            name = word.partition("=")[2]
    return name


def recipe_in(argv: Sequence[str], config: type[Config], kind: Kind = "finetune") -> Config | None:
    """The settings of the recipe that a command line names, which its other words then change. Raises
    TrainingError."""
    name = recipe_name(argv)
    return None if name is None else load_recipe(name, config, kind)


def load_recipe(name: str, config: type[Config], kind: Kind = "finetune") -> Config:
    """A recipe by name, or from a JSON file of one's own, as the dataclass `config`.

    Raises TrainingError for an unknown name, a file that is no JSON, an unknown key, or a value of the wrong
    type.
    """
    known = names(kind)
    path = FOLDER / f"{name}.json" if name in known else Path(name)
    if not path.is_file():
        raise TrainingError(
            f"recipe {name!r} is unknown; choose one of {', '.join(known)}, or give a JSON file."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path.name} is not a readable JSON file ({' '.join(str(error).split())})."
        ) from error
    return read({"recipe": path.stem, **values} if isinstance(values, dict) else values, config, path.name)
