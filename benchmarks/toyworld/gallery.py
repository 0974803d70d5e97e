"""Draws docs/images/worlds.png: per toy world a real clip, what the toy model makes of its prompt, and the
same noise with LaMo guidance as the node comes. Beside five frames of each stands the clip's diagram of space
and time, in which a law is a line: a bounce a row of parabolas, a spring a wave, a front of light a wedge.

python3 dev.py bench toyworld/gallery
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from latent_physics.toyworld import WORLDS, sample, score
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.study.corrections import corrections_of
from latent_physics.training.study.sampling import sampled_clips
from torch import Tensor

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "worlds.png"
SHOWN = (0, 8, 16, 24, 32)
"""Frames of a clip that are drawn."""
SEEN = 0.3
"""Difference from the background, over the three colours, from which on something is there."""
RISING = ("rigid_body", "elastic", "phase_change")
"""Worlds whose diagram is of height and time; of the others it is of width and time."""
TITLES = ("the law", "toy model", "toy model + LaMo Guidance")


def strip(clip: Tensor, shown: Sequence[int] = SHOWN) -> Tensor:
    """Some frames of a clip (3,T,H,W) side by side, (H, W', 3)."""
    return torch.cat([clip[:, index] for index in shown], dim=2).permute(1, 2, 0)


def diagram(clip: Tensor, world: str) -> Tensor:
    """Place, downwards, over time: of each row (or column) of a frame the pixel that differs most from the
    background, or the background's commonest colour where none differs, (places, T, 3)."""
    across = 3 if world in RISING else 2
    background = torch.as_tensor(WORLDS[world].background)
    differing = (clip - background[:, None]).abs().sum(dim=0, keepdim=True)
    most, chosen = differing.max(dim=across, keepdim=True)
    found = clip.gather(across, chosen.expand(3, *chosen.shape[1:])).squeeze(across)
    plain = background.flatten(1).median(dim=1).values.view(3, 1, 1)
    return torch.where(most.squeeze(across) > SEEN, found, plain).permute(2, 1, 0)


def draw(columns: Mapping[str, Tensor], path: Path) -> None:
    """One row per world; per column, of title -> clips (8,3,T,H,W), a group of frames and their diagram."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(columns), 0.92 * len(WORLDS)), layout="constrained")
    ratios = [len(SHOWN), 1.6] * len(columns)
    grid = figure.add_gridspec(len(WORLDS), len(ratios), width_ratios=ratios, wspace=0.02, hspace=0.02)
    for row, name in enumerate(WORLDS):
        for column, (title, clips) in enumerate(columns.items()):
            clip = clips[row].clamp(0, 1)
            frames, lines = (figure.add_subplot(grid[row, 2 * column + side]) for side in (0, 1))
            frames.imshow(strip(clip).numpy(), interpolation="nearest", aspect="auto")
            lines.imshow(diagram(clip, name).numpy(), interpolation="nearest", aspect="auto")
            for axes in (frames, lines):
                axes.set(xticks=[], yticks=[])
            frames.set_xlabel(f"law score {score(clip[None], name).item():.2f}", fontsize=7, labelpad=1)
            if row == len(WORLDS) - 1:
                lines.set_xlabel("time", fontsize=7, labelpad=1)
            if column == 0:
                frames.set_ylabel(name.replace("_", "\n"), fontsize=8)
            if row == 0:
                frames.set_title(title, fontsize=10)
                lines.set_title("its motion", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictor", default="toy_predictor_order1.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and the noise; nothing is chosen")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    backbone = load_backbone("toy")
    drawn = [sample(name, 1, args.seed) for name in WORLDS]
    prompts = [prompts[0] for _, prompts in drawn]
    clips = [torch.cat([clips for clips, _ in drawn])]
    for texts in ([], [f"lamo predictor={args.predictor}"]):
        made, _ = sampled_clips(
            backbone, prompts, cfg=2.0, seed=args.seed, corrections=corrections_of(texts, prompts)
        )
        clips.append(made)
    draw(dict(zip(TITLES, clips)), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
