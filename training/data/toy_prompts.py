"""Prompts of the toy world, drawn."""

from __future__ import annotations

from collections.abc import Sequence


def toy_prompts(count: int, seed: int, worlds: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """(prompts, name of each one's world), the worlds in turn; all of them where none is named."""
    import numpy as np

    from ...toyworld.prompts import describe
    from ...toyworld.worlds import WORLDS

    rng, turn = np.random.default_rng(seed), list(worlds) or list(WORLDS)
    names = [turn[index % len(turn)] for index in range(count)]
    return [describe(WORLDS[name], WORLDS[name].draw(rng), rng) for name in names], names
