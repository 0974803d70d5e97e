"""PILA's effect on the toy world's physics: base model, adapters, and LaMo with one, same prompts and noise.

    # trains PILA and the plain adapter, then compares them with the base
    python3 dev.py bench pila/toyworld --train runs/pila_toy
    # other adapters, several seeds
    python3 dev.py bench pila/toyworld --train runs/pila_toy --ablations full no_routing no_pde --seeds 0 1 2
    # files that exist already, and LaMo
    python3 dev.py bench pila/toyworld --adapters toyworld/weights/toy_pila.safetensors OTHER.safetensors \\
        --predictor toyworld/weights/toy_predictor_order2.safetensors --clips 8

One row per model: its size and training, then law score (1 = like real clips), adherence and dynamic degree,
each with its standard error and the paired difference to the base model with a 95 % interval (bootstrap),
both over prompts. Adapters are named by their ablation; the first one is also stacked with LaMo if a
predictor is given.

--train keeps every run in a folder of its own, below one that is named after the base model's weights; all
learn from the same clips. Runs that are finished are not trained again, a stopped one is resumed. Every
adapter gets as many steps: one that skips the stages before the last trains longer in that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latent_physics.methods.labels.rules import rule_labels
from latent_physics.methods.lamo import MotionPriorGuidance, load_predictor
from latent_physics.methods.pila import (
    PilaAdapter,
    PilaConfig,
    PilaCorrection,
    PilaSettings,
    label_batch,
    load_adapter,
)
from latent_physics.methods.pila.correction import BRANCHES
from latent_physics.methods.pila.encoder import count
from latent_physics.methods.weights import WeightsError
from latent_physics.toyworld import WORLDS, evaluate, sample
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.commands.cli import run_command
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data.toy import weights_hash
from latent_physics.training.study.ablations import ABLATIONS, ablation, build
from latent_physics.training.study.arms import HEAD, SCORES, Arm, Found, line_of, print_pairs, write_scores
from latent_physics.training.study.sampling import sampled_clips
from latent_physics.training.tasks.pila.columns import EXPORT
from latent_physics.training.tasks.pila.data import toy_clips
from latent_physics.training.tasks.pila.settings import RECIPES, PilaTraining
from latent_physics.training.tasks.pila.stages import stages_of
from latent_physics.training.tasks.pila.task import PilaRun, train
from torch import Tensor


def name_of(method: str) -> str:
    """A method's name in the table."""
    return {"full": "PILA", "plain_adapter": "plain adapter"}.get(method, f"PILA, {method.replace('_', ' ')}")


# --- training -----------------------------------------------------------------------------------------------


def same_budget(name: str, seed: int, steps: int | None) -> tuple[PilaTraining, PilaConfig]:
    """The toy recipe of an ablation with `steps` steps in all, by default those of the full method.

    Raises TrainingError if the last stage would have none, ValueError for an unknown ablation.
    """
    config, full = RECIPES["toy"]
    before = sum(stage.steps for stage in stages_of(config, ablation(name))[:-1])
    total = steps or sum(stage.steps for stage in stages_of(config))
    if total <= before:
        rule = f"{name} needs more than {before}, which the stages before the last take"
        raise TrainingError(f"--train-steps is {total}; {rule}.")
    return replace(config, seed=seed, coupling_steps=total - before), full


def train_adapters(backbone: Any, args: argparse.Namespace) -> list[Path] | None:
    """Trains the adapters that are missing; returns their files, or None if the user stopped it.

    Raises as `PilaRun` does.
    """
    plans = [
        (seed, name, *same_budget(name, seed, args.train_steps))
        for seed in args.seeds
        for name in args.ablations
    ]
    base = args.train / f"base-{weights_hash(backbone.dit)}"
    clips, files = None, []
    for seed, name, config, adapter in plans:
        folder = base / f"{name}-seed{seed}"
        files.append(folder / EXPORT)
        if clips is None:
            progress = ProgressLine("toy clips")
            clips = toy_clips(
                args.train_clips,
                0,
                args.train / "toy_clips",
                backbone,
                progress,
            )
            progress.close()
        run = PilaRun(backbone, clips, config, adapter, folder, method=ablation(name))
        if run.finished:
            continue
        print(f"Training {name}, seed {seed}, in {folder}.", flush=True)
        with StopRequest() as stop:
            train(run, stop)
        if not run.finished:
            done = f"Stopped at step {run.total_steps} of {run.planned_steps}"
            print(f"{done}. Run the same command to resume.")
            return None
    return files


# --- comparison ---------------------------------------------------------------------------------------------


def arms_of(files: Sequence[Path], labels: Tensor, args: argparse.Namespace) -> dict[str, list[Arm]]:
    """Rows by what they compare; those of one ablation differ in the seed of their training.

    Raises WeightsError.
    """

    def pila(adapter: PilaAdapter, strength: float, rows: slice) -> PilaCorrection:
        return PilaCorrection(
            adapter, PilaSettings(labels=(labels[rows] > 0).float(), strength=strength, branch=args.branch)
        )

    groups: dict[str, list[Arm]] = {"base": [Arm(title="base", corrections=lambda rows: [])]}
    loaded = [load_adapter(path, build=build) for path in files]
    names = [name_of(info.recipe.get("method", adapter.architecture)) for adapter, info in loaded]
    runs = [f"{name}, seed {info.recipe.get('seed')}" for name, (_, info) in zip(names, loaded)]
    for path, run, name, (adapter, info) in zip(files, runs, names, loaded):
        for strength in args.strengths:
            title = name + ("" if strength == 1 else f" x {strength:g}")
            arm = Arm(
                title=title,
                corrections=lambda rows, adapter=adapter, strength=strength: [pila(adapter, strength, rows)],
                size=f"{count(adapter):,}",
                steps=str(info.recipe.get("steps", "")),
                minutes=f"{info.recipe['seconds'] / 60:.1f}" if "seconds" in info.recipe else "",
            )
            which = f"seed {info.recipe.get('seed')}" if runs.count(run) == 1 else f"{path}"
            groups.setdefault(title, []).append(replace(arm, title=f"{title}, {which}"))
    if args.predictor:
        predictor, info = load_predictor(args.predictor)
        guidance = MotionPriorGuidance(
            predictor,
            scale=args.lamo_strength,
            lag=info.config["lag"],
            active=0.8,
            bound=None,
            window="steps",
        )
        both = f"{names[0]} + LaMo"
        groups["LaMo"] = [Arm(title="LaMo", corrections=lambda rows: [guidance])]
        groups[both] = [Arm(title=both, corrections=lambda rows: [pila(loaded[0][0], 1.0, rows), guidance])]
    return {
        title: [replace(arms[0], title=title)] if len(arms) == 1 else arms for title, arms in groups.items()
    }


