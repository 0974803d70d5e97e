"""`latent-physics motion-head`: trains MoAlign's motion subspace (stage 1)."""

from __future__ import annotations

import os

from ...encoders import TeacherError
from ...methods.weights import WeightsError
from ..console import StopRequest
from ..data.videos import VideoError
from ..recipes import names, recipe_in
from ..tasks.motion_head import MotionHeadConfig, train_motion_head
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            MotionHeadConfig,
            argv,
            prog="latent-physics motion-head",
            description=f"{MotionHeadConfig.__doc__} Recipes: {', '.join(names('motion-head'))}.",
            defaults=vars(recipe_in(argv, MotionHeadConfig, "motion-head") or MotionHeadConfig()),
        )
        with StopRequest() as stop:
            outcome, path = train_motion_head(config, stop)
        if outcome.stopped:
            print(
                f"Stopped after step {outcome.step} of {config.trainer.steps}; run the same "
                f"command to resume."
            )
            return 130
        print(f"Done: {path}")
        return 0

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return cli.run_command(command, TeacherError, VideoError, WeightsError)
