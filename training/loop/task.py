"""The border between the loop and what it trains: `Task`, `Run`, `Outcome`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainerConfig


class Task:
    """What a run trains: a module whose forward pass gives losses by name, and the micro-batches it is shown."""

    module: nn.Module
    names: tuple[str, ...]
    """Of the losses, the main one first."""
    slow: tuple[str, ...] = ()
    """Prefixes of parameters that train at `projector_rate`."""
    latent_space: str
    about: dict[str, Any]
    """What the checkpoint says of the run; a resumed run must say the same."""
    validation_count: int = 0
    """How many validation micro-batches there are."""

    def weights(self, step: int) -> Mapping[str, float]:
        """Factors of the losses on a step, counted from 0."""
        return dict.fromkeys(self.names, 1.0)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Arguments of the module's forward pass for micro-batch `number` of an endless sequence: tensors, or things with
        `.to(device)`."""
        raise NotImplementedError

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Any, ...]:
        """The same for validation micro-batch `place`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the data."""
        raise NotImplementedError

    def placed(self, device: torch.device) -> None:
        """Called once the module is on its device."""

    def state(self) -> Mapping[str, Tensor]:
        """Tensors beyond the trained parameters that a resumed run needs; they are saved, and written into on resuming."""
        return {}

    def show(self, step: int, folder: Path | None) -> None:
        """Called by every process after each validation, without gradients: a chance to write samples into `folder`.

        Only one process is given a folder.
        """


@dataclass(kw_only=True)
class Outcome:
    """What `train` leaves."""

    step: int
    """Steps done."""
    stopped: bool
    """Whether it was stopped before the end."""
    checkpoint: Path
    """The last checkpoint."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last row of the log."""


@dataclass(kw_only=True)
class Run:
    """The parts of a run."""

    config: TrainerConfig
    task: Task
    out: Path
    """Folder for checkpoints, log.csv and curves.png."""
    accelerator: Any = None
    """accelerate's Accelerator; made where None."""
