"""What PILA's residuals say of fields that an adapter estimates: real clips of the toy world against the same
scenes with broken dynamics.

    python3 dev.py bench pila/learned_fields --clips 16

Per term: AUC, the chance that a broken clip violates it more than a real one does, with its standard error,
over all ways to break a clip together (0.5: the term cannot tell). Fields are those of the clip's own latent
at noise level 0, and residuals look where they look in training. The last row of a category is the toy
world's own residual, read from pixels: it tells them apart, so the terms could have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from latent_physics.methods.labels.taxonomy import CATEGORIES
from latent_physics.methods.pila import PilaAdapter, residual_terms
from latent_physics.methods.pila.files import load_adapter
from latent_physics.methods.pila.losses.masks import physical_mask
from latent_physics.methods.pila.residuals import TERMS
from latent_physics.toyworld import WORLDS, scores
from latent_physics.toyworld.corruption import VIOLATIONS
from latent_physics.toyworld.statistics import auc
from latent_physics.toyworld.worlds import World
from latent_physics.training.backbones import Backbone, load_backbone
from torch import Tensor

ADAPTER = Path(__file__).resolve().parents[2] / "toyworld" / "weights" / "toy_pila.safetensors"
WRONG = ("constant x 1/2", "constant x 2", "time-warp", "jump", "stall", "reversed")
"""Ways to break a scene that leave something moving."""
PIXELS = "read from pixels"


def clips_of(world: World, count: int, kind: str, seed: int) -> Tensor:
    """`count` clips `B 3 T H W` of the same scenes, right ("real") or broken in a way of `VIOLATIONS`."""
    rng = np.random.default_rng(seed)
    scenes = [world.draw(rng) for _ in range(count)]
    make = VIOLATIONS.get(kind, lambda world, scene, rng: world.render(scene))
    return torch.from_numpy(np.stack([make(world, scene, rng) for scene in scenes])).movedim(1, 2)


@torch.no_grad()
def violations(
    adapter: PilaAdapter, backbone: Backbone, clips: Tensor, category: int, name: str
) -> dict[str, list[float]]:
    """Every term of a category over the clips, and the world's own residual."""
    labels = torch.zeros(1, len(CATEGORIES))
    labels[:, category] = 1
    found: dict[str, list[float]] = {}
    for clip in clips.split(4):
        latent = backbone.encode_video(clip)
        fields = adapter.estimate(latent, torch.zeros(len(latent)))
        mask = physical_mask(fields, labels.expand(len(latent), -1))
        for term, values in residual_terms(fields, category, mask=mask).items():
            found.setdefault(term, []).extend(values.tolist())
    return found | {PIXELS: scores.law_residual(clips, name).tolist()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--clips", type=int, default=16, help="real clips per world, and of each way")
    parser.add_argument("--seed", type=int, default=3000)
    args = parser.parse_args()
    adapter, _ = load_adapter(args.adapter)
    backbone = load_backbone("toy", parts=("vae",))
    print("| category | term | family | AUC |\n|---|---|---|---|")
    telling = terms = 0
    for category, (name, world) in enumerate(WORLDS.items()):
        clips = {kind: clips_of(world, args.clips, kind, args.seed) for kind in ("real", *WRONG)}
        found = {kind: violations(adapter, backbone, some, category, name) for kind, some in clips.items()}
        for term in found["real"]:
            wrong = [value for kind in WRONG for value in found[kind][term]]
            chance, error = auc(wrong, found["real"][term])
            known = TERMS[CATEGORIES[category]].get(term)
            if known:
                terms, telling = terms + 1, telling + (chance - 1.96 * error > 0.5)
            family = known.family if known else ""
            print(f"| {CATEGORIES[category]} | {term} | {family} | {chance:.2f} ± {error:.2f} |", flush=True)
    print(f"\n{telling} of {terms} terms find broken clips worse, beyond chance.")


if __name__ == "__main__":
    main()
