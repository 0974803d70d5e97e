"""`latent-physics plan`: GiB and hours of a recipe on a graphics card, counted before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.plan import describe
from ..recipes import recipe_in
from ..tasks.finetune import ERRORS, FinetuneConfig
from . import cli


@dataclass(kw_only=True)
class PlanConfig(FinetuneConfig):
    """Counts what a fine-tune takes: the memory of its step, and its hours on graphics cards."""

    gpu: str | None = None
    """A card, such as 4090 or h100: also prints what would make the run fit it. Left out: all known
    cards."""


def main(argv: list[str]) -> int:
    """The command: a recipe's name, then any option of `finetune`. Returns the exit status."""

    def command() -> int:
        words = [f"--recipe={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("-") else argv
        config = cli.parse(
            PlanConfig,
            words,
            prog="latent-physics plan",
            description=f"{PlanConfig.__doc__} latent-physics plan RECIPE --gpu 4090",
            defaults=vars(recipe_in(words, FinetuneConfig) or FinetuneConfig()),
        )
        for line in describe(config, config.gpu):
            print(line, flush=True)
        return 0

    return cli.run_command(command, *ERRORS)
