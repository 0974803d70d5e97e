"""Knowledge of the toy video encoders: where a thing went, and which motion is the likely one.

    python3 dev.py bench toyworld/encoders

Places: correspondence maps of real toy clips (balls, blocks on springs, pucks) against the things' true
places. The query is the patch under the thing in the middle of the clip; a frame counts as found where the
likeliest patch of P[i, f] (TSA eqs 6-8) is the one under the thing or a neighbour of it. Beside the encoders:
the same networks before training, and the patches' pixels.

Motion: each scene of every world is drawn twice, with right and with corrupted dynamics. V-JEPA 2 sees the
first 8 frames; its surprise is the mean absolute difference, where something moves, between the features it
expects and those that come. The figure is the share of scenes whose corrupted version surprises more (0.5: it
cannot tell).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from latent_physics.encoders import Teacher, VJEPATeacher, load_teacher
from latent_physics.methods.relational import correspondence
from latent_physics.toyworld import WORLDS, sample
from latent_physics.toyworld.canvas import FRAMES, moments
from latent_physics.toyworld.corruption import corrupted
from torch import Tensor
from torch.nn import functional

TRACKED = ("rigid_body", "elastic", "collision")
TUBELET, PATCH = 2, 8
SEEN = 8
FAR = 2.0
"""Patches from the query's place; only frames in which the thing is at least this far away are counted."""


def tracks(per_world: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips `3 32 64 64`, each with the path of its first thing: `16 2` rows and columns in patches."""
    for name in TRACKED:
        clips, _ = sample(name, per_world, seed)
        for clip in clips[:, :, 1:]:
            alphas = WORLDS[name].unmix(clip.transpose(0, 1).numpy())
            _, x, y = moments(alphas[:, WORLDS[name].present(alphas)[0]])
            path = torch.from_numpy(y), torch.from_numpy(x)
            yield clip, torch.stack(path, 1).float().unflatten(0, (-1, TUBELET)).mean(1) / PATCH


def pixels(video: Tensor) -> Tensor:
    """Each patch's own pixels, less the mean picture, as its feature: `B C F H W`."""
    parts = (
        (video - video.mean(2, keepdim=True))
        .unfold(2, TUBELET, TUBELET)
        .unfold(3, PATCH, PATCH)
        .unfold(4, PATCH, PATCH)
    )
    return parts.permute(0, 1, 5, 6, 7, 2, 3, 4).flatten(1, 4)


def found(features: Tensor, path: Tensor) -> tuple[int, int]:
    """(frames found, frames counted) of one clip; features `C F H W`, path `F 2`."""
    channels, *grid = features.shape
    cells = path.floor().long().clamp(0, grid[1] - 1)
    middle = grid[0] // 2
    maps = correspondence(features.reshape(channels, -1).T, tuple(grid), (middle, *cells[middle].tolist()))
    best = maps.flatten(1).argmax(1)
    answer = torch.stack([best // grid[2], best % grid[2]], 1)
    counted = torch.linalg.vector_norm(path - path[middle], dim=1) >= FAR
    near = (answer - cells).abs().amax(1) <= 1
    return int((near & counted).sum()), int(counted.sum())


def untrained(teacher: Teacher) -> Teacher:
    """The same architecture with fresh weights."""
    torch.manual_seed(0)
    return type(teacher)(type(teacher).build(teacher.model.config.to_diff_dict()), "untrained")


def pairs(per_world: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same scene under the right and under corrupted dynamics: two clips `3 32 64 64`."""
    for world in WORLDS.values():
        for index in range(per_world):
            rng = np.random.default_rng((seed, index))
            scene = world.draw(rng)
            both = world.render(scene, np.arange(FRAMES)), corrupted(world, scene, rng)
            right, wrong = (
                torch.from_numpy(np.asarray(frames, np.float32)).transpose(0, 1)[:, 1:] for frames in both
            )
            yield right, wrong


def surprise(teacher: VJEPATeacher, clip: Tensor) -> float:
    """Mean |expected - seen| features of the frames after the first `SEEN`, weighted by each patch's change
    since then.
    """
    seen = unit_scale(teacher.features(clip[None])[:, :, SEEN // TUBELET :])
    error = (teacher.predicted(clip[None], SEEN // TUBELET) - seen).abs().mean(1)
    change = (clip[:, SEEN:] - clip[:, SEEN - 1 : SEEN]).abs().amax(0, keepdim=True)
    weight = functional.max_pool3d(change, (TUBELET, PATCH, PATCH))
    return ((error * weight).sum() / weight.sum().clamp(min=1e-6)).item()


def unit_scale(features: Tensor) -> Tensor:
    """Every vector of `B C F H W` with mean 0 and deviation 1, as V-JEPA's targets are."""
    return functional.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16, help="clips, and scenes, per world")
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    rows: dict[str, Callable[[Tensor], Tensor]] = {"pixels": pixels}
    for name in ("toy_videomae", "toy_vjepa2"):
        teacher = load_teacher(name)
        rows |= {name: teacher.features, f"{name}, untrained": untrained(teacher).features}
    drawn = list(tracks(args.clips, args.seed))
    print(f"{len(drawn)} clips, frames in which the thing is {FAR:g} or more patches from its query")
    print("| features | thing found |\n|---|---|")
    for title, features in rows.items():
        hits, frames = map(sum, zip(*(found(features(clip[None])[0].cpu(), path) for clip, path in drawn)))
        print(f"| {title} | {hits / frames:.2f} of {frames} |")
    scenes = list(pairs(args.clips, args.seed))
    print(f"\n{len(scenes)} scenes\n| model | corrupted version surprises more |\n|---|---|")
    vjepa = load_teacher("toy_vjepa2")
    for title, model in (("toy_vjepa2", vjepa), ("toy_vjepa2, untrained", untrained(vjepa))):
        more = [surprise(model, wrong) > surprise(model, right) for right, wrong in scenes]
        print(f"| {title} | {np.mean(more):.2f} |")


if __name__ == "__main__":
    main()
