"""What PILA does to the toy world's physics: base model, adapters and their combination with LaMo, same prompts and noise.

    python benchmarks/pila_toy.py --adapters toyworld/weights/toy_pila.safetensors runs/pila_plain/pila_adapter.safetensors \\
        --predictor toyworld/weights/toy_predictor_order2.safetensors --clips 8

One row per model: law score (1 = like real clips), adherence, dynamic degree, each with its standard error over clips, and
seconds per clip. Adapters are named by their ablation; the first one is also stacked with LaMo where a predictor is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields

import torch
from latent_physics.methods.lamo import MotionPriorGuidance, load_predictor
from latent_physics.methods.pila import Ablation, PilaAdapter, PilaCorrection, PilaSettings, label_batch, load_adapter
from latent_physics.methods.pila.labels import rule_labels
from latent_physics.toyworld import WORLDS, evaluate, sample
from latent_physics.training.backbones import load_backbone
from latent_physics.training.trainer_sample import sample as generate
from torch import Tensor

LATENT = (9, 8, 8)


def name_of(adapter: PilaAdapter) -> str:
    """What an adapter has switched off, or "PILA" for the full method."""
    default = Ablation()
    changed = [field.name for field in fields(Ablation) if getattr(adapter.config.ablation, field.name) != getattr(default,
    field.name)]
    return "plain adapter" if "plain_adapter" in changed else f"PILA without {', '.join(changed)}" if changed else "PILA"


def mean_and_error(values: Tensor) -> str:
    """Mean and standard error."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", required=True, help="PILA adapter files for the toy world")
    parser.add_argument("--predictor", help="a motion predictor: adds LaMo, and LaMo with the first adapter")
    parser.add_argument("--lamo-strength", type=float, default=5.0)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="factors on the adapters' correction")
    parser.add_argument("--clips", type=int, default=8, help="clips per world")
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--worlds", action="store_true", help="also print every world's law score")
    args = parser.parse_args(argv)
    backbone = load_backbone("toy")
    prompts = [prompt for name in WORLDS for prompt in sample(name, args.clips, args.seed)[1]]
    names = [name for name in WORLDS for _ in range(args.clips)]
    labels = label_batch([rule_labels(prompt) for prompt in prompts])
    loaded = [load_adapter(path)[0] for path in args.adapters]

    def pila(adapter: PilaAdapter, strength: float, rows: slice) -> PilaCorrection:
        return PilaCorrection(adapter, PilaSettings(labels=(labels[rows] > 0).float(), strength=strength))

    plans = {"base": lambda rows: []}
    for adapter in loaded:
        for strength in args.strengths:
            title = name_of(adapter) + ("" if strength == 1 else f" x {strength:g}")
            plans[title] = lambda rows, adapter=adapter, strength=strength: [pila(adapter, strength, rows)]
    if args.predictor:
        predictor, info = load_predictor(args.predictor)
        guidance = MotionPriorGuidance(predictor, scale=args.lamo_strength, lag=info.config["lag"], active=0.8)
        plans["LaMo"] = lambda rows: [guidance]
        plans[f"{name_of(loaded[0])} + LaMo"] = lambda rows: [pila(loaded[0], 1.0, rows), guidance]
    print(f"{len(prompts)} clips, {args.steps} steps, cfg {args.cfg:g}, seed {args.seed}")
    print("| model | law | adherence | dynamic degree | s/clip |\n|---|---|---|---|---|")
    for title, plan in plans.items():
        clips, seconds = draw(backbone, prompts, plan, args)
        found = evaluate(clips, names, prompts)
        cells = [mean_and_error(values.float()) for values in (found.law, found.adherence, found.dynamic_degree)]
        print(f"| {title} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)
        if args.worlds:
            laws = found.law.view(-1, args.clips).mean(1)
            print("  " + ", ".join(f"{name} {law:.2f}" for name, law in zip(WORLDS, laws)), flush=True)


def draw(backbone: object, prompts: list[str], plan: object, args: argparse.Namespace) -> tuple[Tensor, float]:
    """Clips of every prompt with a plan's corrections, and seconds of sampling per clip."""
    null, latents, start = backbone.embed_prompts([""]), [], time.perf_counter()
    for first in range(0, len(prompts), args.batch):
        rows = slice(first, first + args.batch)
        tokens, mask = backbone.embed_prompts(prompts[rows])
        settings = {"steps": args.steps, "cfg": args.cfg, "null": null, "seed": args.seed + first}
        latents.append(generate(backbone, tokens, mask, LATENT, corrections=plan(rows), **settings))
    seconds = (time.perf_counter() - start) / len(prompts)
    with torch.no_grad():
        clips = [backbone.decode_latent(part) for latent in latents for part in latent.split(8)]
    return torch.cat(clips).clamp(0, 1), seconds


if __name__ == "__main__":
    main()
