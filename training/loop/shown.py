"""Output of a run: the columns of its log, one line on the screen, its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import checkpoint
from .config import LoopConfig
from .log import Log, draw_curves
from .task import Phase, Task


def log_columns(task: Task, phases: Sequence[Phase], config: LoopConfig) -> list[str]:
    """Columns of log.csv behind "step", each once."""
    found = task.validation_names or [f"val_{name}" for name in task.names]
    columns = ["phase"] * (len(phases) > 1) + ["loss", *task.names, *found, "rate", task.norm_name]
    columns += [f"gradient {name}" for name in task.names] * bool(config.gradient_norms)
    return list(dict.fromkeys([*columns, "seconds"]))


def progress_words(task: Task, phase: Phase, where: str, values: Mapping[str, float]) -> str:
    """The line on the screen: phase, step, loss, and what the task wants seen of the latest values."""
    words = [f"{phase.name} {where}" if phase.name else where, f"loss {values['loss']:.4f}"]
    shown = ((name, values.get(name)) for name in task.shown)
    return " ".join([*words, *(f"{name} {value:.4f}" for name, value in shown if value is not None)])


def draw_run(log: Log, out: Path, task: Task, step: int) -> None:
    """Draws the task's pictures of the log into `out`: its own panels, or losses beside their validation."""
    losses = {name: [name, f"val_{name}"] for name in task.names} | {"gradient": ["gradient"]}
    title = f"{task.about.get('recipe') or task.latent_space}, step {step}"
    for file, panels in (task.pictures or {checkpoint.CURVES: losses}).items():
        draw_curves(log, out / file, panels, title)
