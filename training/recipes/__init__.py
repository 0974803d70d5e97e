"""Recipes: settings of a fine-tune, or of MoAlign's first stage, with each paper's numbers, one JSON file each, read
strictly into typed settings."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

FOLDER = Path(__file__).resolve().parent

Config = TypeVar("Config")


class RecipeError(ValueError):
    """A recipe cannot be used. The message is one sentence for the user."""


STAGE_ONE = "-stage1"
"""How the names of `latent-physics motion-head`'s recipes end; the others are `latent-physics finetune`'s."""


def names(stage_one: bool = False) -> list[str]:
    """The recipes that come with the pack: for fine-tuning, or for MoAlign's first stage."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem.endswith(STAGE_ONE) == stage_one)


def recipe_in(argv: Sequence[str], config: type[Config], stage_one: bool = False) -> Config | None:
    """The settings of the recipe that a command line names, which its other words then change. Raises RecipeError."""
    for place, word in enumerate(argv):
        if word == "--recipe" and place + 1 < len(argv):
            return load_recipe(argv[place + 1], config, stage_one)
        if word.startswith("--recipe="):
            return load_recipe(word.partition("=")[2], config, stage_one)
    return None


def load_recipe(name: str, config: type[Config], stage_one: bool = False) -> Config:
    """A recipe by name, or from a JSON file of one's own, as the dataclass `config`.

    Raises RecipeError for an unknown name, a file that is no JSON, an unknown key, or a value of the wrong type.
    """
    known = names(stage_one)
    path = FOLDER / f"{name}.json" if name in known else Path(name)
    if not path.is_file():
        raise RecipeError(f"recipe {name!r} is unknown; choose one of {', '.join(known)}, or give a JSON file.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path.name} is not a readable JSON file ({' '.join(str(error).split())}).") from error
    return typed({"recipe": path.stem, **values} if isinstance(values, dict) else values, config, path.name)


def typed(values: Any, config: type[Config], where: str) -> Config:
    """A mapping as a dataclass, nested ones too. Raises RecipeError for unknown keys and wrong types."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} must hold an object with settings, not {type(values).__name__}.")
    hints = typing.get_type_hints(config)
    known = {f.name for f in dataclasses.fields(config)}
    found = {}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where} has the key {key!r}, which is unknown; keys there are {', '.join(sorted(known))}.")
        found[key] = _value(value, hints[key], f"{where}: {key}")
    return config(**found)


def _value(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type of a field."""
    if dataclasses.is_dataclass(hint):
        return typed(value, hint, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _value(value, next(arg for arg in args if arg is not type(None)), where)
    if origin is typing.Literal:
        if value not in args:
            raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, args))}.")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r}; it must be a list.")
        return [_value(item, args[0], where) for item in value]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} is {value!r}; it must be of type {hint.__name__}.")
    return value
