"""The prompts of a policy's training: read or drawn, and embedded once before anything else is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ....methods.lamo import pool_tokens
from ...backbones import Backbone
from ...console import ProgressLine, TrainingError

PART = 16
"""Prompts that are embedded at once."""
EVAL_SEED = 900_000_001
"""Seed of the held-out toy prompts, apart from that of the ones to learn from."""


@dataclass(kw_only=True)
class Prompts:
    """Prompts with their tokens, without padding."""

    words: list[str]
    tokens: list[Tensor]
    """`L D` each."""

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D`, padded to the longest, and mask `B L`."""
        rows = [self.tokens[index] for index in chosen]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    def pooled(self, chosen: Sequence[int]) -> Tensor:
        """Mean token of each prompt, `B D`."""
        return pool_tokens(*self.batch(chosen))


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises TrainingError where there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is no readable file of prompts ({error}).") from error
    if not (found := [line for line in lines if line]):
        raise TrainingError(f"{path} holds no prompt; write one a line.")
    return found


def prompt_files(prompts: Path, held_out: Path | None) -> tuple[list[str], list[str]]:
    """(prompts to learn from, held-out prompts), of a folder with train.txt and test.txt or of two files.

    Without held-out prompts the second list is empty. Raises TrainingError.
    """
    train = prompts / "train.txt" if prompts.is_dir() else prompts
    test = held_out or (prompts / "test.txt" if prompts.is_dir() else None)
    return read_prompts(train), read_prompts(test) if test is not None and test.exists() else []


def toy_prompts(count: int, seed: int) -> list[str]:
    """Prompts of the toy worlds in turn."""
    import numpy as np

    from ....toyworld.prompts import describe
    from ....toyworld.worlds import WORLDS

    rng, worlds = np.random.default_rng(seed), list(WORLDS.values())
    drawn = [worlds[index % len(worlds)] for index in range(count)]
    return [describe(world, world.draw(rng), rng) for world in drawn]


def embed(backbone: Backbone, words: Sequence[str], progress: ProgressLine) -> Prompts:
    """Every prompt's tokens, on the CPU."""
    kept: list[Tensor] = []
    for start in range(0, len(words), PART):
        tokens, mask = backbone.embed_prompts(words[start : start + PART])
        for row, present in zip(tokens.cpu(), mask.cpu()):
            # An empty prompt has no token: one of zeros, as fine-tuning drops prompts.
            length = int(present.nonzero().max()) + 1 if present.any() else 0
            kept.append(row[:length].clone() if length else torch.zeros_like(row[:1]))
        progress.show(len(kept) / len(words), f"{len(kept)} of {len(words)} prompts embedded")
    return Prompts(words=list(words), tokens=kept)
