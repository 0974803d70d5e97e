"""Effect of LaMo guidance on the toy world's physics, over strengths: for choosing a strength, on seeds that
no table reports.

python3 dev.py bench toyworld/guidance --predictor toyworld/weights/toy_predictor_order2.safetensors
--strengths 0 2 5 10 25
"""

from __future__ import annotations

import argparse

from latent_physics.methods.lamo import MotionPriorGuidance, load_predictor
from latent_physics.toyworld import WORLDS, evaluate, sample
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.study.sampling import sampled_clips


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictor", required=True, help="a motion predictor for the toy world")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 2.0, 5.0, 10.0, 25.0])
    parser.add_argument("--clips", type=int, default=4, help="clips per world")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--active", type=float, default=0.8)
    parser.add_argument("--share", type=float, help="bound of the step; left out, the paper's rule")
    parser.add_argument("--worlds", action="store_true", help="print every world's law score too")
    args = parser.parse_args()
    backbone = load_backbone("toy")
    predictor, info = load_predictor(args.predictor)
    prompts = [prompt for name in WORLDS for prompt in sample(name, args.clips, args.seed)[1]]
    names = [name for name in WORLDS for _ in range(args.clips)]
    print("| strength | law | adherence | dynamic degree | s/clip |\n|---|---|---|---|---|")
    for strength in args.strengths:
        rule = {"active": args.active, "bound": args.share, "window": "noise" if args.share else "steps"}
        guidance = MotionPriorGuidance(predictor, scale=strength, lag=info.config["lag"], **rule)
        corrections = [guidance] if strength else []
        settings = {"steps": args.steps, "cfg": args.cfg, "seed": args.seed, "batch": len(prompts)}
        clips, seconds = sampled_clips(
            backbone, prompts, corrections=lambda rows, use=corrections: use, **settings
        )
        found = evaluate(clips, names, prompts)
        means = (found.law.mean(), found.adherence.mean(), found.dynamic_degree.mean())
        print(
            f"| {strength:g} | " + " | ".join(f"{value:.3f}" for value in means) + f" | {seconds:.2f} |",
            flush=True,
        )
        if args.worlds:
            rows = zip(found.law.view(-1, args.clips).mean(1), found.adherence.view(-1, args.clips).mean(1))
            print(
                "  " + ", ".join(f"{name} {law:.2f}/{there:.2f}" for name, (law, there) in zip(WORLDS, rows)),
                flush=True,
            )


if __name__ == "__main__":
    main()
