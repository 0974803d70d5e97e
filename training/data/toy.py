"""Toy clips as cached clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ...methods.lamo import pool_tokens
from ...methods.weights import write_atomically
from ..backbones import Backbone
from ..console import ProgressLine, saving
from .clip import ClipInfo, write_clip


def weights_hash(*modules: torch.nn.Module | None) -> str:
    """A short hash of weights: clips encoded by other weights are encoded again."""
    digest = hashlib.blake2b(digest_size=4)
    for module in modules:
        for value in module.state_dict().values() if isinstance(module, torch.nn.Module) else ():
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def make_toy_clips(
    folder: Path,
    backbone: Backbone,
    count: int,
    seed: int,
    wrong: float = 0.0,
    progress: ProgressLine | None = None,
    worlds: Sequence[str] = (),
) -> None:
    """Writes `count` drawn clips of `worlds` (all where none is named) into `folder` as cached clips, with
    their frames for the teachers.

    The backbone needs its VAE and text encoder. Clips that are there already are kept. Raises TrainingError
    if the disk is full.
    """
    from ...toyworld import mixture

    part = 32
    for start in range(0, count, part):
        paths = toy_paths(folder, seed, range(start, min(start + part, count)))
        if all(path.is_file() for path in paths):
            continue
        clips, prompts, _ = mixture(len(paths), seed * 1_000_003 + start, wrong, worlds=worlds)
        tokens, mask = backbone.embed_prompts(prompts)
        for index, path in enumerate(paths):
            with saving(path.name, "the clips written so far are safe"):
                write_toy_clip(path, backbone, clips[index], prompts[index], tokens[index], mask[index])
        if progress:
            progress.show((start + len(paths)) / count, f"{start + len(paths)}/{count} toy clips")


def toy_paths(folder: Path, seed: int, numbers: Iterable[int]) -> list[Path]:
    """Files of the drawn clips with these numbers."""
    return [folder / f"toy-{seed}-{number:05}.safetensors" for number in numbers]


def write_toy_clip(
    path: Path,
    backbone: Backbone,
    clip: Tensor,
    prompt: str,
    tokens: Tensor,
    mask: Tensor,
    source: str | None = None,
) -> None:
    """One clip `3 T H W`: its frames first, so that a finished clip always has them. `source`: its name, by
    default the file's.

    Raises OSError.
    """
    frames = (clip.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).contiguous()
    (path.parent / "frames").mkdir(parents=True, exist_ok=True)
    write_atomically(path.parent / "frames" / path.name, safetensors.torch.save({"frames": frames}))
    name = source or path.stem
    info = ClipInfo(
        source=name, source_hash=name, key=name, caption=prompt, caption_from="file", window=0, last=True,
        start=0.0, frames=clip.shape[1], width=clip.shape[3], height=clip.shape[2], fps=0.0,
    )  # fmt: skip
    latent = backbone.encode_video(frames.permute(3, 0, 1, 2)[None].float() / 255)[0]
    write_clip(
        path,
        latent,
        pool_tokens(tokens[None], mask[None])[0],
        info,
        backbone.latent_space,
        tokens=tokens[mask],
    )
