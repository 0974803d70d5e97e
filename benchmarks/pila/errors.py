"""Error that adapters remove from the frozen toy model, by noise level: the purpose of their training.

    python3 dev.py bench pila/errors toyworld/weights/toy_pila.safetensors OTHER.safetensors

A cell is 1 - |v + g dv - (noise - x0)|^2 / |v - (noise - x0)|^2 over clips of right dynamics that no recipe
trains on and, in brackets, the factor on g dv that would remove most. A factor far from 1 says that the
correction is shrunk or overshoots at that noise level.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from latent_physics.methods.pila import PilaAdapter, load_adapter
from latent_physics.methods.pila.adapter import wide
from latent_physics.methods.weights import WeightsError
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.commands.cli import run_command
from latent_physics.training.study.ablations import build
from latent_physics.training.tasks.pila.data import Batch, toy_clips
from torch import Tensor

HELD_OUT_SEED = 1_000
"""Seed of the clips; training draws from seed 0 on, one up for each run."""
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)


@torch.no_grad()
def removed(
    adapter: PilaAdapter, backbone: Any, batch: Batch, sigma: float, part: int = 16
) -> tuple[float, float]:
    """(best factor on the correction, share of the error removed at factor 1) at a noise level."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.latent.shape, generator=generator)
    gaps, pushes = [], []
    for first in range(0, len(noise), part):
        rows = slice(first, first + part)
        clean, levels = batch.latent[rows], torch.full((len(noise[rows]),), sigma)
        noisy = (1.0 - sigma) * clean + sigma * noise[rows]
        velocity = backbone.predict(noisy, levels, batch.tokens[rows]).float()
        out = adapter(noisy - sigma * velocity, velocity, levels, batch.cond[rows], batch.labels[rows])
        pushes.append(wide(adapter.gate(levels)) * out.delta)
        gaps.append(noise[rows] - clean - velocity)
    return factor_and_share(torch.cat(gaps), torch.cat(pushes))


def factor_and_share(gap: Tensor, push: Tensor) -> tuple[float, float]:
    """Least-squares factor of `push` on `gap`, and the share of |gap|^2 that `push` itself removes."""
    factor = (gap * push).sum() / push.square().sum().clamp(min=1e-12)
    return factor.item(), (1.0 - (gap - push).square().sum() / gap.square().sum()).item()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("adapters", type=Path, nargs="+", help="PILA adapter files for the toy world")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips")
    args = parser.parse_args(argv)

    def command() -> int:
        backbone = load_backbone("toy")
        with tempfile.TemporaryDirectory() as folder:
            clips = toy_clips(args.clips, HELD_OUT_SEED, Path(folder), backbone)
            batch = clips.batch(range(args.clips))
        print(f"| adapter | {' | '.join(f'sigma {sigma:g}' for sigma in LEVELS)} |")
        print("|---" * (len(LEVELS) + 1) + "|")
        for path in args.adapters:
            adapter, _ = load_adapter(path, build=build)
            found = [removed(adapter, backbone, batch, sigma) for sigma in LEVELS]
            cells = [f"{share:.1%} (best factor {factor:.2f})" for factor, share in found]
            print(f"| {path.name} | {' | '.join(cells)} |", flush=True)
        return 0

    return run_command(command, WeightsError)


if __name__ == "__main__":
    sys.exit(main())
