"""Optimisers by name: of torch, and of three packages where they are installed.

A recipe may come from a stranger, so a name is not a way to run code: it must be a class of one of ALLOWED's
modules, and a torch optimiser.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..console import TrainingError

if TYPE_CHECKING:
    from .config import LoopConfig

ALLOWED: Mapping[str, str] = {
    "torch.optim": "torch",
    "bitsandbytes.optim": "bitsandbytes",
    "torchao.optim": "torchao",
    "prodigyopt": "prodigyopt",
}
"""Module -> package that holds it. Schedule-free ones are not here: they want to be told of every
validation."""
NOT_STEPPED = ("LBFGS", "SparseAdam")
"""torch's own that need a closure, or sparse gradients."""


@dataclass(frozen=True, kw_only=True)
class PackedState:
    """Storage of an optimiser's moments in fewer than 32 bits, with a float32 scale for every block."""

    size: float
    """Bytes of a number."""
    block: int
    """Numbers that share a scale."""

    def bytes_of(self, count: int) -> float:
        """Bytes of both moments of a parameter of `count` numbers; small ones and odd ones stay float32."""
        if count < SMALL or count % self.block:
            return 8.0 * count
        return 2 * (self.size * count + 4 * count / self.block)


SMALL = 4096
"""Numbers below which torchao and bitsandbytes keep a parameter's moments in float32."""
PACKED: Mapping[str, PackedState] = {
    "8bit": PackedState(size=1, block=256),
    "Fp8": PackedState(size=1, block=256),
    "4bit": PackedState(size=0.5, block=128),
}
"""By the ending of the class's name, in torchao and bitsandbytes."""


def packed_state(name: str) -> PackedState | None:
    """Storage of the moments of an Adam of that dotted name, whose package need not be installed; None for
    float32."""
    module, _, last = name.rpartition(".")
    if module not in ("torchao.optim", "bitsandbytes.optim") or "Adam" not in last:
        return None
    return next((state for ending, state in PACKED.items() if last.endswith(ending)), None)


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """The class of a dotted name. Raises TrainingError for another module's, one that is no optimiser, and a
    package that is not installed."""
    module, _, last = name.rpartition(".")
    if module not in ALLOWED or last in NOT_STEPPED:
        raise TrainingError(
            f"optimizer is {name!r}; it must be a class of {', '.join(ALLOWED)}, for example "
            f"torch.optim.Adafactor."
        )
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ImportError as error:
        package = ALLOWED[module]
        raise TrainingError(
            f"optimizer is {name!r}, and {package} is not installed: pip install {package}."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise TrainingError(f"optimizer is {name!r}; {module} has no optimiser of that name.")
    return found


def optimizer_arguments(config: LoopConfig) -> dict[str, Any]:
    """The class's arguments: betas and weight decay where it takes them, then `optimizer_args`. Raises
    TrainingError for a word that is no "key=value" or that the class does not take."""
    taken = inspect.signature(find_optimizer(config.optimizer)).parameters
    found: dict[str, Any] = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
    found = {name: value for name, value in found.items() if name in taken}
    found |= read_words(config.optimizer_args)
    for name in found:
        if name not in taken or name in ("params", "lr"):
            known = ", ".join(name for name in taken if name not in ("self", "params", "lr"))
            raise TrainingError(
                f"optimizer_args has {name!r}, which {config.optimizer} does not take; it takes {known}."
            )
    return found


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """ "key=value" words, values as JSON, lists as tuples. Raises TrainingError."""
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        try:
            value = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            equals = ""
        if not equals:
            raise TrainingError(
                f"optimizer_args has {word!r}; it must be key=value with a number, true, false or a list."
            )
        found[key] = tuple(value) if isinstance(value, list) else value
    return found
