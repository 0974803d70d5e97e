"""Draws docs/images/worlds.png: per toy world a real clip, the toy model on the same prompt, and the same
with LaMo guidance.

python3 dev.py bench toyworld/gallery --predictor toyworld/weights/toy_predictor_order2.safetensors --strength
1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from latent_physics.methods.lamo import MotionPriorGuidance, load_predictor
from latent_physics.toyworld import WORLDS, sample, score
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.study.sampling import sampled_clips
from torch import Tensor

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "worlds.png"
SHOWN = (0, 8, 16, 24, 32)
"""Frames of a clip that are drawn."""


def strip(clip: Tensor) -> Tensor:
    """Some frames of a clip (3,T,H,W) side by side, (H, W', 3)."""
    return torch.cat([clip[:, index] for index in SHOWN], dim=2).permute(1, 2, 0)


def draw(columns: dict[str, Tensor], path: Path) -> None:
    """One row per world, one group of frames per column; columns: title -> clips (8,3,T,H,W)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(columns), 0.83 * len(WORLDS)), layout="constrained")
    for row, name in enumerate(WORLDS):
        for column, (title, clips) in enumerate(columns.items()):
            axes = figure.add_subplot(len(WORLDS), len(columns), row * len(columns) + column + 1)
            axes.imshow(strip(clips[row]).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            law = score(clips[row][None], name).item()
            axes.set_xlabel(f"law score {law:.2f}", fontsize=6, labelpad=1)
            if column == 0:
                axes.set_ylabel(name.replace("_", "\n"), fontsize=7)
            if row == 0:
                axes.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictor", required=True)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    backbone = load_backbone("toy")
    predictor, info = load_predictor(args.predictor)
    drawn = [sample(name, 1, args.seed) for name in WORLDS]
    prompts = [prompts[0] for _, prompts in drawn]
    columns = {"real": torch.cat([clips for clips, _ in drawn])}
    guidance = MotionPriorGuidance(predictor, scale=args.strength, lag=info.config["lag"])
    for title, corrections in (("toy model", []), ("toy model + LaMo guidance", [guidance])):
        columns[title], _ = sampled_clips(
            backbone, prompts, cfg=2.0, seed=args.seed, corrections=lambda rows, use=corrections: use
        )
    draw(columns, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
