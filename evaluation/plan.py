"""The plan: which clips an evaluation consists of.

It is written once and never changes, so that every stop can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..methods.weights import write_atomically
from .errors import EvaluationError
from .manifest import digest

FILE = "plan.json"
PLAIN = "plain"
"""The arm that others are compared with."""
STATIC, SHUFFLED = "static", "shuffled"
"""Baselines made from the plain arm's clips: the first frame repeated, and all frames in random order."""
BASELINES = (STATIC, SHUFFLED)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a benchmark."""

    id: str
    """The benchmark's own number or name."""
    text: str
    """The benchmark's words; file names are made of them."""
    used: str = ""
    """The words given to the model; empty for `text`."""
    groups: tuple[str, ...] = ()
    """Dimensions, categories or states of matter."""
    image: str = ""
    """First frame of image-to-video benchmarks: path of the picture."""
    samples: int = 1
    """Clips per run."""
    rules: tuple[str, ...] = ()
    """Physical rules of VideoPhy-2's third task."""

    @property
    def words(self) -> str:
        """The prompt given to the model."""
        return self.used or self.text


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip of the plan."""

    arm: str
    prompt: Prompt
    run: int
    index: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Identity of the clip, as in the manifest."""
        return self.arm, self.prompt.id, self.run, self.index


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Clips to generate: prompts x runs x samples x arms."""

    benchmark: str
    """Name of the benchmark."""
    prompts: tuple[Prompt, ...]
    """In the benchmark's order."""
    arms: Mapping[str, Mapping[str, Any]]
    """Overrides of the graph (or of the pipeline's call) by arm; the first arm is compared with the others.
    """
    runs: int = 1
    """Repetitions of the whole benchmark, each with its own seeds."""
    seed: int = 0
    """All seeds follow from it."""
    graph: Mapping[str, Any] = field(default_factory=dict)
    """API-format graph; empty for a diffusers pipeline."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Places of prompt, seed, image and output in the graph."""
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """Source and call of a diffusers pipeline; empty for a graph."""
    label: str = "model"
    """Name of the model in file names and tables."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The benchmark's own settings: prompt style, mode."""
    baselines: bool = True
    """Whether clips of the static and shuffled baselines are made from the first arm."""

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return next(iter(self.arms))

    def jobs(self) -> Iterator[Job]:
        """Every clip that a model has to generate: run by run, so that an early stop leaves whole runs."""
        for run in range(1, self.runs + 1):
            for prompt in self.prompts:
                for index in range(prompt.samples):
                    for arm in self.arms:
                        yield Job(
                            arm=arm,
                            prompt=prompt,
                            run=run,
                            index=index,
                            seed=self.seed_of(prompt, run, index),
                        )

    def all_arms(self) -> list[str]:
        """Arms and baselines."""
        return [*self.arms, *(BASELINES if self.baselines else ())]

    def seed_of(self, prompt: Prompt, run: int, index: int) -> int:
        """A seed below 2^32 of prompt, run and sample: the same in every arm, another for every clip of an
        arm.
        """
        text = f"{self.seed}/{prompt.id}/{run}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")

    def prompt(self, prompt_id: str) -> Prompt:
        """The prompt of an id."""
        return self._by_id[prompt_id]

    @cached_property
    def _by_id(self) -> dict[str, Prompt]:
        return {prompt.id: prompt for prompt in self.prompts}

    def digest(self) -> str:
        """Identity of the plan."""
        return digest(asdict(self), list(self.arms))


def check_plan(plan: Plan) -> None:
    """Raises EvaluationError for a plan that cannot be carried out."""
    if not plan.prompts:
        raise EvaluationError("the plan holds no prompt; give the benchmark's prompt file.")
    if plan.runs < 1:
        raise EvaluationError(f"runs is {plan.runs}; at least one is needed.")
    if not plan.arms:
        raise EvaluationError("the plan holds no arm; leave --arms out for the graph as it is.")
    taken = [arm for arm in plan.arms if arm in BASELINES]
    if taken and plan.baselines:
        raise EvaluationError(f"the arm {taken[0]!r} has a baseline's name; call it something else.")
    for arm in [*plan.arms, plan.label]:
        if not arm or not all(letter.isalnum() or letter in "-_.+" for letter in arm) or arm.startswith("."):
            raise EvaluationError(
                f"{arm!r} cannot be part of a folder's name; use letters, digits, - _ . and + only."
            )
    repeated = duplicates([prompt.id for prompt in plan.prompts])
    if repeated:
        raise EvaluationError(f"prompt {repeated[0]!r} is listed twice in the benchmark's prompt file.")
    lacking = next(
        (prompt for prompt in plan.prompts if prompt.image and not Path(prompt.image).is_file()), None
    )
    if lacking is not None:
        raise EvaluationError(
            f"prompt {lacking.id} has no first frame at {lacking.image}: download the benchmark's data."
        )


def duplicates(names: Sequence[str]) -> list[str]:
    """Entries that occur more than once, each once, in order."""
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))


def save_plan(folder: str | os.PathLike[str], plan: Plan) -> None:
    """Writes plan.json. Raises EvaluationError if the folder holds another plan, OSError."""
    folder = Path(folder)
    path = folder / FILE
    if path.exists() and load_plan(folder).digest() != plan.digest():
        raise EvaluationError(
            f"{folder} holds another plan; its clips would mix with these: use another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(plan), indent=1, ensure_ascii=False).encode())


def load_plan(folder: str | os.PathLike[str]) -> Plan:
    """Reads plan.json. Raises EvaluationError if there is none or it cannot be read."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple(_prompt(entry) for entry in values.pop("prompts"))
        return Plan(**values, prompts=prompts)
    except FileNotFoundError as error:
        raise EvaluationError(f"{folder} holds no plan; run `latent-physics evaluate plan` first.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path} is no plan of an evaluation ({error!r:.80}).") from error


def _prompt(values: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**values, "groups": tuple(values["groups"]), "rules": tuple(values["rules"])})
