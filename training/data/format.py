"""Frames, size and rate that a backbone's clips are cached in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


class CacheError(ValueError):
    """Caching cannot start or go on. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How clips are cut for a backbone."""

    width: int
    height: int
    frames: int
    fps: float
    """Maximum frames per second; 0 keeps every frame."""


USUAL = {
    "wan": Format(width=832, height=480, frames=81, fps=16),
    "cogvideox": Format(width=720, height=480, frames=49, fps=8),
    "toy": Format(width=64, height=64, frames=33, fps=0),
}
"""The size, length and rate each family was trained at."""
SIDE_MULTIPLE = 16
"""VAE stride 8 times the transformers' patch of 2."""
TEMPORAL_STRIDE = 4


@dataclass(kw_only=True)
class CacheConfig:
    """Encode videos once, so that training reads latents."""

    out: Path
    """Folder for the cached clips, one safetensors file each."""
    videos: list[Path] = field(default_factory=list)
    """Videos, or folders searched to any depth: mp4, webm, mov, mkv and other films, gif, animated webp,
    folders of numbered PNG or JPEG frames."""
    captions: Path | None = None
    """A list of captions instead of .txt files: .jsonl, .csv (as OpenVid's) or .json (as WISA-80K's). Only
    the videos it names are taken, looked up in the one folder given as `videos`, or beside the list."""
    templates: str | None = None
    """Also take the animated clips of ComfyUI's installed template packages whose names match this, for
    example '*wan*'."""
    limit: int | None = None
    """Maximum number of clips (the first by name)."""
    backbone: Literal["wan", "cogvideox", "toy"] = "wan"
    """Whose VAE and text encoder to use."""
    source: str | None = None
    """Diffusers folder or hub id of the backbone; left out, the family's smallest model."""
    vae: Path | None = None
    """A VAE file as ComfyUI's models/vae holds it, instead of `source`; needs `text` too."""
    text: Path | None = None
    """A text encoder file as ComfyUI's models/text_encoders holds it (fp16 or bf16)."""
    dit: Path | None = None
    """CogVideoX with `vae` and `text`: the transformer's file, of which only one tensor's shape is read. 2B
    and 5B share a VAE file, but not the scale of their latents; this says which it is."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where the text encoder file carries none (T5)."""
    width: int | None = None
    """Pixels, a multiple of 16; clips are cropped to the aspect, then resized. Left out: 832 (wan), 720
    (cogvideox), 64 (toy)."""
    height: int | None = None
    """Pixels, a multiple of 16. Left out: 480 (wan, cogvideox), 64 (toy)."""
    frames: int | None = None
    """Frames per clip, a multiple of 4 plus 1. Left out: 81 (wan), 49 (cogvideox), 33 (toy)."""
    fps: float | None = None
    """Drop frames of faster clips down to this rate, double none; 0 keeps all. Left out: 16 (wan), 8
    (cogvideox), 0 (toy)."""
    windows: int = 1
    """Maximum number of consecutive windows of `frames` frames per video, from its start; 0 for all."""
    allow_short: bool = False
    """Keep clips shorter than `frames`, cut to the longest length that fits, instead of skipping them."""
    name_captions: bool = True
    """Use a clip's file name as its caption where there is no .txt of the same name beside it; otherwise its
    caption is empty."""
    tokens: bool = False
    """Also store all prompt tokens, which fine-tuning needs and the motion predictor does not."""
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the stored latents and embeddings."""
    workers: int = 2
    """Threads that read videos."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    check: bool = False
    """Encode nothing: read every clip, print a table of what would be trained on and what is left out, and
    write a contact sheet of the first frames as the model will see them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to cache."""

    path: Path
    caption: str
    caption_from: str
    source_hash: str
    key: str
    stem: str
    """Start of its file names in the cache: readable, different for different content, kept when the video is
    renamed."""


def format_of(config: CacheConfig) -> Format:
    """The format clips are cut to. Raises CacheError where a number does not fit the VAE."""
    usual = USUAL[config.backbone]
    form = Format(
        **{name: getattr(usual if getattr(config, name) is None else config, name) for name in usual.__dict__}
    )
    for name, value in (("width", form.width), ("height", form.height)):
        if value < SIDE_MULTIPLE or value % SIDE_MULTIPLE:
            near = max(1, round(value / SIDE_MULTIPLE)) * SIDE_MULTIPLE
            raise CacheError(
                f"{name} is {value}; it must be a multiple of {SIDE_MULTIPLE}, for example {near}."
            )
    if form.frames <= TEMPORAL_STRIDE or form.frames % TEMPORAL_STRIDE != 1:
        near = max(1, form.frames // TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1
        raise CacheError(
            f"frames is {form.frames}; it must be a multiple of {TEMPORAL_STRIDE} plus 1, for example {near}."
        )
    for name, value, least in (
        ("fps", form.fps, 0),
        ("windows", config.windows, 0),
        ("workers", config.workers, 1),
    ):
        if value < least:
            raise CacheError(f"{name} is {value}; it must be at least {least}.")
    if config.limit is not None and config.limit < 1:
        raise CacheError(f"limit is {config.limit}; it must be at least 1.")
    return form
