"""The toy text encoder's training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ....toyworld.canvas import COLOURS
from ....toyworld.prompts import describe
from ....toyworld.text import ToyTextEncoder
from ....toyworld.worlds import WORLDS
from .base import run_steps
from .settings import ToyWorldConfig

WORDS = ("small", "large", "thin", "thick", "left", "right", "up", "above", "below", "middle", "clockwise", "counterclockwise")
"""What the text encoder learns to tell beside worlds and colours."""


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


def train_text(config: ToyWorldConfig) -> ToyTextEncoder:
    """Reading comprehension: which world, which colours, which words of WORDS a prompt asks for."""
    torch.manual_seed(config.seed + 2)
    reader = PromptReader().train()

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        prompts, asked = draw_prompts(64, np.random.default_rng((config.seed, 3, step)))
        target = torch.tensor([[float(answer in wanted) for answer in reader.answers] for wanted in asked])
        logits = reader(prompts)
        right = ((logits > 0) == (target > 0.5)).float().mean().item()
        return nn.functional.binary_cross_entropy_with_logits(logits, target), {"right": right}

    run_steps("text", config, config.text_steps, 1e-3, reader, None, step_loss)
    return reader.text.eval().requires_grad_(False)