def draw(backbone: Any, prompts: list[str], arm: Arm, args: argparse.Namespace) -> tuple[Tensor, float]:
    """Clips of every prompt with an arm's corrections, and seconds of sampling per clip."""
    settings = {"steps": args.steps, "cfg": args.cfg, "seed": args.seed, "batch": args.batch}
    return sampled_clips(backbone, prompts, corrections=arm.corrections, **settings)


def compare(backbone: Any, files: Sequence[Path], args: argparse.Namespace) -> None:
    """Samples, prints the table, and writes every clip's scores if asked."""
    drawn = [(world, prompt) for world in WORLDS for prompt in sample(world, args.clips, args.seed)[1]]
    worlds = [world for world, _ in drawn for _ in range(args.per_prompt)]
    prompts = [prompt for _, prompt in drawn for _ in range(args.per_prompt)]
    groups = arms_of(files, label_batch([rule_labels(prompt) for prompt in prompts]), args)
    sampling = f"{args.steps} steps, cfg {args.cfg:g}, seed {args.seed}"
    print(f"{len(prompts)} clips of {len(set(prompts))} prompts, {sampling}")
    print(f"| {HEAD} |\n|{'---|' * len(HEAD.split(' | '))}")
    results: dict[str, Found] = {}
    for title, arms in groups.items():
        for arm in arms:
            clips, seconds = draw(backbone, prompts, arm, args)
            scores = evaluate(clips, worlds, prompts)
            found = results[arm.title] = {name: getattr(scores, name).tolist() for name in SCORES}
            print(
                line_of(arm, found, results["base"] if arm.title != "base" else None, prompts, seconds),
                flush=True,
            )
            if args.worlds:
                laws = scores.law.view(len(WORLDS), -1).mean(1)
                print("  " + ", ".join(f"{name} {law:.2f}" for name, law in zip(WORLDS, laws)), flush=True)
        if len(arms) > 1:
            mean = replace(arms[0], title=f"{title}, mean of {len(arms)}", minutes="")
            columns = {name: zip(*(results[arm.title][name] for arm in arms)) for name in SCORES}
            results[mean.title] = {
                name: [sum(row) / len(row) for row in rows] for name, rows in columns.items()
            }
            print(line_of(mean, results[mean.title], results["base"], prompts, seconds), flush=True)
    print_pairs(results, prompts)
    if args.out:
        write_scores(args.out, results, worlds, prompts)


# --- command line -------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=Path, metavar="FOLDER", help="train the adapters below in runs of this folder first"
    )
    parser.add_argument(
        "--ablations",
        nargs="+",
        default=["full", "plain_adapter"],
        choices=ABLATIONS,
        metavar="NAME",
        help=f"which adapters --train trains: {', '.join(ABLATIONS)}",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of the training; each adapter once per seed"
    )
    parser.add_argument(
        "--train-steps", type=int, help="steps of every training in all; left out, the toy recipe's"
    )
    parser.add_argument(
        "--train-clips", type=int, default=512, help="clips that --train draws, the same for every adapter"
    )
    parser.add_argument(
        "--adapters", type=Path, nargs="+", default=[], help="PILA adapter files for the toy world"
    )
    parser.add_argument("--predictor", help="a motion predictor: adds LaMo, and LaMo with the first adapter")
    parser.add_argument("--lamo-strength", type=float, default=2.0)
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[1.0], help="factors on the adapters' correction"
    )
    parser.add_argument(
        "--branch", choices=BRANCHES, default=BRANCHES[0], help="what of CFG the adapters correct"
    )
    parser.add_argument("--clips", type=int, default=8, help="prompts per world")
    parser.add_argument("--per-prompt", type=int, default=1, help="clips per prompt")
    parser.add_argument("--seed", type=int, default=5000, help="seed of the prompts and the noise")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--worlds", action="store_true", help="also print every world's law score")
    parser.add_argument("--out", type=Path, help="write every clip's scores to this CSV")
    args = parser.parse_args(argv)
    if args.train is None and not args.adapters:
        parser.error("give --train FOLDER to train adapters, or --adapters FILES to compare trained ones")
    for name in ("clips", "per_prompt", "steps", "batch", "train_clips"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and compares as the arguments say; returns the exit status."""
    args = parse(argv)

    def command() -> int:
        backbone = load_backbone("toy")
        trained = train_adapters(backbone, args) if args.train else []
        if trained is None:
            return 130
        compare(backbone, [*trained, *args.adapters], args)
        return 0

    return run_command(command, WeightsError, TrainingError)


if __name__ == "__main__":
    sys.exit(main())
