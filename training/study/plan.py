"""Plan of a study: arms, trainings, regimes, readouts and tests, written down before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from ...toyworld.worlds import WORLDS
from .. import settings
from ..console import TrainingError
from ..objectives import parse
from ..objectives.settings import AlignSettings
from ..recipes import load_recipe
from ..settings import Count, Number, Positive, Share
from ..tasks.finetune import FinetuneConfig
from .corrections import parse as parse_correction

STRICT: dict[str, Any] = {"extra": "forbid"}
"""pydantic's word for refusing unknown keys of the objects in a list."""
SAMPLED = "sampled"
"""Regime of arms that are not trained: the base as it ships, corrected while it samples."""
SEED, CLIPS = "{seed}", "{clips}"
"""Stand for a seed of the plan, and for a folder of clips."""
STAGE1 = "{stage1}"
"""Stands for the file of an arm's first stage in its objectives."""
PLAIN = "plain"
"""Kind of an arm without an objective."""
FIRST_EVALUATED = 1 << 40
"""Least evaluation seed: above every seed that data is drawn from, so that nothing is trained on what
is judged."""
Readout = Literal["alignment", "scene", "clips", "speed"]


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """One row of the tables."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    recipe: str | None = None
    """Toy recipe that it is fine-tuned by, once per seed and regime; left out, it is not trained."""
    objectives: list[str] | None = None
    """Objectives in place of the recipe's."""
    stage1: str | None = None
    """Recipe of MoAlign's first stage, run beforehand on the same clips; "{stage1}" in an objective is its
    file."""
    wrong: Share | None = None
    """Share of its training clips with corrupted dynamics, in place of the regime's."""
    corrections: list[str] = field(default_factory=list)
    """Corrections while it samples, each "lamo key=value ..." or "pila key=value ..."."""
    dit: str | None = None
    """A transformer file in place of the base, of an arm that is not trained: a path, or a file of the plan's
    as "{NAME}"."""
    bound: bool = False
    """An upper bound beside the arms: shown, and no part of the tests."""
    regimes: list[str] = field(default_factory=list)
    """The only regimes that it is trained in; left out, all."""
    against: str | None = None
    """The arm that it is compared with, trained in the same regime or not trained as it is not; left out,
    the control, or the base."""
    cfg: Positive | None = None
    """Guidance scale of its sampled clips, in place of the plan's."""
    worlds: list[str] = field(default_factory=list)
    """The only worlds whose sampled clips count, of an arm that is not trained; left out, all."""
    yardstick: bool = False
    """A row by whose law score, at equal dynamic degree, the arms that are not trained are measured: it
    takes motion away and knows no law. No part of the tests."""

    @property
    def tested(self) -> bool:
        """Whether it is one of the arms that chances are corrected over."""
        return not (self.bound or self.yardstick)


BASE = ArmPlan(name="base")
"""The model as it ships, which arms that are not trained are compared with."""


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """A file that arms need, made by the study before they run: in their corrections or `dit`, "{NAME}"."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    command: Literal["predictor", "pila", "grpo"]
    """Command of `latent-physics` that makes it."""
    arguments: list[str]
    """Its words, beside --out. "{seed}" is a seed of the plan: the file is then made once for each. "{clips}"
    is a folder of drawn clips with the right dynamics."""
    clips: Count = 512
    """Number of those clips."""

    @property
    def word(self) -> str:
        """What stands for it in an arm."""
        return f"{{{self.name}}}"

    @property
    def reads_clips(self) -> bool:
        """Whether it is made from drawn clips."""
        return any(CLIPS in word for word in self.arguments)

    @property
    def by_seed(self) -> bool:
        """Whether every seed has a file of its own."""
        return any(SEED in word for word in self.arguments)


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What every trained arm is given."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    clips: Count
    """Training clips; every seed has its own."""
    steps: Count
    wrong: Share | None = None
    """Share of the clips with corrupted dynamics; left out, the base's own."""
    scratch: bool = False
    """Whether it starts from fresh weights instead of the base's."""
    validate_every: Count = 100
    """Steps between validations, which "speed" reads."""
    readouts: list[Readout] = field(default_factory=lambda: ["alignment", "scene", "clips"])
    """alignment: held-out loss with the projector fitted anew; scene: velocity probes and the error on
    moving tokens; clips: scores of sampled clips; speed: steps to the control's loss."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study."""

    recipe: str = ""
    """Its name."""
    about: str = ""
    arms: list[ArmPlan]
    files: list[FilePlan] = field(default_factory=list)
    """Files that arms need, in the order in which they are made."""
    control: str = "plain"
    """The trained arm that the others are compared with."""
    seeds: list[int]
    """Seeds of the trainings of each arm."""
    regimes: list[Regime]
    tests: list[str]
    """Measures whose chances are corrected over the arms of a regime (Holm)."""
    gate_clips: Count = 32
    readout_clips: Annotated[int, Ge(12)] = 48
    """Clips of the readouts without sampling, of worlds whose things can be followed."""
    sigmas: list[Positive] = field(default_factory=lambda: [0.2, 0.5, 0.8])
    """Noise levels of those readouts."""
    refit_steps: Number = 100
    """Steps of a projector that is fitted anew."""
    prompts: Annotated[int, Ge(2)] = 64
    """Sampled clips of a model, one a prompt, the worlds in turn."""
    sampling_steps: Count = 20
    cfg: Positive = 2.0
    evaluation_seed: Annotated[int, Ge(FIRST_EVALUATED)] = FIRST_EVALUATED
    """Seed of everything that is judged on, and of nothing else."""


