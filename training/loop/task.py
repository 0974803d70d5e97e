"""The border between the loop and what it trains: `Task`, its `Phase`s and `ParameterGroup`s; `Paused`;
`Run`, `Report`, `Outcome`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .config import LoopConfig


class Paused(TrainingError):
    """A task cannot go on, in every process alike, while no step is half done: the loop saves the state
    before the error goes through."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with an optimiser of its own: the moments of another phase's losses mean nothing
    in it."""

    name: str
    steps: int
    constant: bool = False
    """Whether the learning rate stays the same in it, whatever the schedule."""


@dataclass(kw_only=True)
class ParameterGroup:
    """Parameters that learn at one rate in a phase."""

    parameters: list[nn.Parameter]
    learning_rate: float
    """Learning rate before the schedule."""
    starts: int = 0
    """Step of the phase at which they begin to learn; they are frozen before."""
    max_grad_norm: float = 0.0
    """Norm that their gradients are clipped to apart from the other groups'; 0: together with those."""


class Task:
    """Subject of a run: a module whose forward pass gives losses by name, and the micro-batches it is shown.

    Steps are those of the phase that `begin` named last, counted from 0.
    """

    module: nn.Module
    """forward(*draw) -> {name: scalar}: the losses that `weights` names are trained on, all are logged."""
    names: tuple[str, ...]
    """Names of the module's outputs, the main loss first: columns of the log."""
    phases: tuple[Phase, ...] = ()
    """Left out: one phase of `LoopConfig.steps`."""
    latent_space: str
    about: Mapping[str, Any]
    """Facts stored in the checkpoint; those of a resumed run must match."""
    may_change: tuple[str, ...] = ()
    """Keys of `about` and of the settings that a resumed run may have changed."""
    validation_names: tuple[str, ...] = ()
    """Columns that `metrics` gives; left out, val_NAME of every name."""
    validation_count: int = 0
    """Number of validation micro-batches in this phase; `LoopConfig.validation_clips` of them are used."""
    shown: tuple[str, ...] = ()
    """Columns that the progress line shows beside the loss."""
    pictures: Mapping[str, Mapping[str, Sequence[str]]] = {}
    """Curves by file: panel -> columns drawn together. Left out, curves.png with each loss beside its
    validation."""
    shared_draws: bool = False
    """Whether every process draws the same micro-batch and takes its own share of it; otherwise each draws
    its own."""
    whole_batches: bool = False
    """Whether `LoopConfig.batch` counts the clips of all processes together."""
    live_draws: bool = False
    """Whether a draw depends on the weights: it is then made when its step has come, never ahead of it."""
    norm_name: str = "gradient"
    """Column of the gradient's norm."""

    def begin(self, phase: int) -> None:
        """Called before the steps of a phase, on resuming too."""

    def groups(self, config: LoopConfig) -> list[ParameterGroup]:
        """Parameters that learn in this phase; left out, all that require a gradient, at
        `config.learning_rate`."""
        return [
            ParameterGroup(
                parameters=[p for p in self.module.parameters() if p.requires_grad],
                learning_rate=config.learning_rate,
            )
        ]

    def weights(self, step: int) -> Mapping[str, float]:
        """Factors of the losses on a step."""
        return {self.names[0]: 1.0}

    def draw(self, number: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Arguments of the module's forward pass for micro-batch `number` of an endless sequence: tensors, or
        things with
        `.to(device)`. May run in a thread, ahead of its step."""
        raise NotImplementedError

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Any, ...]:
        """The same for validation micro-batch `place`; the module is then in evaluation mode."""
        raise NotImplementedError

    def derive(self, row: dict[str, float]) -> dict[str, float]:
        """A row of the log, means over micro-batches and processes, with what is computed from them."""
        return row

    def metrics(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Metrics of a validation, from the sums of the module's outputs over its `count` micro-batches."""
        return {f"val_{name}": value / count for name, value in sums.items()}

    def score(self, found: Mapping[str, float]) -> float | None:
        """Number that `keep="best"` minimises; None if nothing was measured."""
        return found.get(f"val_{self.names[0]}")

    def fingerprint(self) -> str:
        """A hash of the data."""
        raise NotImplementedError

    def placed(self, accelerator: Any) -> None:
        """Called before the first step with the run's `Accelerator`; the module is on its device
        afterwards."""

    def state(self) -> Mapping[str, Tensor]:
        """Tensors beyond the trained parameters that a resumed run needs; they are saved, and written into on
        resuming."""
        return {}

    def show(self, step: int, folder: Path | None) -> None:
        """Called by every process after each validation, without gradients: a chance to write samples into
        `folder`.

        Only one process is given a folder.
        """

    def write(self, folder: Path, weights: Mapping[str, Tensor], report: Report) -> None:
        """Called by one process after each checkpoint: writes the file that users load, of the `weights` to
        keep."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Progress of a run, for observers and for the files of a task."""

    step: int
    """Steps done so far."""
    fraction: float
    """Share of the run that is done, in [0, 1]: by steps or by the time budget, whichever ends first."""
    seconds: float
    """Training time so far, earlier processes included."""
    row: Mapping[str, float]
    """Row of the log for this step."""
    found: Mapping[str, float]
    """Metrics of the latest validation."""
    kept_step: int
    """Step of the weights that are kept: `step`, or that of the best validation."""
    kept: Mapping[str, float]
    """Metrics of those weights."""

    @property
    def loss(self) -> float:
        """Training loss of this step."""
        return self.row["loss"]


OnStep = Callable[[Report], "bool | None"]


@dataclass(kw_only=True)
class Outcome:
    """Result of `train`."""

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

    config: LoopConfig
    task: Task
    settings: Mapping[str, Any] | None = None
    """The command's own settings, which a resumed run must share; left out, `config`."""
    out: Path | None
    """Folder for checkpoint, log.csv and curves.png; None keeps everything in memory."""
    accelerator: Any = None
    """accelerate's Accelerator, or `processes.OneProcess`; made where None."""
    stepper: Any = None
    """Strategy of the optimiser's step, `stepper.Plain` if None: called with (accelerator, task, optimizer,
    groups, config)."""
    on_step: OnStep | None = None
    """Called after every step; the run ends where it returns False. An exception of it goes through once the
    state is saved."""
