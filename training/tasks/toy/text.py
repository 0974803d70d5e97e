"""The toy text encoder's training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ....toyworld.canvas import COLOURS
from ....toyworld.prompts import describe
from ....toyworld.text import ToyTextEncoder
from ....toyworld.worlds import WORLDS
from ...console import StopRequest
from .base import StageTask, Texts, run_stage
from .settings import ToyWorldConfig

WORDS = (
    "small",
    "large",
    "thin",
    "thick",
    "left",
    "right",
    "up",
    "above",
    "below",
    "middle",
    "clockwise",
    "counterclockwise",
)
"""Questions that the text encoder learns to answer beside worlds and colours."""


class PromptReader(nn.Module):
    """The text encoder with one linear head on its mean token, which says what the prompt asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ToyTextEncoder()
        self.answers = (*WORLDS, *COLOURS, *WORDS)
        self.head = nn.Linear(self.text.width, len(self.answers))

    def forward(self, prompts: list[str]) -> Tensor:
        tokens, mask = self.text(prompts)
        return self.head(tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


def draw_prompts(count: int, rng: np.random.Generator) -> tuple[list[str], list[set[str]]]:
    """Prompts, and what each asks for: its world, colours, sizes and direction or place."""
    prompts, asked = [], []
    for _ in range(count):
        world = WORLDS[list(WORLDS)[rng.integers(len(WORLDS))]]
        scene = world.draw(rng)
        prompts.append(describe(world, scene, rng))
        asked.append({world.name, *scene.colours, *scene.words.values()})
    return prompts, asked


class ReaderStudent(nn.Module):
    """Reading comprehension: which world, which colours, which of WORDS a prompt asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = PromptReader()

    def forward(self, prompts: Texts, target: Tensor) -> dict[str, Tensor]:
        """Prompts and what each asks for `B answers`, 0 or 1 -> cross-entropy, and the share of right
        answers."""
        logits = self.reader(list(prompts))
        right = ((logits > 0) == (target > 0.5)).float().mean()
        return {"reading": nn.functional.binary_cross_entropy_with_logits(logits, target), "right": right}


class TextTask(StageTask):
    """64 prompts a step."""

    def __init__(self, config: ToyWorldConfig) -> None:
        torch.manual_seed(config.seed + 2)
        super().__init__("text", ReaderStudent(), ("reading", "right"))
        self.seed, self.answers = config.seed, self.module.reader.answers

    def draw(self, number: int, generator: torch.Generator) -> tuple[Texts, Tensor]:
        prompts, asked = draw_prompts(64, np.random.default_rng((self.seed, 3, number)))
        return Texts(prompts), torch.tensor(
            [[float(answer in wanted) for answer in self.answers] for wanted in asked]
        )


def train_text(config: ToyWorldConfig, stop: StopRequest | None = None) -> ToyTextEncoder:
    """The text encoder, frozen. Raises as `run_stage`, and WeightsError where the file to begin from is
    unfit."""
    if config.begin:
        return ToyTextEncoder.load(config.begin / "toy_text.safetensors")
    task = TextTask(config)
    run_stage(task, config, steps=config.text_steps, learning_rate=1e-3, stop=stop)
    return task.module.reader.text.requires_grad_(False)
