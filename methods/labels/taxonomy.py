"""The eight physical categories of PILA (arXiv 2606.04737, section B.1) and their label vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Category:
    """One physical category: four are materials, four are phenomena."""

    name: str
    group: str
    """"material" or "phenomenon"."""
    criterion: str
    """Definition of the category."""
    cues: str
    """Signs of it in a scene."""


TAXONOMY = (
    Category(
        name="Rigid Body",
        group="material",
        criterion="a body moves as one piece: it translates or rotates and hardly changes shape",
        cues="falling, rolling, sliding, spinning solids",
    ),
    Category(
        name="Elastic",
        group="material",
        criterion="a body changes shape and comes back",
        cues="bouncing, stretching, bending, vibrating",
    ),
    Category(
        name="Fluid",
        group="material",
        criterion="a liquid is carried along and pushed by pressure",
        cues="pouring, splashing, dripping, thick flow",
    ),
    Category(
        name="Compressible Flow",
        group="material",
        criterion="a gas, smoke or jet whose density visibly changes",
        cues="plumes, jets, blasts, fire-like expansion",
    ),
    Category(
        name="Collision",
        group="phenomenon",
        criterion="several bodies meet; impact or contact dominates",
        cues="impacts, stacking, grasping, friction",
    ),
    Category(
        name="Phase Change",
        group="phenomenon",
        criterion="matter changes state because of heat or occupancy",
        cues="melting, freezing, boiling, evaporation",
    ),
    Category(
        name="Thermal",
        group="phenomenon",
        criterion="heat moves or spreads without a dominant change of state",
        cues="heating, cooling, convection, glow",
    ),
    Category(
        name="Optical",
        group="phenomenon",
        criterion="light is reflected, refracted or travels as a wave",
        cues="mirrors, lenses, rainbows, caustics",
    ),
)
CATEGORIES: tuple[str, ...] = tuple(category.name for category in TAXONOMY)
"""Names in the order of the router's outputs."""


def category_index(category: str | int) -> int:
    """The router's index of a category, given by name (case does not matter) or index.

    Raises ValueError for anything else.
    """
    if isinstance(category, int) and not isinstance(category, bool):
        if 0 <= category < len(CATEGORIES):
            return category
        raise ValueError(f"category index is {category}; it must be 0 to {len(CATEGORIES) - 1}.")
    if not isinstance(category, str):
        raise ValueError(f"category is {category!r}; it must be a name or an index.")
    folded = category.strip().casefold()
    for index, name in enumerate(CATEGORIES):
        if name.casefold() == folded:
            return index
    raise ValueError(f"category is {category!r}; it must be one of {', '.join(CATEGORIES)}.")


def label_vector(labels: Mapping[str, float] | Iterable[str | int]) -> Tensor:
    """The multi-hot label prior y of one sample, `8`: weights from a mapping, ones from a list of names.

    Raises ValueError for an unknown name and for a weight outside 0..1.
    """
    weights = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, 1.0)
    vector = torch.zeros(len(CATEGORIES))
    for name, weight in weights.items():
        if not 0.0 <= float(weight) <= 1.0:
            raise ValueError(f"the weight of {name} is {weight}; it must be 0 to 1.")
        vector[category_index(name)] = float(weight)
    return vector


def label_batch(samples: Sequence[Mapping[str, float] | Iterable[str | int]]) -> Tensor:
    """One `label_vector` per sample, `B 8`."""
    return torch.stack([label_vector(sample) for sample in samples])


def random_labels(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random sets of the same size as each sample's labels, `B 8`: the "random label" ablation (Table 11)."""
    scores = torch.rand(labels.shape, generator=generator).to(labels.device)
    order = scores.argsort(dim=1).argsort(dim=1)
    count = (labels > 0).sum(dim=1, keepdim=True)
    return (order < count).to(labels.dtype)
