"""Clips that a command works on, and hashes of their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ...encoders.need import SAMPLED_BYTES
from ...methods.weights import write_atomically
from ..console import TrainingError
from .captions import CaptionList, read_list
from .finding import (
    ANIMATION_SUFFIXES,
    FILM_SUFFIXES,
    FRAME_SUFFIXES,
    Found,
    frame_files,
    is_inside,
    no_clip,
    scan,
)
from .format import CacheConfig
from .left_out import VideoError, printable
from .videos import content_hash, sampled_hash, template_clips

HASHES_FILE = ".content_hashes.json"
PREFIX = 12
"""Digits of a content hash in the names of cached clips."""


def gather(config: CacheConfig) -> Found:
    """The clips that `config` names, at most `limit` of them, and what was passed over on the way.

    Raises TrainingError for a list that cannot be used or templates that are not there, VideoError where
    there is no clip.
    """
    found = Found()
    if config.captions is not None:
        listed = caption_list(config)
        found = Found(sorted(listed.texts), listed.left_out)
    elif config.videos or config.templates is None:
        found = _without_masks(scan(config.videos), config.masks)
        if not found.clips and config.templates is None:
            raise no_clip(config.videos, found.left_out)
    if config.templates is not None:
        extra = template_clips(config.templates)
        if not extra:
            hint = "pip install comfyui-workflow-templates."
            raise TrainingError(
                f"no clip of ComfyUI's template packages matches {config.templates!r}; {hint}"
            )
        found.clips += extra
    found.clips = found.clips[: config.limit]
    return found


def _without_masks(found: Found, masks: Path | None) -> Found:
    """Clips and what was passed over, without the folder of masks, which may lie among them."""
    if masks is None:
        return found
    clips = [clip for clip in found.clips if not is_inside(clip, masks)]
    return Found(clips, [entry for entry in found.left_out if not is_inside(entry.path, masks)])


def caption_list(config: CacheConfig) -> CaptionList:
    """`config.captions`, read; empty where there is no list. Raises TrainingError where it cannot be used."""
    if config.captions is None:
        return CaptionList()
    if len(config.videos) > 1:
        raise TrainingError(
            "with a list of captions, give one folder of videos, the one its names are looked up in."
        )
    return read_list(config.captions, config.videos[0] if config.videos else None)


def listed_captions(config: CacheConfig) -> dict[Path, str]:
    """Video -> caption of `config.captions`; empty where there is no list. Raises TrainingError where it
    cannot be used."""
    return caption_list(config).texts


def masks_of(clips: Sequence[Path], config: CacheConfig) -> dict[Path, Path]:
    """Clip -> its mask in `config.masks`, in the same folder below it as the clip is below `videos`; {} where
    no masks are wanted. Raises TrainingError where the folder or a mask is missing, or a clip has two."""
    if config.masks is None:
        return {}
    if not config.masks.is_dir():
        raise TrainingError(f"masks is {config.masks}, which is no folder.")
    there = _by_name(config.masks)
    found = {clip: there.get(_place(clip, config), []) for clip in clips}
    missing = [clip for clip, masks in found.items() if not masks]
    if missing:
        more = f" (and none for {len(missing) - 1} more of {len(clips)} clips)" if len(missing) > 1 else ""
        name = printable(str(_place(missing[0], config)))
        raise TrainingError(
            f"masks is {config.masks}, which holds none for {printable(missing[0].name)}{more}; put a film or "
            f"picture {name}.* there, white where the loss counts, or leave the clip out."
        )
    for clip, masks in found.items():
        if len(masks) > 1:
            raise TrainingError(
                f"masks holds {masks[0].name} and {masks[1].name}, both for {printable(clip.name)}; keep one."
            )
    return {clip: masks[0] for clip, masks in found.items()}


def _place(clip: Path, config: CacheConfig) -> Path:
    """Name of a clip's mask below the folder of masks, without its suffix."""
    roots = [path if path.is_dir() else path.parent for path in config.videos]
    roots += [config.captions.parent] if config.captions is not None else []
    name = clip.stem if clip.is_file() else clip.name
    below = (clip.parent.relative_to(root) for root in roots if clip.parent.is_relative_to(root))
    return next(below, Path()) / name


