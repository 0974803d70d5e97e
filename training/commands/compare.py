"""`latent-physics compare`: fine-tunes the toy model with each objective and prints a table of physics."""

from __future__ import annotations

from ..console import ProgressLine, StopRequest
from ..study.compare import CompareConfig, compare, prompts_of, runs_of, table
from ..tasks.finetune import ERRORS
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            CompareConfig, argv, prog="latent-physics compare", description=CompareConfig.__doc__ or ""
        )
        with StopRequest() as stop:
            results = compare(config, stop, ProgressLine("compare"))
        print(table(results, prompts_of(config)[0]))
        print(
            f"{config.prompts} clips, same prompts and noise in every row, one seed; scores in "
            f"{runs_of(config)}."
        )
        return 130 if len(results) <= len(config.recipes) else 0

    return cli.run_command(command, *ERRORS)
