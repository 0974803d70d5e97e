"""Frames, size and rate that a backbone's clips are cached in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...methods.video_models import MODELS, SPACES, TOY, FramesRule, VideoModel
from ...toyworld.canvas import FRAMES, SIZE
from ..backbones.families import KINDS, FamilyName
from ..console import TrainingError
from .extraction import extraction_of
from .scenes import check_scenes


@dataclass(frozen=True, kw_only=True)
class Format:
    """Size, length and rate of a backbone's clips."""

    width: int
    height: int
    frames: int
    fps: float
    """Maximum frames per second; 0 keeps every frame."""


FAMILY_MODELS = {name: kind.model for name, kind in KINDS.items()}
"""Family of backbones -> the model whose size, length and rate its clips are cut to."""
TOY_SIDES = 16
TOY_FORMAT = Format(width=SIZE, height=SIZE, frames=FRAMES, fps=0)


def usual_format(name: str) -> Format:
    """The size, length and rate of a family ("wan", "cogvideox", "toy") or of a model of the table."""
    if name == TOY.name:
        return TOY_FORMAT
    model = MODELS[FAMILY_MODELS.get(name, name)]
    width, height, frames = model.size
    return Format(width=width, height=height, frames=frames, fps=model.fps)


def frames_rule(config: CacheConfig) -> FramesRule:
    """Compression of time by the chosen model's VAE."""
    if config.backbone == TOY.name and config.model is None:
        return TOY.frames
    return SPACES[model_of(config).space].frames


def model_of(config: CacheConfig) -> VideoModel:
    """The row of the table. Raises TrainingError where there is none of that name."""
    name = config.model or FAMILY_MODELS[config.backbone]
    if name not in MODELS:
        raise TrainingError(f"model {name!r} is unknown; choose one of {', '.join(MODELS)}.")
    return MODELS[name]


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
    masks: Path | None = None
    """Folder with a film or picture of each clip's name, in folders as the clips are (ai-toolkit's and
    diffusion-pipe's mask_path): white where the denoising loss is to count, black where not. A film has its
    clip's frames, one for one; a picture holds for all. Kept at the latent's resolution, where `finetune
    --mask-min-value` finds them."""
    templates: str | None = None
    """Also take the animated clips of ComfyUI's installed template packages whose names match this, for
    example '*wan*'."""
    limit: int | None = None
    """Maximum number of clips (the first by name)."""
    backbone: FamilyName = "wan"
    """Whose VAE and text encoder to use."""
    model: str | None = None
    """Instead of backbone: a row of the table of video models (ltx2.3, h3, hunyuan_video1.5, wan2.2-5b, ...),
    which ComfyUI's own loaders encode: `vae` and `text` are files as ComfyUI has them, and COMFYUI_PATH names
    the installation. Without `text` the clips have no prompts."""
    source: str | None = None
    """Diffusers folder or hub id of the backbone; left out, the family's smallest model."""
    vae: Path | None = None
    """A VAE file as ComfyUI's models/vae holds it, instead of `source`; with a backbone it needs `text`
    too."""
    text: Path | None = None
    """A text encoder file as ComfyUI's models/text_encoders holds it (fp16 or bf16)."""
    text_also: Path | None = None
    """A second text file: HunyuanVideo 1.5's byT5, and with `model` what ComfyUI's loader takes beside the
    first (LTX-2's checkpoint)."""
    dit: Path | None = None
    """CogVideoX with `vae` and `text`: the transformer's file, of which only one tensor's shape is read. 2B
    and 5B share a VAE file, but not the scale of their latents; this says which it is."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where the text encoder file carries none (T5, Qwen2.5-VL)."""
    width: int | None = None
    """Pixels, a multiple of 16 (32 for LTX, H3 and Wan 2.2 5B); clips are cropped to the aspect, then
    resized. Left out: 832 (wan), 720 (cogvideox), 64 (toy), or the usual value of `model`."""
    height: int | None = None
    """Pixels, a multiple as width is. Left out: 480 (wan, cogvideox), 64 (toy), or the usual value."""
    frames: int | None = None
    """Frames per clip: a multiple of 4 plus 1; of 8 plus 1 for LTX and Cosmos 1, of 6 plus 1 for Mochi, of 17
    plus 5 for H3. Left out: 81 (wan), 49 (cogvideox), 33 (toy), or the usual value of `model`."""
    fps: float | None = None
    """Drop frames of faster clips down to this rate, double none; 0 keeps all. Left out: 16 (wan), 8
    (cogvideox), 0 (toy), or the model's own."""
    sizes: list[str] = field(default_factory=list)
    """Further sizes, as 480x832 640x640: a clip gets the one whose proportions are nearest to its own, in
    place of being cropped to width and height. A fine-tune takes a folder of several sizes, a motion
    predictor one."""
    scenes: bool = False
    """Look for cuts between scenes, which no window may span (needs the extra `scenes`). Clips are then
    decoded twice."""
    windows: int = 1
    """Maximum number of consecutive windows of `frames` frames per video, from its start; 0 for all."""
    extraction: str | None = None
    """Windows that are taken from a video, in place of `windows`: "head count=1" (consecutive, from its
    start), "all" (consecutive, to its end), "uniform count=4" (at even distances over the film) or "slide
    stride=40" (one every so many frames; without stride, every half window)."""
    allow_short: bool = False
    """Keep clips shorter than `frames`, cut to the longest length that fits, instead of skipping them."""
    name_captions: bool = True
    """Use a clip's file name as its caption where there is no .txt of the same name beside it; otherwise its
    caption is empty."""
    tokens: bool = False
    """Also store all prompt tokens, which fine-tuning needs and the motion predictor does not."""
    first_frame: bool = False
    """Also store what image-to-video models are given: the first frame followed by grey, encoded. It doubles
    the size. Wan 2.2 5B needs nothing but the clip."""
    clip_vision: Path | None = None
    """With `first_frame` and `vae`: a CLIP vision file as ComfyUI's models/clip_vision holds it, which Wan
    2.1 image-to-video reads too. A source folder has its own."""
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
    mask: Path | None = None


