"""What a study is asked for and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .gate import Reading
from .readouts import Measures


@dataclass(kw_only=True)
class StudyConfig:
    """Trains, reads and scores the arms of a plan on the toy world, and says what each did."""

    out: Path = Path("runs/study")
    """Folder of the runs, of the tables and of the pictures."""
    plan: str = "full"
    """A plan that comes with the pack (full, quick), or a JSON file."""
    quick: bool = False
    """The plan "quick": a quarter of an hour on two cores."""
    gate: bool = False
    """Print the gate of every alignment of the plan and stop: nothing is fine-tuned."""
    dry_run: bool = False
    """Print what of the plan is there, and the steps, sampled clips and core hours of the rest, by steps
    timed here in about two minutes; nothing is made."""
    arms: list[str] = field(default_factory=list)
    """The only arms to run, beside the control; left out, all of the plan."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


@dataclass(kw_only=True)
class Results:
    """What a study has found so far."""

    readings: list[Reading] = field(default_factory=list)
    """The gate."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Arms that are not comparable, with the reason."""
    found: dict[str, dict[str, list[Measures]]] = field(default_factory=dict)
    """Measures by regime and arm, one of each training; of "sampled" also the rows that frame it."""
    stopped: bool = False

    def add(self, regime: str, arm: str, measures: Measures) -> None:
        """One more training's measures."""
        self.found.setdefault(regime, {}).setdefault(arm, []).append(measures)
