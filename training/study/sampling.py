"""Toy clips as training data, and toy scores of what a model draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...methods.step import Correction
from ...toyworld.canvas import LATENT
from ..backbones import Backbone
from ..backbones.sample import sample

SCORES = ("law", "adherence", "dynamic_degree", "permanence", "residual")
"""Measures of a sampled clip, by their names in `toyworld.Scores`."""


def uncorrected(rows: slice) -> Sequence[Correction]:
    """Corrections of a plain sampler: none."""
    return ()


@torch.no_grad()
def sampled_clips(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    steps: int = 20,
    cfg: float = 1.0,
    seed: int = 0,
    batch: int = 8,
    corrections: Callable[[slice], Sequence[Correction]] = uncorrected,
) -> tuple[Tensor, float]:
    """One sampled clip per prompt, `B 3 T H W` in [0, 1] on the CPU, and the seconds of sampling per clip.

    `corrections` gives those of a slice of the prompts. Noise of clip i is seeded by seed + i, whatever the
    batch.
    """
    null, latents, begin = backbone.embed_prompts([""]), [], time.perf_counter()
    for first in range(0, len(prompts), batch):
        rows = slice(first, first + batch)
        tokens, mask = backbone.embed_prompts(prompts[rows])
        settings = {"steps": steps, "cfg": cfg, "null": null, "seed": seed + first}
        latents.append(sample(backbone, tokens, mask, LATENT, corrections=corrections(rows), **settings))
    seconds = (time.perf_counter() - begin) / len(prompts)
    clips = [backbone.decode_latent(part).cpu() for latent in latents for part in latent.split(8)]
    return torch.cat(clips), seconds


def toy_scores(
    backbone: Backbone,
    prompts: Sequence[str],
    worlds: Sequence[str],
    *,
    steps: int = 20,
    cfg: float = 1.0,
    seed: int = 0,
    batch: int = 8,
) -> dict[str, Tensor]:
    """`scores_of` one sampled clip per prompt."""
    clips, _ = sampled_clips(backbone, prompts, steps=steps, cfg=cfg, seed=seed, batch=batch)
    return scores_of(clips, prompts, worlds)


def scores_of(clips: Tensor, prompts: Sequence[str], worlds: Sequence[str]) -> dict[str, Tensor]:
    """`SCORES`, `B` each, of clips `B 3 T H W` in [0, 1]."""
    from ...toyworld import evaluate

    scores = evaluate(clips, worlds, prompts)
    return {name: getattr(scores, name) for name in SCORES}
