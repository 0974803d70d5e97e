"""Official scorers: programs in environments of the user's own, named in one TOML, run on views and resumed
after a crash.

    [videophy]
    python = "/envs/videophy/bin/python"     # interpreter of the scorer's own environment
    root = "/src/videophy"                   # clone of its repository
    checkpoint = "/models/videocon_physics"  # its weights
    environment = { CUDA_VISIBLE_DEVICES = "0" }

Nothing of a scorer is imported here, and nothing of it is a dependency of the pack.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .arms import read_toml
from .benchmarks.base import Benchmark, Reading
from .errors import EvaluationError
from .manifest import Manifest, Record
from .plan import Plan
from .views import view_root

RESULTS = "results"


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


def load_scorers(path: str | os.PathLike[str]) -> dict[str, Scorer]:
    """Scorers of a TOML file by benchmark.

    Raises EvaluationError for unknown settings and values of another type.
    """
    kinds = {
        entry.name: dict if entry.name == "environment" else list if entry.name == "dimensions" else str
        for entry in fields(Scorer)
    }
    found = {}
    for name, values in read_toml(path).items():
        if not isinstance(values, Mapping) or "python" not in values:
            raise EvaluationError(
                f'[{name}] in {path} names no interpreter; write python = "/path/to/its/python".'
            )
        for key, value in values.items():
            if key not in kinds or key == "name":
                known = ", ".join(key for key in kinds if key != "name")
                raise EvaluationError(
                    f"[{name}] in {path} has an unknown setting {key!r}; there are {known}."
                )
            if not isinstance(value, kinds[key]):
                raise EvaluationError(
                    f"{key} of [{name}] in {path} is {value!r}, not a {kinds[key].__name__}."
                )
        values = {**values, "dimensions": tuple(values.get("dimensions", ()))}
        found[name] = Scorer(name=name, **values)
    return found


@dataclass(kw_only=True)
class Scoring:
    """One benchmark's clips on their way through its scorer."""

    plan: Plan
    benchmark: Benchmark
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
        return view_root(self.manifest.folder, self.benchmark).resolve()

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


def last_line(log: Path) -> str:
    """Last line of a log that says anything, shortened."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1][:200] if lines else "no output"


def read_json(path: Path) -> Any:
    """A JSON file of a scorer. Raises EvaluationError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read as JSON ({error}).") from error


def merged(readings: Sequence[Reading]) -> Reading:
    """Several readings as one: columns side by side."""
    columns = tuple(column for reading in readings for column in reading.columns)
    joined = Reading(columns=columns)
    for reading in readings:
        joined.clips += reading.clips
        joined.notes += reading.notes
        for key, values in reading.totals.items():
            joined.totals.setdefault(key, {}).update(values)
    return joined
