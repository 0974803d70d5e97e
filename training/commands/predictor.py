"""`latent-physics predictor`: trains LaMo's motion field predictor on cached latents."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...methods.weights import WeightsError
from ..console import ProgressLine, StopRequest, TrainingError, clock
from ..data.clips import Clips
from ..data.first import cache_first
from ..data.report import summarise
from ..loop.checkpoint import CURVES, LOG
from ..recipes import recipe_name
from ..settings import check
from ..tasks.predictor import EXPORT, FILES, RECIPES, PredictorConfig, PredictorTraining
from ..tasks.predictor_metrics import said
from . import cli


@dataclass(kw_only=True)
class PredictorCommand:
    """Train LaMo's motion field predictor on cached latents."""

    out: Path
    """Folder of this run: checkpoint, log.csv, curves.png and motion_predictor.safetensors. A run found there
    is resumed."""
    cache: Path | None = None
    """Folder that `latent-physics cache` filled."""
    first: str | None = None
    """Instead of `cache`: a first predictor without videos of yours, from the generated clips that ComfyUI's
    template packages install, for toy or a row of the table of video models (wan2.1, ltx2.3, h3, ...). Its
    recipe is quick where none is named, and toy for toy."""
    vae: Path | None = None
    """With `first`: the model's VAE, as ComfyUI's models/vae holds it; for LTX the checkpoint. toy has its
    own."""
    export: Path | None = None
    """Also write the predictor here, for example ComfyUI/models/latent_physics/my_predictor.safetensors."""
    recipe: Literal["full", "toy", "quick"] = "full"
    """Defaults of the settings below. full: 10.8M parameters, for a real backbone. toy: 0.5M, for small
    latents on a CPU. quick: 2.2M, for a first try on a real backbone, minutes on a GPU."""
    fresh: bool = False
    """Start over: delete the run in `out` first."""
    memory_gb: float = 4.0
    """Keep the latents in memory where they take at most this much; otherwise frames are read as they are
    needed."""
    config: PredictorConfig = field(default_factory=PredictorConfig)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where the run is finished, 1 on an error, 130 where stopped by
    the user."""
    return cli.run_command(lambda: _command(argv), WeightsError)


def _command(argv: list[str]) -> int:
    command = _parse(argv)
    check(command.config)
    clips = Clips.from_folder(folder_of(command), command.memory_gb)
    if command.fresh:
        for name in FILES:
            (command.out / name).unlink(missing_ok=True)
    training = PredictorTraining(clips, command.config, command.out)
    count = sum(parameter.numel() for parameter in training.task.model.parameters())
    print(
        f"{len(clips)} clips of {clips.latent_space} latents, {clips.channels} x {clips.size[0]} x "
        f"{clips.size[1]}; "
        f"{len(training.task.pairs)} pairs to train on; {count / 1e6:.1f}M parameters on "
        f"{training.loop.accelerator.device}."
    )
    if training.step:
        print(f"Going on from step {training.step} ({clock(training.loop.seconds)} of training so far).")
    with StopRequest() as stop:
        if not training.finished:
            training.run(stop=stop, progress=ProgressLine("predictor"))
    if command.export:
        command.export.parent.mkdir(parents=True, exist_ok=True)
        training.export(command.export)
    return _summarise(training, command)


def folder_of(command: PredictorCommand) -> Path:
    """The folder of cached clips; with `first` it is made before, in the run's folder. Raises TrainingError
    where neither is named, or both are."""
    if (command.cache is None) == (command.first is None):
        raise TrainingError(
            "give either cache, a folder that `latent-physics cache` filled, or first, a model's name, to "
            "learn from the clips that every ComfyUI has."
        )
    if command.first is None:
        return command.cache
    place = command.out / "clips"
    with StopRequest() as stop:
        report, config = cache_first(command.first, place, command.vae, command.config.device, stop)
    if summarise(report, config):
        raise KeyboardInterrupt  # while encoding: the same command resumes it
    return place


def _parse(argv: list[str]) -> PredictorCommand:
    """Reads the command line into the recipe's settings."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--first", nargs="?")
    first = given.parse_known_args(argv)[0].first
    name = recipe_name(argv) or ("toy" if first == "toy" else "quick" if first else "full")
    return cli.parse(
        PredictorCommand,
        argv,
        prog="latent-physics predictor",
        description="Cached latents -> motion field predictor.",
        defaults={"recipe": name, "config": RECIPES.get(name, RECIPES["full"])},
    )


def _summarise(training: PredictorTraining, command: PredictorCommand) -> int:
    """Prints what came out; returns the exit status."""
    kept = training.best_metrics()
    if "unexplained" in kept:
        print(
            f"Held-out clips: loss {kept['val_loss']:.4f}, unexplained variance of the change "
            f"{kept['unexplained']:.3f} "
            f"(1: knows nothing, 0: perfect), at step {kept['kept_step']}, whose weights are saved."
        )
        print("\n".join(said(kept)))
    print(
        f"Weights: {command.export or command.out / EXPORT}\nCurves:  {command.out / CURVES}\nLog:     "
        f"{command.out / LOG}"
    )
    if not training.finished:
        print(f"Stopped at step {training.step}; run the same command to resume.")
        return 130
    print(f"Finished: {training.step} steps in {clock(training.loop.seconds)}.")
    return 0
