"""What the tests of the evaluation share: small clips, plans, and folders filled without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_physics.evaluation.generate import Options, generate
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.plan import Plan, Prompt, save_plan
from latent_physics.evaluation.sources import Origin
from latent_physics.evaluation.video import write_video


class DrawnSource:
    """Draws clips instead of generating them: a square whose path and colour follow from arm and seed."""

    name = "drawn"

    def __init__(self, *, frames: int = 8, fps: float = 16.0, side: int = 32) -> None:
        self.frames, self.fps, self.side = frames, fps, side
        self.made: list[tuple[str, str, int, int]] = []

    def origin(self, arm: str) -> Origin:
        return Origin(model="drawn", lora=(), corrections=(), graph=f"graph of {arm}")

    def ready(self) -> bool:
        return True

    def make(
        self, job: Any, job_digest: str, attempt: int, target: Path, progress: Callable[[float], None]
    ) -> None:
        film = np.full((self.frames, self.side, self.side, 3), 30, np.uint8)
        for number, frame in enumerate(film):
            x = (job.seed + 2 * number) % (self.side - 8)
            frame[8:16, x : x + 8] = [200, len(job.arm) * 20 % 256, 90]
        write_video(target, film, self.fps)
        self.made.append(job.key)


@pytest.fixture
def drawn() -> type[DrawnSource]:
    """The source of drawn clips."""
    return DrawnSource


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """`make_plan(benchmark, texts or prompts, **settings)`: a plan with the arms plain and lamo."""

    def make(benchmark: str, prompts: list[str] | list[Prompt], **settings: Any) -> Plan:
        made = [Prompt(id=str(n), text=p) if isinstance(p, str) else p for n, p in enumerate(prompts, 1)]
        return Plan(
            **{"benchmark": benchmark, "prompts": tuple(made), "arms": {"plain": {}, "lamo": {}}, **settings}
        )

    return make


@pytest.fixture
def filled(tmp_path: Path) -> Callable[..., Manifest]:
    """`filled(plan, frames=, fps=)`: a folder with all clips of a plan, drawn."""

    def fill(plan: Plan, **settings: Any) -> Manifest:
        save_plan(tmp_path, plan)
        manifest = Manifest(tmp_path, plan.benchmark)
        generate(plan, manifest, [DrawnSource(**settings)], Options())
        return manifest

    return fill