def sides_of(config: CacheConfig) -> int:
    """The number that widths and heights are multiples of."""
    toy = config.backbone == TOY.name and config.model is None
    return TOY_SIDES if toy else model_of(config).side_multiple


def sizes_of(config: CacheConfig) -> list[tuple[int, int]]:
    """`config.sizes` as widths and heights. Raises TrainingError where one is no size, or does not fit the
    VAE."""
    found, sides = [], sides_of(config)
    for text in config.sizes:
        if (match := re.fullmatch(r"(\d+)x(\d+)", text)) is None:
            raise TrainingError(f"sizes has {text!r}; write width x height, as 480x832.")
        size = int(match[1]), int(match[2])
        if any(value < sides or value % sides for value in size):
            raise TrainingError(f"sizes has {text}; both numbers must be multiples of {sides}.")
        found.append(size)
    return found


def format_of(config: CacheConfig) -> Format:
    """The format clips are cut to. Raises TrainingError where a number does not fit the VAE."""
    sides, _ = sides_of(config), sizes_of(config)
    if config.scenes:
        check_scenes()
    if config.windows >= 0:
        extraction_of(config.extraction, config.windows)
    usual, rule = usual_format(config.model or config.backbone), frames_rule(config)
    form = Format(
        **{name: getattr(usual if getattr(config, name) is None else config, name) for name in usual.__dict__}
    )
    for name, value in (("width", form.width), ("height", form.height)):
        if value < sides or value % sides:
            near = max(1, round(value / sides)) * sides
            raise TrainingError(f"{name} is {value}; it must be a multiple of {sides}, for example {near}.")
    if not rule.fits(form.frames):
        raise TrainingError(
            f"frames is {form.frames}; it must be {rule}, for example {rule.nearest(form.frames)}."
        )
    for name, value, least in (
        ("fps", form.fps, 0),
        ("windows", config.windows, 0),
        ("workers", config.workers, 1),
    ):
        if value < least:
            raise TrainingError(f"{name} is {value}; it must be at least {least}.")
    if config.limit is not None and config.limit < 1:
        raise TrainingError(f"limit is {config.limit}; it must be at least 1.")
    return form
