"""`latent-physics cache --check`: what would be trained on, and what is left out, without encoding
anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..console import ProgressLine, StopRequest, TrainingError
from .contact_sheet import Tile, write_sheets
from .finding import Found
from .format import CacheConfig, Job, format_of
from .jobs import caption_for
from .left_out import LeftOut, VideoError, printable
from .loaders import encoder_source
from .reader import read_ahead
from .report import SKIPPED_FILE, left_out_lines, write_skipped
from .sources import ContentHashes, identify, listed_captions, masks_of
from .videos import Window

THUMBNAIL = 160
"""Width of a picture on the contact sheet."""


@dataclass
class Check:
    """Result of `check_clips`."""

    clips: int = 0
    """Number of clips of which at least one window can be cached."""
    windows: int = 0
    frames: int = 0
    """Number of frames in all windows."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Size of the clips as they are shown -> number of clips."""
    rates: Counter[str] = field(default_factory=Counter)
    """Frames per second of the windows, after thinning -> number of clips."""
    captions: Counter[str] = field(default_factory=Counter)
    """"file", "name" or "none" -> number of clips."""
    cut: int | None = None
    """Number of captions longer than the text encoder reads; None where its tokenizer is not on this disk."""
    corrupt: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    sheets: list[Path] = field(default_factory=list)
    stopped: bool = False


def check_clips(
    found: Found,
    config: CacheConfig,
    *,
    stop: StopRequest | None = None,
    progress: ProgressLine | None = None,
) -> Check:
    """Reads every clip as caching would, and writes skipped.txt and the contact sheet into `config.out`.

    Raises TrainingError where the settings do not fit the backbone, or the disk is full.
    """
    form, stop = format_of(config), stop or StopRequest()
    progress = progress or ProgressLine("check")
    config.out.mkdir(parents=True, exist_ok=True)
    check = Check(left_out=list(found.left_out))
    jobs = _jobs(found, config, check)
    done: set[Path] = set()
    with closing(read_ahead(jobs, config, form, stop)) as read:
        for job, item in read:
            if isinstance(item, VideoError):
                check.left_out.append(LeftOut.because(job.path, item))
            elif isinstance(item, Window):
                _count(check, job, item)
            else:
                done.add(job.path)
                progress.show(
                    len(done) / len(jobs), f"{len(done)}/{len(jobs)} clips, {len(check.left_out)} left out"
                )
    progress.close()
    check.stopped = stop.asked and len(done) < len(jobs)
    check.tiles.sort(key=lambda tile: tile.path)
    check.cut = _count_cut(check, config)
    write_skipped(config.out, check.left_out)
    check.sheets = write_sheets(config.out, check.tiles)
    return check


def _jobs(found: Found, config: CacheConfig, check: Check) -> list[Job]:
    """The clips to read, each content once."""
    listed, masks = listed_captions(config), masks_of(found.clips, config)
    contents = identify(found.clips, ContentHashes(config.out), None, config.workers)
    jobs: dict[str, Job] = {}
    for clip in found.clips:
        try:
            if isinstance(content := contents[clip], VideoError):
                raise content
            if content in jobs:
                kept = jobs[content].path.name
                message = f"{clip.name} has the same content as {kept}; kept {kept}."
                raise VideoError(message, "duplicate")
            caption, origin = caption_for(clip, listed, config.name_captions)
        except VideoError as error:
            check.left_out.append(LeftOut.because(clip, error))
        else:
            jobs[content] = Job(
                path=clip, caption=caption, caption_from=origin, source_hash=content, key="", stem="",
                mask=masks.get(clip),
            )  # fmt: skip
    return list(jobs.values())


def _count(check: Check, job: Job, window: Window) -> None:
    check.windows += 1
    check.frames += len(window.frames)
    if window.last:
        check.corrupt += window.corrupt
    if window.index == 0:
        check.clips += 1
        check.sizes["{}x{}".format(*window.source_size)] += 1
        check.rates[f"{window.fps:g}" if window.fps else "unknown"] += 1
        check.captions[job.caption_from] += 1
        check.tiles.append(Tile(job.path, job.caption, _thumbnail(window.frames[0])))


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def _count_cut(check: Check, config: CacheConfig) -> int | None:
    from ..backbones.limit import load_is_cut

    if config.model:
        return None  # ComfyUI's tokenizers do not say it
    is_cut = load_is_cut(config.backbone, encoder_source(config))
    return None if is_cut is None else sum(is_cut([tile.caption for tile in check.tiles]))


def table(check: Check, config: CacheConfig) -> Iterator[str]:
    """The lines that the command prints."""
    form = format_of(config)
    cut = "unknown (its tokenizer is not on this disk)" if check.cut is None else check.cut
    rows: dict[str, Any] = {
        "clips": check.clips,
        "windows": f"{check.windows} of at most {form.frames} frames at {form.width}x{form.height}, "
        f"{check.frames} frames in all",
        "corrupt or missing": f"{check.corrupt} windows passed over",
        "sizes": _listed(check.sizes),
        "frames per second": _listed(check.rates),
        "captions": f"{check.captions['file']} found, {check.captions['name']} missing (the file's name is "
        f"used), "
        f"{check.captions['none']} missing (empty)",
        "captions cut": cut,
        "contact sheet": ", ".join(map(str, check.sheets)) or "none",
    }
    yield from (printable(f"{name:20}{value}") for name, value in rows.items())
    yield from left_out_lines(check.left_out)


def _listed(counts: Counter[str]) -> str:
    most = [f"{value} ({count})" for value, count in counts.most_common(8)]
    rest = len(counts) - len(most)
    return ", ".join(most + [f"{rest} others"] * (rest > 0)) or "none"


def show_check(check: Check, config: CacheConfig) -> int:
    """Prints the table; returns the exit status. Raises TrainingError where no clip can be used."""
    lines: Iterable[str] = table(check, config)
    print("\n".join(lines))
    if check.left_out:
        print(f"All reasons: {config.out / SKIPPED_FILE}")
    if check.stopped:
        print("Stopped: not every clip was read.")
        return 130
    if not check.clips:
        first = f"; the first: {check.left_out[0].reason}" if check.left_out else "."
        raise TrainingError(f"none of the {len(check.left_out)} clips can be used{first}")
    return 0
