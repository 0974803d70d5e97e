"""From a scene to a sentence, and back from a sentence to what it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .canvas import COLOURS
from .worlds import WORLDS, Scene, World

NOUNS: dict[str, str] = {
    "rigid_body": "ball",
    "elastic": "block",
    "fluid": "drop",
    "compressible_flow": "puff",
    "collision": "puck",
    "phase_change": "block",
    "thermal": "spot",
    "optical": "ring",
}
"""Names of a moving thing in each world."""

CLUES: dict[str, tuple[str, ...]] = {
    "elastic": ("spring", "coil"),
    "phase_change": ("melt", "wax", "ice"),
    "collision": ("collid", "crash", "apart"),
    "rigid_body": ("ball", "bounc"),
    "fluid": ("dye", "ink", "vortex"),
    "compressible_flow": ("smoke", "gas"),
    "thermal": ("heat", "glow", "plate"),
    "optical": ("light", "lamp"),
}
"""Beginnings of words that give a world away, the most telling worlds first."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Content of a prompt, as far as the toy world understands it."""

    world: str | None
    colours: tuple[str, ...]
    direction: str | None


def describe(world: World, scene: Scene, rng: np.random.Generator) -> str:
    """One of the world's phrasings of the scene."""
    noun, colours, words = NOUNS[world.name], scene.colours, scene.words
    things = []
    for index, colour in enumerate(colours):
        size = words.get("size", words.get(f"size{index}"))
        things.append(f"a {size} {colour} {noun}")
    phrasing = world.phrasings[rng.integers(len(world.phrasings))]
    return phrasing.format(things=" and ".join(things), **words)


def understand(prompt: str) -> Request:
    """Reads world, colours (in order of mention) and direction out of free text."""
    text = prompt.lower()
    words = re.findall(r"[a-z]+", text)
    world = next(
        (name for name, clues in CLUES.items() if any(word.startswith(clues) for word in words)), None
    )
    colours = tuple(dict.fromkeys(word for word in words if word in COLOURS))
    directions = ("counterclockwise", "clockwise", "left", "right", "up", "above", "below", "middle")
    return Request(
        world=world, colours=colours, direction=next((word for word in words if word in directions), None)
    )


def vocabulary() -> tuple[str, ...]:
    """Every word any phrasing can hold, sorted: what the toy text encoder knows."""
    words = {"a", "and", "two", *COLOURS, *NOUNS.values(), "small", "large", "thin", "thick"}
    words |= {"left", "right", "up", "above", "below", "clockwise", "counterclockwise", "middle"}
    for world in WORLDS.values():
        for phrasing in world.phrasings:
            words |= set(re.findall(r"[a-z]+", re.sub(r"{.*?}", " ", phrasing.lower())))
    return tuple(sorted(words))
