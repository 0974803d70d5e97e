"""`latent-physics finetune`: fine-tunes a video model with any weighted set of physics objectives."""

from __future__ import annotations

import os

from ..console import StopRequest
from ..recipes import names, recipe_in
from ..tasks.experts import finetune_experts
from ..tasks.finetune import ERRORS, FinetuneConfig, finetune
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            FinetuneConfig,
            argv,
            prog="latent-physics finetune",
            description=f"{FinetuneConfig.__doc__} Recipes: {', '.join(names())}.",
            defaults=vars(recipe_in(argv, FinetuneConfig) or FinetuneConfig()),
        )
        with StopRequest() as stop:
            outcome, path = (finetune_experts if config.dit_low else finetune)(config, stop)
        if outcome.stopped and outcome.step == 0:
            print("Stopped before the training; run the same command to resume.")
            return 130
        if outcome.stopped:
            print(
                f"Stopped after step {outcome.step} of {config.trainer.steps}; run the same "
                f"command to resume."
            )
            return 130
        reader = {"comfyui": "ComfyUI"}.get(config.export_format, config.export_format)
        print(f"Done: {outcome.step} steps in {config.out}." + (f" For {reader}: {path}" if path else ""))
        return 0

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return cli.run_command(command, *ERRORS)
