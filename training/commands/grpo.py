"""`latent-physics grpo`: reinforces a video model by rewards (GRPO or DiffusionNFT)."""

from __future__ import annotations

import os

from ..console import StopRequest, TrainingError
from ..recipes import names, recipe_in
from ..tasks.grpo.run import ERRORS, grpo
from ..tasks.grpo.settings import GrpoConfig
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            GrpoConfig,
            argv,
            prog="latent-physics grpo",
            description=f"{GrpoConfig.__doc__} Recipes: {', '.join(names('grpo'))}.",
            defaults=vars(recipe_in(argv, GrpoConfig, "grpo") or GrpoConfig()),
        )
        with StopRequest() as stop:
            outcome, path = grpo(config, stop)
        if outcome.stopped:
            print(
                f"Stopped after step {outcome.step} of {config.trainer.steps}; run the same command to "
                "resume."
            )
            return 130
        print(f"Done: {outcome.step} steps in {config.out}." + (f" For ComfyUI: {path}" if path else ""))
        return 0

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return cli.run_command(command, TrainingError, *ERRORS)
