"""`latent-physics cache`: a folder of videos -> latents and prompt embeddings, one safetensors file per clip.

Reading is done by threads that feed one encoder. A clip that cannot be read is reported and skipped; a run
that was stopped, or killed, is resumed by the same command.
"""

from __future__ import annotations

import gc
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...methods.lamo import pool_tokens
from ...methods.weights import WeightsError, read_info
from ..backbones.first_frame import FirstFrame
from ..console import ProgressLine, StopRequest, TrainingError, remove_leftovers, saving
from ..loop.processes import place_among
from .clip import KIND, ClipInfo, read_clip_info, write_clip
from .extraction import extraction_of
from .format import CacheConfig, Format, Job, format_of
from .jobs import CACHED_NAME, plan, share
from .left_out import LeftOut, VideoError, printable
from .masks import latent_mask
from .reader import read_ahead
from .report import CacheReport, write_skipped
from .shards import check_no_shards
from .videos import Window

TEXT_BATCH = 8


class TextEncoder(Protocol):
    """The part of a backbone that embeds captions."""

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` and mask `B L`."""
        ...


class VideoEncoder(Protocol):
    """The part of a backbone that encodes frames."""

    latent_space: str

    def encode_video(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C T' H' W'`."""
        ...

    def encode_first_frame(self, video: Tensor) -> FirstFrame:
        """The first frame of `video` as an image-to-video model is given it."""
        ...


def cache_clips(
    clips: Sequence[Path],
    config: CacheConfig,
    load_text: Callable[[], TextEncoder],
    load_vae: Callable[[], VideoEncoder],
    *,
    left_out: Sequence[LeftOut] = (),
    stop: StopRequest | None = None,
    progress: ProgressLine | None = None,
) -> CacheReport:
    """Caches `clips` into `config.out`. The text encoder is loaded first, used and freed before the VAE is
    loaded.

    `left_out`: what was passed over while the clips were found, for the report.

    `load_text` and `load_vae` are called only where something is left to do. Raises TrainingError where the
    settings do not fit the backbone or `out` belongs to another latent space, and TrainingError where a file
    cannot be written; finished clips stay.
    """
    form = format_of(config)
    stop = stop or StopRequest()
    progress = progress or ProgressLine("cache")
    config.out.mkdir(parents=True, exist_ok=True)
    check_no_shards(config.out)
    number, processes = place_among()
    if processes == 1:  # another one may be writing what looks left over
        remove_leftovers(config.out)
    report = CacheReport(left_out=list(left_out))
    jobs = plan(clips, config, form, report)
    own = [job for job in jobs if share(job, processes) == number]
    report.elsewhere = len(jobs) - len(own)
    pending = [job for job in own if not _finished(job, config.out, report)]
    progress.say(
        f"{len(clips)} clips: {report.finished_before} cached before, {len(report.same)} double, "
        f"{len(report.left_out)} left out, {len(pending)} to do at {form.width}x{form.height}, "
        f"{form.frames} frames{f', in process {number + 1} of {processes}' if processes > 1 else ''}."
    )
    if pending and not stop.asked:
        _say_captions(pending, progress)
        conds = embed_captions(pending, load_text(), config, progress, report)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _encode_all(pending, conds, load_vae(), config, form, report, stop, progress)
    progress.close()
    write_skipped(config.out, report.left_out, number)
    return report


def _finished(job: Job, out: Path, report: CacheReport) -> bool:
    """Whether every window of the clip is there, made with the same settings."""
    number = 0
    while (info := read_clip_info(_place(out, job, number))) is not None and info.key == job.key:
        if info.last:
            report.finished_before += 1
            return True
        number += 1
    return False


def _place(out: Path, job: Job, window: int) -> Path:
    return out / f"{job.stem}-w{window:03}.safetensors"


def _say_captions(pending: Sequence[Job], progress: ProgressLine) -> None:
    named = [job for job in pending if job.caption_from == "name"]
    if named:
        progress.say(
            f"{len(named)} of {len(pending)} clips have no .txt caption beside them; their file names are "
            f"used, "
            f"for example {named[0].caption!r} for {printable(named[0].path.name)}."
        )


def embed_captions(
    pending: Iterable[Job],
    text: TextEncoder,
    config: CacheConfig,
    progress: ProgressLine,
    report: CacheReport,
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Caption -> (pooled embedding `D`, tokens `L D` or None). Pooled: the mean over the attention mask, in
    float32."""
    captions = sorted({job.caption for job in pending})
    store = getattr(torch, config.store)
    is_cut = getattr(text, "is_cut", None)
    report.cut_captions = sum(is_cut(captions)) if is_cut else None
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for start in range(0, len(captions), TEXT_BATCH):
        part = captions[start : start + TEXT_BATCH]
        tokens, mask = text.embed_prompts(part)
        pooled = getattr(text, "pool", pool_tokens)(tokens, mask)
        for row, caption in enumerate(part):
            if not torch.isfinite(pooled[row]).all():
                raise TrainingError(
                    f"the embedding of the caption {caption!r} is not finite; use a bf16 or fp32 text "
                    f"encoder."
                )
            found[caption] = (
                pooled[row].cpu(),
                tokens[row][mask[row].bool()].to("cpu", store) if config.tokens else None,
            )
        progress.show(
            min(0.99, (start + len(part)) / len(captions)), f"{start + len(part)}/{len(captions)} captions"
        )
    return found


