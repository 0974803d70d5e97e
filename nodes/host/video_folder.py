"""A folder of videos in ComfyUI's input folder -> latents to train on, encoded by the VAE and CLIP on the
wires.

It is the work of `latent-physics cache`, with ComfyUI's encoders. Which folder it is may come from a
stranger's workflow: nothing outside the input folder is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...methods.video_models import TOY, main_model

if TYPE_CHECKING:
    from ...training.data.cache import TextEncoder
    from ...training.data.format import CacheConfig

NONE = "none"
"""Menu entry for no folder."""
FIRST = "ComfyUI's own clips"
"""Menu entry for the generated clips in ComfyUI's template packages, which everybody has."""
LISTED = 1000
"""Maximum number of folders that are listed."""
DEPTH = 6
"""Folders deeper than this are not listed."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Form of the cut clips; 0 takes the latent space's usual value."""

    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0


def list_folders() -> list[str]:
    """Names for the menu: sub-folders of ComfyUI's input folder that hold clips, themselves or further down.
    Links are not followed."""
    root = Path(folder_paths.get_input_directory())
    found: set[str] = set()
    for place, folders, names in os.walk(root):
        here = Path(place).relative_to(root)
        folders[:] = (
            sorted(name for name in folders if not name.startswith(".")) if len(here.parts) < DEPTH else []
        )
        if here.parts and _holds_clip(names):
            found |= {part.as_posix() for part in [here, *here.parents] if part.parts}
        if len(found) >= LISTED:
            break
    own = (NONE, FIRST)
    return [*own, *[name for name in sorted(found) if name not in own and _fault(name) is None]]


def _holds_clip(names: Sequence[str]) -> bool:
    from ...training.data.finding import ANIMATION_SUFFIXES, FILM_SUFFIXES, FRAME_SUFFIXES

    endings = [os.path.splitext(name)[1].lower() for name in names if not name.startswith(".")]
    films = FILM_SUFFIXES | ANIMATION_SUFFIXES
    return (
        any(ending in films for ending in endings) or sum(ending in FRAME_SUFFIXES for ending in endings) >= 2
    )


def is_chosen(name: str | None) -> bool:
    """Whether the menu's value names a folder."""
    return name not in (None, "", NONE)


def find_folder(name: str) -> Path:
    """The sub-folder `name` of ComfyUI's input folder, named with forward slashes.

    Raises ValueError, in one sentence, for a name that is absolute, could lead elsewhere on any system, or
    leads elsewhere by a link, and for a folder that is not there.
    """
    from ...training.data.videos import is_inside

    fault = _fault(name)
    if fault:
        raise ValueError(
            f"{name!r} cannot be the video folder ({fault}): give the name of a folder in ComfyUI's input "
            f"folder."
        )
    root = Path(folder_paths.get_input_directory())
    folder = root / name
    if not is_inside(folder, root):
        raise ValueError(
            f"{name!r} leads out of ComfyUI's input folder by a link: put the videos themselves there."
        )
    if not folder.is_dir():
        raise ValueError(
            f"ComfyUI's input folder has no folder {name!r}: put it there, press R, and choose it."
        )
    return folder


def _fault(name: str) -> str | None:
    """Fault of a folder's name, on any system; None where it is fine."""
    if re.search(r"[\\:\x00-\x1f]", name):
        return "it has a backslash, a colon or a control character"
    if name.startswith("/"):
        return "it is absolute"
    parts = name.split("/")
    if "" in parts or any(part in (".", "..") for part in parts):
        return "it has an empty part, '.' or '..'"
    if any(
        part.startswith(".") or part.endswith((".", " ")) for part in parts
    ):  # Windows drops what ends a name
        return "a part of it starts with a dot, or ends with a dot or a space"
    return None


def check_folder(name: str) -> None:
    """Raises ValueError, in one sentence, where the menu's value `name` cannot be learned from."""
    if name != FIRST:
        find_folder(name)
        return
    from ...training.data.first import check_installed

    check_installed()


def clips_of(name: str, space: str) -> tuple[list[Path], list[str]]:
    """(clips of the menu's value `name` for a latent space, a sentence for each thing that is left out).

    Raises ValueError, in one sentence, where there is none.
    """
    if name != FIRST:
        return clips_in(find_folder(name))
    from ...training.data.first import first_clips

    found = first_clips(space)
    return found.clips, [entry.reason for entry in found.left_out]


def clips_in(folder: Path) -> tuple[list[Path], list[str]]:
    """(clips in a folder, a sentence for each thing that is left out: what cannot be read, and links out of
    the input folder).

    Raises VideoError where there is no clip at all.
    """
    from ...training.data.finding import no_clip, scan
    from ...training.data.left_out import printable
    from ...training.data.videos import leads_out

    root = Path(folder_paths.get_input_directory())
    found = scan([folder], inside=root)
    if not found.clips:
        raise no_clip([folder], found.left_out)
    clips, left_out = [], [entry.reason for entry in found.left_out]
    for clip in found.clips:
        stray = leads_out(clip, root)
        if stray is None:
            clips.append(clip)
        else:
            message = "is a link that leads out of ComfyUI's input folder."
            left_out.append(printable(f"{clip.name} was left out: {stray.name} {message}"))
    return clips, left_out


