"""`latent-physics study`: the gate of every objective, then the toy comparison of those whose gate is
open."""

from __future__ import annotations

from ..console import ProgressLine, StopRequest
from ..study.compare import prompts_of, runs_of, table
from ..study.gate import GateError, Limits
from ..study.gate import table as gate_table
from ..study.study import StudyConfig, gate, study
from ..tasks.finetune import ERRORS
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            StudyConfig, argv, prog="latent-physics study", description=StudyConfig.__doc__ or ""
        )
        progress = ProgressLine("study")
        readings = gate(config, progress)
        print(gate_table(readings, Limits()))
        if config.gate:
            return 0
        with StopRequest() as stop:
            results = study(config, readings, stop, progress)
        print(table(results, prompts_of(config)[0]))
        print(
            f"{config.prompts} clips, same prompts and noise in every row, one seed; scores in "
            f"{runs_of(config)}."
        )
        return 130 if len(results) <= len(config.recipes) else 0

    return cli.run_command(command, GateError, *ERRORS)