def _encode_all(
    pending: Sequence[Job],
    conds: dict[str, tuple[Tensor, Tensor | None]],
    vae: VideoEncoder,
    config: CacheConfig,
    form: Format,
    report: CacheReport,
    stop: StopRequest,
    progress: ProgressLine,
) -> None:
    """Encodes clips as the reading threads deliver them."""
    _check_folder(config.out, vae.latent_space)
    done, warned, there = 0, False, _cached_by_stem(config.out)
    clips = type(progress)(
        "cache", progress.stream, progress.every
    )  # its clock starts here, not with the captions

    skipped: set[Path] = set()

    def skip(job: Job, reason: VideoError) -> None:
        skipped.add(job.path)
        report.left_out.append(LeftOut.because(job.path, reason))
        clips.say(f"skipped: {reason}")

    def said() -> str:
        return f"{done}/{len(pending)} clips, {len(report.written)} files, {len(report.left_out)} skipped"

    with closing(read_ahead(pending, config, form, stop)) as read:
        for job, item in read:
            if isinstance(item, VideoError):
                skip(job, item)
            elif isinstance(item, Window):
                report.corrupt_windows += item.corrupt if item.last else 0
                try:
                    path = encode_window(job, item, conds[job.caption], vae, config)
                except VideoError as error:
                    skip(job, error)
                    continue
                if path is not None:
                    report.written.append(path)
                    clips.show(done / len(pending), said())
                    warned = warned or _warn_disk(path, len(pending) - done, clips)
            else:
                done += 1
                if job.path not in skipped:
                    _remove_stale(there[job.stem], job)
                clips.show(done / len(pending), said())
    report.stopped = stop.asked and done < len(pending)
    clips.close()


def _check_folder(out: Path, latent_space: str) -> None:
    """Raises TrainingError where `out` holds clips of another latent space."""
    for path in sorted(out.glob("*.safetensors")):
        try:
            info = read_info(path)
        except WeightsError:
            continue
        if info.kind == KIND and info.latent_space != latent_space:
            raise TrainingError(
                f"{out} holds clips of {info.latent_space}, this backbone makes {latent_space}: use another "
                f"folder."
            )
        return


def encode_window(
    job: Job, window: Window, cond: tuple[Tensor, Tensor | None], vae: VideoEncoder, config: CacheConfig
) -> Path | None:
    """Encodes and writes one window; returns its path, or None where it is there already.

    Raises VideoError where the latent is not finite, TrainingError where memory runs out or no file
    can be written.
    """
    path = _place(config.out, job, window.index)
    form = format_of(config)
    consecutive = extraction_of(config.extraction, config.windows).consecutive
    there = read_clip_info(path)
    if there is not None and there.key == job.key and there.last == window.last:
        return None
    frames, height, width = window.frames.shape[:3]
    video = torch.from_numpy(window.frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255  # 1 3 T H W
    try:
        latent = vae.encode_video(video)[0]
        first = vae.encode_first_frame(video) if config.first_frame else FirstFrame()
    except torch.OutOfMemoryError as error:
        shape = f"{width}x{height} with {frames} frames"
        raise TrainingError(
            f"{shape} does not fit into the GPU's memory; use a smaller size or --device cpu."
        ) from error
    store = getattr(torch, config.store)
    latent = latent.to("cpu", store)
    if not torch.isfinite(latent).all():
        raise VideoError(f"{job.path.name}: its latent is not finite in {config.store}.")
    info = ClipInfo(
        source=printable(job.path.name),
        source_hash=job.source_hash,
        key=job.key,
        caption=job.caption,
        caption_from=job.caption_from,
        window=window.index,
        last=window.last,
        start=window.start,
        start_frame=None if consecutive else window.start_frame,
        frames=frames,
        width=width,
        height=height,
        fps=window.fps,
        fps_limit=form.fps,
        cuts=window.cuts,
    )
    with saving(path.name, "the clips finished so far are safe"):
        write_clip(
            path,
            latent,
            cond[0].to(store),
            info,
            vae.latent_space,
            tokens=cond[1],
            mask=None if window.mask is None else latent_mask(window.mask, latent.shape).to(store),
            first={
                name: value[0].to("cpu", store)
                for name in ("latent", "vision")
                if (value := getattr(first, name)) is not None
            },
        )
    return path


def _warn_disk(path: Path, clips_left: int, progress: ProgressLine) -> bool:
    """Warns once if the remaining clips will not fit on the disk."""
    need, free = path.stat().st_size * clips_left, shutil.disk_usage(path.parent).free
    if need > free:
        sizes = f"about {need / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
        progress.say(f"warning: the clips still to come need {sizes}.")
    return need > free


def _cached_by_stem(out: Path) -> dict[str, list[Path]]:
    """The cached files of each clip, listed once: a folder may hold sixty thousand."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in out.glob("*.safetensors"):
        if match := CACHED_NAME.match(path.name):
            found[match[1]].append(path)
    return found


def _remove_stale(paths: Iterable[Path], job: Job) -> None:
    """Deletes those of a clip's windows that an earlier run with other settings left."""
    for path in paths:
        info = read_clip_info(path)
        if info is None or info.key != job.key:
            path.unlink(missing_ok=True)
