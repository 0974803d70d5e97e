"""`latent-physics study`: the gate of every objective, then the toy world's study of the arms whose gate is
open."""

from __future__ import annotations

from ..console import ProgressLine, StopRequest
from ..study.cost import describe
from ..study.gate import Limits
from ..study.gate import table as gate_table
from ..study.report import write_report
from ..study.sharing import StopStudy
from ..study.study import Study, StudyConfig
from ..tasks.finetune import ERRORS
from . import cli

NO_GATE = "No arm has an objective with a teacher, so there is no gate to read."


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            StudyConfig, argv, prog="latent-physics study", description=StudyConfig.__doc__ or ""
        )
        with StopRequest() as stop:
            return run(Study(config, stop, ProgressLine("study")), config)

    return cli.run_command(command, *ERRORS)


def run(study: Study, config: StudyConfig) -> int:
    """The costs or the gate alone, or all; prints what was found."""
    if config.dry_run:
        print(describe(study))
        return 0
    if config.gate:
        try:
            readings = study.read_gate()
            print(gate_table(readings, Limits()) if readings else NO_GATE)
        except StopStudy:
            print("Stopped; run the same command to go on.")
            return 130
        for arm, reason in study.results.left_out.items():
            print(f"Not comparable: {arm}: {reason}.")
        return 0
    results = study.go()
    print(write_report(study))
    print(f"\nTables, plots and sheets: {study.out}.")
    if results.stopped:
        print("Stopped; run the same command to go on.")
        return 130
    return 0
