"""Losses of the toy VAE on real clips: law score, adherence and dynamic degree of the clips and of their
reconstructions.

python3 dev.py bench toyworld/vae
"""

from __future__ import annotations

import argparse

import torch
from latent_physics.toyworld import WORLDS, evaluate, sample
from latent_physics.training.backbones.load import load_backbone


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=3, help="clips per world")
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    backbone = load_backbone("toy", parts=("vae",))
    drawn = [sample(name, args.clips, args.seed) for name in WORLDS]
    real = torch.cat([clips for clips, _ in drawn])
    prompts = [prompt for _, some in drawn for prompt in some]
    names = [name for name in WORLDS for _ in range(args.clips)]
    with torch.no_grad():
        decoded = torch.cat(
            [backbone.decode_latent(backbone.encode_video(part)) for part in real.split(8)]
        ).clamp(0, 1)
    print(f"{len(real)} clips\n| | law | adherence | dynamic degree |\n|---|---|---|---|")
    for title, clips in (("real", real), ("reconstructed", decoded)):
        found = evaluate(clips, names, prompts)
        means = (found.law.mean(), found.adherence.mean(), found.dynamic_degree.mean())
        print(f"| {title} | {' | '.join(f'{mean:.3f}' for mean in means)} |")


if __name__ == "__main__":
    main()