def load_plan(name: str) -> Plan:
    """A plan that comes with the pack, by name, or a JSON file. Raises TrainingError where it makes no
    sense."""
    plan = load_recipe(name if name.endswith(".json") else f"study-{name}", Plan, "study")
    check(plan)
    return plan


def check(plan: Plan) -> None:
    """Raises TrainingError for what would only fail during the study."""
    settings.check(plan)
    names = [arm.name for arm in plan.arms]
    if doubled := {name for name in names if names.count(name) > 1 or "/" in name}:
        raise TrainingError(f"the arm {sorted(doubled)[0]!r} needs a name of its own, without a slash.")
    control = next((arm for arm in plan.arms if arm.name == plan.control), None)
    if control is None or control.recipe is None:
        raise TrainingError(f"control is {plan.control!r}; it must be an arm with a recipe.")
    known = [regime.name for regime in plan.regimes]
    for arm in plan.arms:
        check_arm(arm, known)
        check_pair(plan, arm)
    check_files(plan)


def check_pair(plan: Plan, arm: ArmPlan) -> None:
    """Raises TrainingError for an arm whose partner, or whose worlds, are not there."""
    partner = next((other for other in plan.arms if other.name == arm.against), None)
    if arm.against is not None and (partner is None or (partner.recipe is None) != (arm.recipe is None)):
        kind = "trained" if arm.recipe is not None else "that is not trained"
        raise TrainingError(f"the arm {arm.name!r} is against {arm.against!r}; name an arm {kind}.")
    if unknown := [name for name in arm.worlds if name not in WORLDS]:
        raise TrainingError(
            f"the arm {arm.name!r} names the world {unknown[0]!r}; there are {', '.join(WORLDS)}."
        )
    if arm.recipe is not None and (arm.worlds or arm.yardstick):
        raise TrainingError(
            f"the arm {arm.name!r} is trained; worlds and yardstick are for arms that are not."
        )


def check_files(plan: Plan) -> None:
    """Raises TrainingError for a file's name that something else has."""
    words = [file.word for file in plan.files] + [SEED, CLIPS, STAGE1]
    for file in plan.files:
        if words.count(file.word) > 1 or not re.fullmatch(r"[\w-]+", file.name):
            raise TrainingError(
                f"the file {file.name!r} needs a name of its own, of letters, digits, - and _; "
                f"seed, clips and stage1 are taken."
            )


def check_arm(arm: ArmPlan, regimes: list[str]) -> None:
    """Raises TrainingError for an arm that cannot be run."""
    if unknown := set(arm.regimes) - set(regimes):
        raise TrainingError(
            f"the arm {arm.name!r} names the regime {sorted(unknown)[0]!r}; there are {', '.join(regimes)}."
        )
    if arm.recipe is not None and arm.dit is not None:
        raise TrainingError(
            f"the arm {arm.name!r} has a recipe and a dit; it starts from the base: leave one."
        )
    for text in objectives_of(arm):
        parse.parse(text)
    for text in arm.corrections:
        parse_correction(text)
    if arm.recipe is not None:
        check_toy(load_recipe(arm.recipe, FinetuneConfig), arm.recipe)


def check_toy(config: FinetuneConfig, name: str) -> None:
    """Raises TrainingError unless a recipe fine-tunes all of the toy backbone."""
    if (config.backbone, config.tune.mode) != ("toy", "full"):
        what = f"a {config.tune.mode} fine-tune of {config.backbone}"
        raise TrainingError(
            f"recipe {name} is {what}; comparing works on full fine-tunes of the toy backbone."
        )


def objectives_of(arm: ArmPlan) -> list[str]:
    """The objectives that an arm is trained with."""
    if arm.recipe is None:
        return []
    return load_recipe(arm.recipe, FinetuneConfig).objectives if arm.objectives is None else arm.objectives


def alignments(arm: ArmPlan) -> list[str]:
    """Those of its objectives that a teacher is behind, which need a gate."""
    return [text for text in objectives_of(arm) if isinstance(parse.parse(text)[1], AlignSettings)]


def kind_of(texts: Sequence[str]) -> str:
    """Kinds of some objectives, which say what a step costs."""
    return "+".join(sorted(parse.parse(text)[0] for text in texts)) or PLAIN


def takes_part(arm: ArmPlan, regime: Regime) -> bool:
    """Whether an arm is trained in a regime."""
    return arm.recipe is not None and (not arm.regimes or regime.name in arm.regimes)


def chosen(plan: Plan, names: Sequence[str]) -> list[ArmPlan]:
    """The arms of a plan with these names, and the control; all where none is named. Raises TrainingError."""
    known = [arm.name for arm in plan.arms]
    if unknown := set(names) - set(known):
        raise TrainingError(f"arm {sorted(unknown)[0]!r} is unknown; the plan has {', '.join(known)}.")
    return [arm for arm in plan.arms if not names or arm.name in (*names, plan.control)]


def numbered(arm: str, number: int) -> str:
    """Name of an arm's objective, counted from 0."""
    return f"{arm} {number + 1}" if number else arm
