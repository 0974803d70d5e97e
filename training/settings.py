"""One way for settings: limits stand in a field's annotation, and pydantic reads recipes, objectives' words
and command lines.

steps: Annotated[int, Ge(1)] = 2000
\"\"\"Optimiser steps.\"\"\"
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from .console import TrainingError
from .renamed import current_name, current_names, note

if TYPE_CHECKING:
    from pydantic import ValidationError

Config = TypeVar("Config")

Count = Annotated[int, Ge(1)]
"""At least one."""
Number = Annotated[int, Ge(0)]
"""A count that may be none."""
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1."""
Decay = Annotated[float, Ge(0), Lt(1)]
"""From 0, and below 1."""

RULES = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "literal_error": "one of {expected}",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "path_type": "a path",
    "dataclass_type": "an object with settings",
    "dict_type": "an object with settings",
    "unexpected_keyword_argument": "left out: there is no such setting",
}
"""Rules behind pydantic's errors, in our words; its numbers fill the braces."""
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "finite": "a finite number"}
"""The same for the errors whose names begin with a type."""


def check(config: Any, name: Callable[[str], str] = str) -> None:
    """Raises TrainingError for the first setting of a dataclass, nested ones too, that its annotation does
    not allow.

    name: words for a setting, by its field's name.
    """
    _read(type(config), dataclasses.asdict(config), name)


def read(values: Mapping[str, Any], config: type[Config], where: str) -> Config:
    """A JSON object as the dataclass `config`, nested ones too, each value strictly of its field's type.
    Former names of settings are read with a note.

    Raises TrainingError, which begins with `where`, for a key that is unknown and a value that does not fit.
    """
    if isinstance(values, Mapping):
        values = _renamed(values, config, where)
    return _read(config, values, lambda name: f"{where}: {name}", where=where, strict=True)


def from_words(words: Mapping[str, str], config: type[Config], name: Callable[[str], str]) -> Config:
    """Words as the dataclass `config`; "none" is None. Raises TrainingError as `check`, and for a word of the
    wrong type."""
    return _read(config, {key: None if word == "none" else word for key, word in words.items()}, name)


def kind_and_settings(text: str, kinds: Mapping[str, type[Config]], noun: str) -> tuple[str, Config]:
    """Reads "kind key=value ..." as a kind and its settings.

    noun: the word for a kind ("objective"). Raises TrainingError for an unknown kind or key, or a value of
    the wrong type.
    """
    kind, *pairs = text.split() or [""]
    if kind not in kinds:
        raise TrainingError(f"{noun} {kind!r} is unknown; choose one of {', '.join(kinds)}.")
    known = [field.name for field in dataclasses.fields(kinds[kind])]
    words: dict[str, str] = {}
    for pair in pairs:
        key, equals, word = pair.partition("=")
        if not equals or key not in known:
            raise TrainingError(f"{pair!r} is not a setting of the {noun} {kind}; it has {', '.join(known)}.")
        words[key] = word
    return kind, from_words(words, kinds[kind], lambda name: f"{name} of the {noun} {kind}")


def _read(
    config: type[Config], values: Any, name: Callable[[str], str], where: str = "", strict: bool = False
) -> Config:
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(values, Mapping):
        raise TrainingError(f"{where} must hold an object with settings, not {type(values).__name__}.")
    _know_every_key(config, values, where)
    adapter = TypeAdapter(config)
    try:
        return (
            adapter.validate_json(json.dumps(values), strict=True)
            if strict
            else adapter.validate_python(values)
        )
    except ValidationError as error:
        raise TrainingError(sentence(error, name)) from None


def nested(field: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a field that holds settings of its own."""
    made = field.default_factory
    if made is dataclasses.MISSING or isinstance(made, type):
        return made if dataclasses.is_dataclass(made) else None
    return type(made()) if dataclasses.is_dataclass(made()) else None


def names(config: type) -> set[str]:
    """Names of a dataclass's fields, of nested ones too."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        found |= {field.name} | (names(inner) if (inner := nested(field)) else set())
    return found


def _renamed(values: Mapping[str, Any], config: type, where: str) -> dict[str, Any]:
    """`values`, nested ones too, under the names of now; says each former name."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in values:
        if (new := current_name(key, fields)) != key:
            note(f"{where}: {key}", new)
    found = current_names(values, fields)
    for key, value in found.items():
        if isinstance(value, Mapping) and key in fields and (inner := nested(fields[key])):
            found[key] = _renamed(value, inner, f"{where}: {key}")
    return found


def _know_every_key(config: type, values: Mapping[str, Any], where: str) -> None:
    """Raises TrainingError for a key that is no field."""
    known = {field.name: field for field in dataclasses.fields(config)}
    for key, value in values.items():
        if key not in known:
            raise TrainingError(
                f"{where} has the key {key!r}, which is unknown; keys there are {', '.join(sorted(known))}."
            )
        inner = nested(known[key])
        if isinstance(value, Mapping) and inner:
            _know_every_key(inner, value, f"{where}: {key}")


def sentence(error: ValidationError, name: Callable[[str], str]) -> str:
    """pydantic's first error as value, rule."""
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if isinstance(part, str)]
    context, kind = first.get("ctx", {}), first["type"]
    if kind in RULES:
        rule = RULES[kind].format(**context)
    else:
        rule = KINDS.get(kind.split("_")[0], first["msg"])
    return f"{name(path[-1] if path else '')} is {first['input']!r}; it must be {rule}."
