"""`latent-physics evaluate`: public physics benchmarks, from a ComfyUI graph or a diffusers pipeline to one
table.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from ...evaluation import actions
from ...evaluation.errors import EvaluationError
from ..console import ProgressLine, StopRequest
from . import cli

PROG = "latent-physics evaluate"


class Pace:
    """Shows a share on a progress line; the time left counts from this call's own start, not from a resumed
    share."""

    def __init__(self, line: ProgressLine) -> None:
        self.line, self.first, self.begin = line, -1.0, time.monotonic()

    def __call__(self, share: float, text: str) -> None:
        if self.first < 0:
            self.first = share
        done = share - self.first
        spent = time.monotonic() - self.begin
        self.line.show(share, text, spent * (1 - share) / done if done > 0 else math.inf)


def plan(config: actions.PlanConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints what the plan amounts to."""
    _, sentences = actions.make_plan(config)
    print("\n".join(sentences))
    return 0


def generate(config: actions.GenerateConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints what was made, and what was given up."""
    outcome = actions.generate_clips(config, Pace(line), lambda: stop.asked)
    line.close()
    if outcome.stopped:
        print("stopped; run the same command to resume.")
        return 130
    print(
        f"{outcome.made} clips made, {len(outcome.failed)} given up; all are listed in"
        f" {config.out}/manifest.jsonl."
    )
    for clip, reason in outcome.failed.items():
        print(f"given up: {clip}: {reason}")
    return 1 if outcome.failed else 0


def layout(config: actions.LayoutConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints the folders."""
    for folder, count in actions.lay_out(config).items():
        print(f"{folder}: {count} clips")
    return 0


def score(config: actions.ScoreConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints what the scorer works on."""
    actions.score_clips(config, line.say)
    return 0


def measure(config: actions.MeasureConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Shows progress."""
    actions.measure_clips(config, Pace(line), lambda: stop.asked)
    line.close()
    return 130 if stop.asked else 0


def table(config: actions.TableConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints the table; fails if a claim was asked for that no interval supports."""
    text, supported = actions.table_of(config)
    print(text)
    return 0 if supported else 1


def doctor(config: actions.DoctorConfig, stop: StopRequest, line: ProgressLine) -> int:
    """Prints a line per scorer; fails unless all configured ones are usable."""
    text, fine = actions.examine(config)
    print(text)
    return 0 if fine else 1


def run(config: actions.RunConfig, stop: StopRequest, line: ProgressLine) -> int:
    """One step after the other; stops at the first that fails."""
    status = generate(config, stop, line) or layout(actions.LayoutConfig(out=config.out), stop, line)
    settings = {"raft": config.raft, "world_model": config.world_model, "device": config.device}
    status = status or measure(actions.MeasureConfig(out=config.out, **settings), stop, line)
    if config.scorers is not None:
        status = status or score(actions.ScoreConfig(out=config.out, scorers=config.scorers), stop, line)
    return status or table(actions.TableConfig(out=config.out), stop, line)


ACTIONS: dict[str, tuple[type, Callable[..., int]]] = {
    "plan": (actions.PlanConfig, plan),
    "generate": (actions.GenerateConfig, generate),
    "layout": (actions.LayoutConfig, layout),
    "score": (actions.ScoreConfig, score),
    "measure": (actions.MeasureConfig, measure),
    "table": (actions.TableConfig, table),
    "run": (actions.RunConfig, run),
    "doctor": (actions.DoctorConfig, doctor),
}


def usage() -> str:
    """The actions, a line each."""
    lines = [
        f"  {name:<9} {' '.join((config.__doc__ or '').split())}" for name, (config, _) in ACTIONS.items()
    ]
    head = f"usage: {PROG} ACTION [options]\n\nactions:\n"
    return head + "\n".join(lines) + f"\n\n{PROG} ACTION --help lists options."


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""
    if not argv or argv[0] not in ACTIONS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    config_type, action = ACTIONS[argv[0]]

    def command() -> int:
        prog = f"{PROG} {argv[0]}"
        config = cli.parse(config_type, argv[1:], prog=prog, description=config_type.__doc__ or "")
        with StopRequest() as stop:
            return action(config, stop, ProgressLine(argv[0]))

    return cli.run_command(command, EvaluationError)