def _by_name(folder: Path) -> dict[Path, list[Path]]:
    """Files and folders of frames below `folder`, by their names without suffix."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir():
            if any(inner.suffix.lower() in FRAME_SUFFIXES for inner in path.iterdir()):
                found.setdefault(name, []).append(path)
        elif path.suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES | FRAME_SUFFIXES:
            found.setdefault(name.with_suffix(""), []).append(path)
    return found


class ContentHashes:
    """`content_hash` of clips, remembered in a folder of cached clips: a film that did not change is read
    once, not at every run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / HASHES_FILE
        self.known: dict[str, str] = {}
        with suppress(OSError, ValueError):
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.known = (
                {key: value for key, value in known.items() if isinstance(value, str)}
                if isinstance(known, dict)
                else {}
            )
        self.changed = False

    def of(self, clip: Path) -> str:
        """The clip's content hash. Raises VideoError where it cannot be read."""
        stamp, longest = self._stamp(clip)
        if longest <= 2 * SAMPLED_BYTES:  # read as fast as looked up
            return content_hash(clip)
        if stamp not in self.known:
            self.known[stamp] = content_hash(clip)
            self.changed = True
        return self.known[stamp]

    @staticmethod
    def _stamp(clip: Path) -> tuple[str, int]:
        """(hash of names, lengths and times, which changes where a file of the clip is written; length of the
        longest file)."""
        longest, digest = 0, hashlib.blake2b(os.fsencode(os.path.abspath(clip)), digest_size=16)
        try:
            for path in frame_files(clip) if clip.is_dir() else [clip]:
                status = path.stat()
                longest = max(longest, status.st_size)
                digest.update(os.fsencode(path.name) + f":{status.st_size}:{status.st_mtime_ns}\n".encode())
        except OSError as error:
            raise VideoError(f"{clip.name} cannot be read ({error.strerror}).", "unreadable") from error
        return digest.hexdigest(), longest

    def save(self) -> None:
        """Writes what was added; a folder that takes no file costs only the time to read films again."""
        if self.changed:
            with suppress(OSError):
                write_atomically(self.path, json.dumps(self.known, sort_keys=True).encode())


def identify(
    clips: Sequence[Path], hashes: ContentHashes, cached: Collection[str] | None, workers: int = 2
) -> Mapping[Path, str | VideoError]:
    """Identity of each clip: its content hash, or the error that reading it raised.

    Earlier versions hashed the first and last MiB of a file alone. Clips that they cached, those whose
    sampled hash starts with one of `cached` (`PREFIX` digits each), keep that hash, so that nothing is
    encoded again; where several clips share it, the first keeps it, and the others go by all of their
    content. `cached` None reads whole files only to tell such clips apart.
    """

    def sampled(clip: Path) -> str | VideoError:
        try:
            return sampled_hash(clip)
        except VideoError as error:
            return error

    def whole(clip: Path) -> str | VideoError:
        try:
            return hashes.of(clip)
        except VideoError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        found: dict[Path, str | VideoError] = dict(zip(clips, pool.map(sampled, clips)))
        groups: dict[str, list[Path]] = defaultdict(list)
        for clip, name in found.items():
            if isinstance(name, str):
                groups[name].append(clip)
        old = {name for name in groups if cached is None or name[:PREFIX] in cached}
        unknown = [
            clip for name, group in groups.items() for clip in group if name not in old or len(group) > 1
        ]
        exact = dict(zip(unknown, pool.map(whole, unknown)))
    for name, group in groups.items():
        for clip in group:
            if clip in exact and (name not in old or exact[clip] != exact[group[0]]):
                found[clip] = exact[clip]
    hashes.save()
    return found
