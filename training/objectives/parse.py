"""Objectives: what may be added to the denoising loss. Each says what it needs and turns it into one number.

A recipe names objectives as words, the kind first:

    drift weight=0.4 lag=2
    mtsa weight=0.5 block=18 teacher=videomae temperature=0.1 keep=0.2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import nn

from ...encoders import DEFAULT_SOURCE
from ...encoders.need import TeacherNeed
from ...methods.weights import WeightsError, read_info
from ..console import TrainingError
from ..settings import kind_and_settings
from .align import teacher_need
from .base import Objective
from .settings import AlignSettings, Settings


def found_here() -> Iterator[type[Objective]]:
    """Every class with a `kind` in the files of this folder."""
    for file in iter_modules(import_module(__package__).__path__):
        if file.name != Path(__file__).stem:
            module = import_module(f".{file.name}", __package__)
            classes = (value for value in vars(module).values() if isinstance(value, type))
            yield from (found for found in classes if issubclass(found, Objective) and "kind" in vars(found))


KINDS: dict[str, tuple[type[Settings], type[Objective]]] = {
    objective.kind: (objective.settings_type, objective)
    for objective in sorted(found_here(), key=lambda objective: objective.kind)
}
"""Kind -> settings and objective."""


def parse(text: str) -> tuple[str, Settings]:
    """Reads "kind key=value ...". Raises TrainingError for an unknown kind or key, or a value of the wrong
    type."""
    return kind_and_settings(text, {kind: made for kind, (made, _) in KINDS.items()}, "objective")


TAUGHT_BY_DEFAULT = {
    "videomae, default": "videomae, MCG-NJU/videomae-base",
    "vjepa2, default": f"vjepa2, {DEFAULT_SOURCE['vjepa2']}",
}
"""The usual weights by older motion heads' names for them."""


def check_files(kind: str, settings: Settings) -> None:
    """Raises TrainingError where the motion head that an objective names is missing, something else, or
    another teacher's."""
    path = getattr(settings, "motion_head", None)
    if path is None:
        return
    try:
        info = read_info(path)
    except WeightsError as error:
        raise TrainingError(f"{error} Make it with: latent-physics motion-head.") from error
    check(
        info.kind == "motion_head",
        kind,
        "motion_head",
        path,
        f"a motion head's file, and this one holds a {info.kind}",
    )
    teacher = TeacherNeed(name=settings.teacher, source=settings.source).key
    taught = TAUGHT_BY_DEFAULT.get(str(info.config.get("teacher")), str(info.config.get("teacher")))
    # Files may have moved between the stages: their names are compared, not their folders.
    same = [key.partition(", ")[0] + Path(key.partition(", ")[2]).name for key in (teacher, taught)]
    check(same[0] == same[1], kind, "teacher", teacher, f"{taught!r}, with which the motion head was trained")


def counted_from_one(about: Mapping[str, Any]) -> list[str]:
    """The objectives that a checkpoint names, their blocks counted from 1: older ones counted from 0, and do
    not say so."""
    if about.get("blocks_from") == 1:
        return list(about["objectives"])
    texts = []
    for text in about["objectives"]:
        kind, *pairs = text.split()
        if kind in KINDS and issubclass(KINDS[kind][0], AlignSettings):
            values = dict(pair.split("=", 1) for pair in pairs)
            values["block"] = str(int(values.get("block", AlignSettings.block)) + 1)
            pairs = [f"{key}={value}" for key, value in values.items()]
        texts.append(" ".join([kind, *pairs]))
    return texts


def needed_teachers(texts: Sequence[str]) -> list[TeacherNeed]:
    """The teachers' features that the objectives want, each once."""
    found: dict[str, TeacherNeed] = {}
    for _, settings in map(parse, texts):
        if isinstance(settings, AlignSettings):
            need = teacher_need(settings)
            found[need.key] = need
    return list(found.values())


def build(texts: Sequence[str], *, width: int, blocks: int, channels: Mapping[str, int]) -> nn.ModuleDict:
    """Objectives by name (the kind, numbered where it occurs twice).

    width: of the backbone's tokens; blocks: how many it has; channels: the teachers' widths by
    `TeacherNeed.key`. Raises TrainingError.
    """
    built = nn.ModuleDict()
    for text in texts:
        kind, settings = parse(text)
        name = kind if kind not in built else f"{kind}_{sum(key.startswith(kind) for key in built) + 1}"
        sizes: dict[str, int] = {}
        if isinstance(settings, AlignSettings):
            check(
                1 <= settings.block <= blocks, kind, "block", settings.block, f"1 to {blocks} for this model"
            )
            sizes = {"width": width, "channels": channels[teacher_need(settings).key]}
        built[name] = KINDS[kind][1](settings, **sizes)
    return built


def check(condition: bool, kind: str, key: str, value: Any, fits: str) -> None:
    """Raises TrainingError unless `condition`."""
    if not condition:
        raise TrainingError(f"{key} of the objective {kind} is {value!r}; it must be {fits}.")
