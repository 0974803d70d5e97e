"""Weights that one program keeps in one tensor and the other in several, or in another order of rows.

A native name in a key map may carry a mark: `qkv[0/3]` is the first third of the rows of `qkv`, which
diffusers keeps as a layer of its own; `linear[swapped]` has the two halves of its rows the other way round. A
LoRA's layers are joined too: A of the three one under the other, B as a block diagonal, so that the product
is the three products one under the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .stored import StoredTensor

Value = TypeVar("Value")
Parts = dict[int, Tensor]
"""Tensors by their place among the parts of a joined layer; a LoRA may lack some."""

PART = re.compile(r"\[(?P<place>\d+)/(?P<count>\d+)\]")
SWAPPED = "[swapped]"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class PartsError(ValueError):
    """A joined layer lacks one of its parts. The message names it."""


def without_mark(name: str) -> str:
    """A native name as the file has it."""
    return PART.sub("", name).replace(SWAPPED, "")


def marked(key: str, value: Value, count: int) -> dict[str, Value]:
    """A native tensor as parts under marked names; `count` parts, or 1 for swapped halves. `key` has `{}`
    where the mark goes."""
    if count == 1:
        return {key.format(SWAPPED): swapped(value, key)}
    return {key.format(f"[{place}/{count}]"): part(value, key, place, count) for place in range(count)}


def joined(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state under marked native names -> the tensors of a native file. Raises PartsError where one is not
    whole."""
    groups: dict[str, Parts] = defaultdict(dict)
    counts: dict[str, int] = {}
    out: dict[str, Value] = {}
    for key, value in state.items():
        found = PART.search(key)
        if found is None:
            out[key.replace(SWAPPED, "")] = swapped(value, key) if SWAPPED in key else value
            continue
        name = without_mark(key)
        out[name] = value  # keeps the place
        groups[name][int(found["place"])], counts[name] = value, int(found["count"])
    for name, parts in groups.items():
        out[name] = join(name, parts, counts[name])
    return out


def join(name: str, parts: Parts, count: int) -> Tensor:
    """The tensor of a joined layer."""
    some = next(iter(parts.values()))
    if name.endswith((DOWN, UP)):
        parts = {place: parts.get(place, torch.zeros_like(some)) for place in range(count)}
    if missing := [place for place in range(count) if place not in parts]:
        raise PartsError(f"{name} lacks part {missing[0] + 1} of {count}")
    rows = [parts[place] for place in range(count)]
    return torch.block_diag(*rows) if name.endswith(UP) else torch.cat(rows)


def part(value: Value, name: str, place: int, count: int) -> Value:
    """One of `count` parts of a native tensor."""
    high = value.shape[0] // count
    found = rows_of(value, ((place * high, (place + 1) * high),))
    if name.endswith(UP) and isinstance(found, Tensor):
        wide = value.shape[1] // count
        return found[:, place * wide : (place + 1) * wide]
    return found


def swapped(value: Value, name: str) -> Value:
    """The two halves of a tensor's rows the other way round; what has no rows of the layer's output stays."""
    if name.endswith(DOWN):
        return value
    half = value.shape[0] // 2
    return rows_of(value, ((half, 2 * half), (0, half)))


def rows_of(value: Value, ranges: tuple[tuple[int, int], ...]) -> Value:
    """Ranges of a tensor's rows one under the other; of a tensor that is not read yet, still unread."""
    if isinstance(value, StoredTensor):
        return value.rows(ranges)
    return torch.cat([value[start:stop] for start, stop in ranges])


def without_empty(state: Mapping[str, Value]) -> dict[str, Value]:
    """A LoRA without the parts that were not trained: those whose A is zero."""
    empty = {
        key.removesuffix(DOWN)
        for key, value in state.items()
        if PART.search(key) and key.endswith(DOWN) and isinstance(value, Tensor) and not value.any()
    }
    ends = (DOWN, UP)
    return {
        key: value
        for key, value in state.items()
        if not any(key.endswith(end) and key.removesuffix(end) in empty for end in ends)
    }
