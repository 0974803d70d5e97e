"""Clips on their way through an official scorer: its layout, its installation, how it is called."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .errors import EvaluationError
from .files import last_line
from .manifest import Manifest, Record
from .plan import Plan, Prompt

RESULTS, VIEWS = "results", "views"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where a clip lies in a benchmark's layout."""

    folder: str
    """Relative to the benchmark's views."""
    name: str
    """File name."""
    frames: int = 0
    """Number of frames that the clip is cut to; 0 keeps all."""


class Layout(Protocol):
    """The part of a benchmark that scoring needs."""

    name: str
    title: str

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        """Where a clip lies."""
        ...


def view_root(folder: Path, benchmark: str) -> Path:
    """Where a benchmark's layout lies."""
    return folder / VIEWS / benchmark


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Where one scorer is installed."""

    name: str
    python: str
    """Interpreter of its environment."""
    root: str = ""
    """Clone of its repository."""
    checkpoint: str = ""
    """Its weights."""
    data: str = ""
    """The benchmark's own data, where it has any: the folder that holds physics-IQ-benchmark-verified."""
    device: str = "cuda"
    """Device that it computes on."""
    dimensions: tuple[str, ...] = ()
    """Dimensions to score; empty for all that the plan has clips for."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables."""

    def place(self, setting: str, *below: str) -> Path:
        """The path that a setting states, or one below it.

        Raises EvaluationError if it is not stated or does not exist.
        """
        text = getattr(self, setting)
        if not text:
            raise EvaluationError(f"[{self.name}] in the scorers' TOML states no `{setting}`.")
        path = Path(text, *below)
        if not path.exists():
            raise EvaluationError(
                f"{path} does not exist; check `{setting}` of [{self.name}] in the scorers' TOML."
            )
        return path


@dataclass(kw_only=True)
class Scoring:
    """One benchmark's clips on their way through its scorer."""

    plan: Plan
    benchmark: Layout
    manifest: Manifest
    scorer: Scorer | None = None
    say: Callable[[str], None] = lambda text: None
    arms: Sequence[str] = ()
    """Arms to score; empty for all."""

    @property
    def records(self) -> list[Record]:
        """Clips of the arms."""
        chosen = self.arms or self.plan.all_arms()
        return [record for record in self.manifest.records.values() if record.arm in chosen]

    @property
    def views(self) -> Path:
        """Root of the layout."""
        return view_root(self.manifest.folder, self.benchmark.name).resolve()

    @property
    def results(self) -> Path:
        """Where results lie: never inside a scored folder."""
        folder = (self.manifest.folder / RESULTS / self.benchmark.name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def runs(self) -> dict[tuple[str, int], list[Record]]:
        """Clips by arm and run."""
        found: dict[tuple[str, int], list[Record]] = {}
        for record in self.records:
            found.setdefault((record.arm, record.run), []).append(record)
        return found

    def clip(self, record: Record) -> Path:
        """A record's file in the layout. Raises EvaluationError if it was not laid out."""
        spot = self.benchmark.spot(
            self.plan, record.arm, self.plan.prompt(record.prompt_id), record.run, record.index
        )
        path = self.views / spot.folder / spot.name
        if not path.is_file():
            raise EvaluationError(f"{path} does not exist: run `latent-physics evaluate layout` first.")
        return path

    def installed(self) -> Scorer:
        """The scorer. Raises EvaluationError if none is configured or its interpreter is gone."""
        if self.scorer is None:
            raise EvaluationError(
                f"no scorer for {self.benchmark.name} is configured: add [{self.benchmark.name}] to the TOML."
            )
        if not Path(self.scorer.python).is_file():
            raise EvaluationError(
                f"the interpreter {self.scorer.python} of [{self.benchmark.name}] does not exist."
            )
        return self.scorer

    def call(self, label: str, arguments: Sequence[str | Path], log: Path, cwd: Path | None = None) -> None:
        """Runs the scorer's interpreter on `arguments`, output into `log`.

        Raises EvaluationError with its last line if it fails.
        """
        scorer = self.installed()
        self.say(label)
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **scorer.environment, "PYTHONUNBUFFERED": "1"}
        env.pop("PYTHONPATH", None) if "PYTHONPATH" not in scorer.environment else None
        with log.open("ab") as file:
            try:
                status = subprocess.call(
                    [scorer.python, *map(str, arguments)],
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            except OSError as error:
                raise EvaluationError(f"{scorer.python} cannot be started ({error}).") from error
        if status:
            raise EvaluationError(
                f"{label}: the scorer ended with status {status} ({last_line(log)}); see {log}, then run the"
                " same command to resume."
            )
