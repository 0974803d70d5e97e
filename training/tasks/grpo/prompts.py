"""The prompts of a policy's training, read or drawn."""

from __future__ import annotations

from pathlib import Path

from ...console import TrainingError

EVAL_SEED = 900_000_001
"""Seed of the held-out toy prompts, apart from that of the ones to learn from."""


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
