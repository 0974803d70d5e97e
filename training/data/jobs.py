"""Clips that are to be cached: each with its caption, its mask, and a key of all that decides its content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .captions import caption_of
from .clip import described
from .extraction import extraction_of
from .format import CacheConfig, Format, Job
from .left_out import LeftOut, VideoError
from .report import CacheReport
from .sources import PREFIX, ContentHashes, identify, listed_captions, masks_of

CACHED_NAME = re.compile(r"(.*-([0-9a-f]{12}))-w\d+\.safetensors$")


def share(job: Job, processes: int) -> int:
    """Number of the process, of `processes`, that caches a clip: a function of its content."""
    return int(job.source_hash[:PREFIX], 16) % processes


def plan(clips: Sequence[Path], config: CacheConfig, form: Format, report: CacheReport) -> list[Job]:
    """Reads captions and hashes. Clips that cannot be read, and further copies of the same content, go to the
    report. Raises TrainingError where a clip has no mask and all need one."""
    settings = settings_of(config, form)
    listed, masks, hashes = listed_captions(config), masks_of(clips, config), ContentHashes(config.out)
    known = {
        match[2]: match[1]
        for path in config.out.glob("*.safetensors")
        if (match := CACHED_NAME.match(path.name))
    }
    contents = identify(clips, hashes, known, config.workers)
    jobs: dict[str, Job] = {}
    for clip in clips:
        try:
            if isinstance(content := contents[clip], VideoError):
                raise content
            caption, origin = caption_for(clip, listed, config.name_captions)
            mask = {"mask": hashes.of(masks[clip])} if clip in masks else {}
        except VideoError as error:
            report.left_out.append(LeftOut.because(clip, error))
            continue
        if content in jobs:
            report.same.append((clip, jobs[content].path))
            continue
        key = described({**settings, **mask, "caption": caption, "content": content})
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", clip.stem if clip.is_file() else clip.name)[:60]
        stem = known.get(content[:PREFIX], f"{name}-{content[:PREFIX]}")
        jobs[content] = Job(
            path=clip, caption=caption, caption_from=origin, source_hash=content, key=key, stem=stem,
            mask=masks.get(clip),
        )  # fmt: skip
    hashes.save()
    return list(jobs.values())


def settings_of(config: CacheConfig, form: Format) -> dict[str, object]:
    """All settings that decide a clip's content."""
    return {
        **form.__dict__,
        **_extraction_key(config),
        "short": config.allow_short,
        "tokens": config.tokens,
        "store": config.store,
        "backbone": config.backbone,
        "source": encoders_of(config),
        **({"model": config.model} if config.model else {}),
        **({"first_frame": str(config.clip_vision)} if config.first_frame else {}),
        **({"scenes": True} if config.scenes else {}),
        **({"sizes": config.sizes} if config.sizes else {}),
    }


def _extraction_key(config: CacheConfig) -> dict[str, object]:
    """What a clip's key says of the choice of windows; consecutive ones as they were always written."""
    where = extraction_of(config.extraction, config.windows)
    if where.consecutive:
        return {"windows": getattr(where, "count", 0)}
    return {"extraction": where}


def caption_for(clip: Path, listed: Mapping[Path, str], by_name: bool) -> tuple[str, str]:
    """(caption, where it comes from: "file", "name" or "none"); `by_name`: names may be captions. Raises
    VideoError."""
    caption, origin = (listed[clip], "file") if clip in listed else caption_of(clip)
    return (caption, origin) if by_name or origin == "file" else ("", "none")


def encoders_of(config: CacheConfig) -> object:
    """Identity of the encoders in a clip's key. The toy world's come with the pack and change with it, so
    their content does."""
    if config.backbone != "toy" or config.source or config.vae:
        also = [path for path in (config.dit, config.text_also) if path]
        return config.source or [config.vae, config.text, *also]
    from ...encoders.base import digest_of
    from ..backbones.load import TOY_WEIGHTS

    return [digest_of([TOY_WEIGHTS / f"toy_{part}.safetensors"]) for part in ("vae", "text")]