def fingerprint(name: str | None) -> str:
    """Changes when a file of the folder does, so that ComfyUI runs the node again."""
    from ...training.data.videos import caption_file, frame_files

    if not is_chosen(name) or name == FIRST:  # what packages install stays as it is
        return ""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for clip in clips_in(find_folder(name))[0]:
            for file in [*(frame_files(clip) if clip.is_dir() else [clip]), caption_file(clip)]:
                status = file.stat() if file.exists() else None
                digest.update(
                    os.fsencode(file) + f"\n{status and (status.st_mtime_ns, status.st_size)}\n".encode()
                )
    except (OSError, ValueError):
        return "unreadable"
    return digest.hexdigest()


def cache_folder(
    name: str,
    space: str,
    vae: Any,
    text: TextEncoder,
    cut: Cut,
    *,
    out: Path,
    to_sampled: Callable[[dict[str, Any], str], Tensor],
    tokens: bool = False,
    node: str = "Train Motion Predictor",
) -> list[str]:
    """Encodes every clip of the menu's value `name` that can be read into files in `out`, as the cache
    command does; returns a sentence for each that cannot.

    `text` reads captions, `to_sampled` turns a LATENT of the VAE into what a model of `space` samples,
    `B C T H W`; tokens: keep the prompts' tokens too. ComfyUI's cancel button ends it. Raises ValueError, in
    one sentence, where nothing can be used or a number does not fit.
    """
    from ...training.data.cache import cache_clips
    from ...training.data.left_out import printable

    config = replace(cache_config(space, cut, out, name), tokens=tokens)
    clips, skipped = clips_of(name, space)
    video = ComfyVideo(vae, space, to_sampled)
    if clips:
        report = cache_clips(
            clips, config, lambda: text, lambda: video, stop=_stop(), progress=_progress(node)
        )
        comfy.model_management.throw_exception_if_processing_interrupted()
        skipped += [reason for _, reason in report.skipped]
        skipped += [
            printable(f"{copy.name} has the same content as {taken.name}.") for copy, taken in report.same
        ]
    if not clips or not report.written:
        raise ValueError(f"no clip in {name} can be used; the first: {skipped[0]}")
    return skipped


def cache_config(space: str, cut: Cut, out: Path, name: str = NONE) -> CacheConfig:
    """The settings of the cache command for the menu's value `name`. Raises ValueError where a number does
    not fit."""
    from ...training.data.first import first_size
    from ...training.data.format import CacheConfig, format_of

    model = main_model(space)
    width, height, frames = first_size(space) if name == FIRST else (None, None, None)
    config = CacheConfig(
        out=out,
        backbone="toy" if space == TOY.name else "wan",
        model=None if model is None else model.name,
        source="ComfyUI's encoders",
        width=cut.width or width,
        height=cut.height or height,
        frames=cut.frames or frames,
        fps=cut.fps or None,
        allow_short=name == FIRST,
        name_captions=name != FIRST,
    )
    format_of(config)
    return config


class ComfyText:
    """A pooled prompt as the cache command's text encoder gives it: of a single token, which pooling leaves
    as it is."""

    def __init__(self, embed: Callable[[str], Tensor]) -> None:
        self.embed = embed

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = []
        for prompt in prompts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows.append(self.embed(prompt))
        return torch.stack(rows)[:, None], torch.ones(len(rows), 1, dtype=torch.bool)


class ComfyVideo:
    """ComfyUI's VAE as the cache command's video encoder, on the device that ComfyUI chooses."""

    def __init__(self, vae: Any, space: str, to_sampled: Callable[[dict[str, Any], str], Tensor]) -> None:
        self.vae, self.latent_space, self.to_sampled = vae, space, to_sampled

    def encode_video(self, video: Tensor) -> Tensor:
        """`1 3 T H W` in [0, 1] -> `1 C T' H' W'` as a model samples it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.to_sampled({"samples": self.vae.encode(video[0].permute(1, 2, 3, 0))}, self.latent_space)


def _progress(node: str) -> Any:
    """The cache command's progress line, shown as ComfyUI's bar and log."""
    from ...training.console import ProgressLine

    class Bar(ProgressLine):
        """Every clip that is done, or skipped, is a moment at which cancelling works."""

        def __init__(self, *_: Any) -> None:
            super().__init__("encoding")
            self.bar = comfy.utils.ProgressBar(1000)

        def show(self, fraction: float, text: str, left: float | None = None) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.bar.update_absolute(int(1000 * fraction), 1000)

        def say(self, text: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            logging.info("%s: %s", node, text)

    return Bar()


def _stop() -> Any:
    """The cache command's stop request, asked by ComfyUI's cancel button; clips that are being read end soon,
    too."""
    from ...training.console import StopRequest

    class Cancelled(StopRequest):
        @property
        def asked(self) -> bool:
            return comfy.model_management.processing_interrupted()

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    return Cancelled()
