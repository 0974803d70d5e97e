"""Where a run is shown beside its log: TensorBoard's events, and accelerate's trackers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..console import TrainingError
from . import checkpoint
from .config import LoopConfig
from .task import Run

PROJECT = "latent-physics"
"""Project under which trackers keep a run."""
NAME_FILE = "tracker.txt"
"""File in a run's folder with its name there, which a resumed run keeps."""


def check_trackers(config: LoopConfig) -> None:
    """Raises TrainingError for a tracker whose package is not installed."""
    for name in config.log_with:
        if find_spec(name) is None:
            raise TrainingError(
                f"log_with names {name}, which is not installed: pip install {name}, or leave it out."
            )


class Boards:
    """Trackers that show a run's rows elsewhere; none where none is asked for."""

    def __init__(self, run: Run, step: int) -> None:
        """Continues after `step`. Every process makes one; the first one's rows are shown."""
        self.run, self._writer, self._trackers = run, None, []
        if run.out is None:
            return
        if run.config.tensorboard and run.accelerator.is_main_process:
            self._writer = events(run.out, step)
        if run.config.log_with:
            self._trackers = start_trackers(run)

    def add(self, row: Mapping[str, float], step: int) -> None:
        """One row of the log."""
        titled = {title(name): float(value) for name, value in row.items()}
        for name, value in titled.items() if self._writer is not None else ():
            self._writer.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(titled, step=step)

    def close(self) -> None:
        """Ends files and connections."""
        if self._writer is not None:
            self._writer.close()
        for tracker in self._trackers:
            tracker.finish()


def title(name: str) -> str:
    """A column's name there, training's and validation's apart."""
    return f"validation/{name[4:]}" if name.startswith("val_") else f"training/{name}"


def events(folder: Path, step: int) -> Any:
    """TensorBoard's writer, without what a killed run wrote after `step`; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=step + 1 if step else None)


def start_trackers(run: Run) -> list[Any]:
    """accelerate's trackers, begun under the run's name with its settings."""
    name = run_name(run.out, run.accelerator.is_main_process)
    given = {
        "wandb": {"name": name, "id": name, "resume": "allow", "dir": os.fspath(run.out)},
        "trackio": {"name": name, "resume": "allow"},
    }
    config = checkpoint.flat({**run.task.about, "trainer": checkpoint.settings(run)})
    plain = {key: value if is_plain(value) else str(value) for key, value in config.items()}
    wanted = {kind: given[kind] for kind in run.config.log_with}
    run.accelerator.init_trackers(PROJECT, config=plain, init_kwargs=wanted)
    return list(run.accelerator.trackers)


def is_plain(value: Any) -> bool:
    """Whether trackers take a value as a setting."""
    return value is None or isinstance(value, str | bool | int | float)


def run_name(out: Path, main: bool) -> str:
    """The run's name among others in the project: its folder's, and a part that no other run has."""
    path = out / NAME_FILE
    if not path.is_file():
        name = f"{out.name}-{uuid.uuid4().hex[:8]}"
        if not main:
            return name
        path.write_text(name, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
