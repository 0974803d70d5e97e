"""Toy clips as training data, and toy scores of what a model draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..methods.lamo import pool_tokens
from ..methods.step import Correction
from .backbones import Backbone
from .dataset import ClipInfo, write_clip
from .run import ProgressLine, saving
from .trainer_sample import sample

LATENT = (9, 8, 8)
"""T H W of a toy clip's latent."""


def make_toy_clips(
    folder: Path, backbone: Backbone, count: int, seed: int, wrong: float = 0.0, progress: ProgressLine | None = None
) -> None:
    """Writes `count` drawn clips of all worlds into `folder` as cached clips, with their frames for the teachers.

    The backbone needs its VAE and text encoder. Clips that are there already are kept. Raises RunError where the disk is full.
    """
    from ..toyworld import mixture

    part = 32
    for start in range(0, count, part):
        paths = [folder / f"toy-{seed}-{index:05}.safetensors" for index in range(start, min(start + part, count))]
        if all(path.is_file() for path in paths):
            continue
        clips, prompts, _ = mixture(len(paths), seed * 1_000_003 + start, wrong)
        tokens, mask = backbone.embed_prompts(prompts)
        for index, path in enumerate(paths):
            with saving(path.name, "the clips written so far are safe"):
                write_toy_clip(path, backbone, clips[index], prompts[index], tokens[index], mask[index])
        if progress:
            progress.show((start + len(paths)) / count, f"{start + len(paths)}/{count} toy clips")


def write_toy_clip(path: Path, backbone: Backbone, clip: Tensor, prompt: str, tokens: Tensor, mask: Tensor) -> None:
    """One clip `3 T H W`: its frames first, so that a finished clip always has them."""
    frames = (clip.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).contiguous()
    (path.parent / "frames").mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"frames": frames}, path.parent / "frames" / path.name)
    info = ClipInfo(
        source=path.stem, source_hash=path.stem, key=path.stem, caption=prompt, caption_from="file", window=0, last=True,
        start=0.0, frames=clip.shape[1], width=clip.shape[3], height=clip.shape[2], fps=0.0,
    )  # fmt: skip
    latent = backbone.encode_video(frames.permute(3, 0, 1, 2)[None].float() / 255)[0]
    write_clip(path, latent, pool_tokens(tokens[None], mask[None])[0], info, backbone.latent_space, tokens=tokens[mask])


def toy_prompts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts and world names, all worlds in turn."""
    import numpy as np

    from ..toyworld.prompts import describe
    from ..toyworld.worlds import WORLDS

    rng = np.random.default_rng(seed)
    names = [list(WORLDS)[index % len(WORLDS)] for index in range(count)]
    return [describe(WORLDS[name], WORLDS[name].draw(rng), rng) for name in names], names


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
    """One sampled clip per prompt, `B 3 33 64 64` in [0, 1] on the CPU, and the seconds of sampling per clip.

    `corrections` gives those of a slice of the prompts. Noise of clip i is seeded by seed + i, whatever the batch.
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
    """Law, adherence and dynamic degree, `B` each, of one sampled clip per prompt."""
    from ..toyworld import evaluate

    clips, _ = sampled_clips(backbone, prompts, steps=steps, cfg=cfg, seed=seed, batch=batch)
    scores = evaluate(clips, worlds, prompts)
    return {"law": scores.law, "adherence": scores.adherence, "dynamic_degree": scores.dynamic_degree}
