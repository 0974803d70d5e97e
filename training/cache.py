"""`latent-physics cache`: a folder of videos -> latents and prompt embeddings, one safetensors file per clip.

Reading is done by threads that feed one encoder. A clip that cannot be read is reported and skipped; a run that was stopped,
or killed, goes on where it was when the same command is given again.
"""

from __future__ import annotations

import gc
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..methods.lamo import pool_tokens
from ..methods.weights import WeightsError, read_info, write_atomically
from . import cli
from .dataset import KIND, ClipInfo, described, read_clip_info, write_clip
from .run import ProgressLine, RunError, StopRequest, remove_leftovers, saving
from .trainer_captions import CaptionError, read_captions
from .videos import VideoError, Window, caption_of, content_hash, find_clips, template_clips, windows

TEXT_BATCH = 8
CACHED_NAME = re.compile(r"(.*-([0-9a-f]{12}))-w\d+\.safetensors$")


class CacheError(ValueError):
    """Caching cannot start or go on. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How clips are cut for a backbone."""

    width: int
    height: int
    frames: int
    fps: float
    """At most so many frames per second; 0 keeps every frame."""


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
    """Videos, or folders searched to any depth: mp4, webm, mov, mkv, gif, animated webp, folders of PNG frames."""
    captions: Path | None = None
    """A list of captions instead of .txt files: .jsonl, .csv (as OpenVid's) or .json (as WISA-80K's). Only the videos it names
    are taken, looked up in the one folder given as `videos`, or beside the list."""
    templates: str | None = None
    """Also take the animated clips of ComfyUI's installed template packages whose names match this, for example '*wan*'."""
    limit: int | None = None
    """Take at most so many clips (the first by name)."""
    backbone: Literal["wan", "cogvideox", "toy"] = "wan"
    """Whose VAE and text encoder to use."""
    source: str | None = None
    """Diffusers folder or hub id of the backbone; left out, the family's smallest model."""
    vae: Path | None = None
    """A VAE file as ComfyUI's models/vae holds it, instead of `source`; needs `text` too."""
    text: Path | None = None
    """A text encoder file as ComfyUI's models/text_encoders holds it (fp16 or bf16)."""
    dit: Path | None = None
    """CogVideoX with `vae` and `text`: the transformer's file, of which only one tensor's shape is read. 2B and 5B share a VAE
    file, but not the scale of their latents; this says which it is."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where the text encoder file carries none (T5)."""
    width: int | None = None
    """Pixels, a multiple of 16; clips are cropped to the aspect, then resized. Left out: 832 (wan), 720 (cogvideox), 64 (toy)."""
    height: int | None = None
    """Pixels, a multiple of 16. Left out: 480 (wan, cogvideox), 64 (toy)."""
    frames: int | None = None
    """Frames per clip, a multiple of 4 plus 1. Left out: 81 (wan), 49 (cogvideox), 33 (toy)."""
    fps: float | None = None
    """Drop frames of faster clips down to this rate, double none; 0 keeps all. Left out: 16 (wan), 8 (cogvideox), 0 (toy)."""
    windows: int = 1
    """At most so many consecutive stretches of `frames` frames per video, from its start; 0 for as many as it has."""
    allow_short: bool = False
    """Keep clips shorter than `frames`, cut to the longest length that fits, instead of skipping them."""
    name_captions: bool = True
    """Use a clip's file name as its caption where there is no .txt of the same name beside it; otherwise its caption is empty."""
    tokens: bool = False
    """Also store all prompt tokens, which fine-tuning needs and the motion predictor does not."""
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the stored latents and embeddings."""
    workers: int = 2
    """Threads that read videos."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N."""


class TextEncoder(Protocol):
    """What caching needs of a backbone to embed captions."""

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` and mask `B L`."""
        ...


class VideoEncoder(Protocol):
    """What caching needs of a backbone to encode frames."""

    latent_space: str

    def encode_video(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C T' H' W'`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to cache."""

    path: Path
    caption: str
    caption_from: str
    source_hash: str
    key: str
    stem: str
    """Start of its file names in the cache: readable, different for different content, kept when the video is renamed."""


@dataclass(kw_only=True)
class CacheReport:
    """What a run of `cache_clips` did."""

    written: list[Path] = field(default_factory=list)
    """Files written by this run."""
    finished_before: int = 0
    """Clips that were already cached."""
    same: list[tuple[Path, Path]] = field(default_factory=list)
    """(clip, the clip with the same content that was taken instead)."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """(clip, why it could not be used)."""
    stopped: bool = False
    """Whether the user stopped it."""


def cache_clips(
    clips: Sequence[Path],
    config: CacheConfig,
    load_text: Callable[[], TextEncoder],
    load_vae: Callable[[], VideoEncoder],
    *,
    stop: StopRequest | None = None,
    progress: ProgressLine | None = None,
) -> CacheReport:
    """Caches `clips` into `config.out`. The text encoder is loaded first, used and freed before the VAE is loaded.

    `load_text` and `load_vae` are called only where something is left to do. Raises CacheError where the settings do not fit
    the backbone or `out` belongs to another latent space, and RunError where a file cannot be written; finished clips stay.
    """
    form = format_of(config)
    stop = stop or StopRequest()
    progress = progress or ProgressLine("cache")
    config.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(config.out)
    report = CacheReport()
    pending = [job for job in plan(clips, config, form, report) if not _finished(job, config.out, report)]
    progress.say(
        f"{len(clips)} clips: {report.finished_before} cached before, {len(report.same)} double, "
        f"{len(report.skipped)} unreadable, {len(pending)} to do at {form.width}x{form.height}, {form.frames} frames."
    )
    if pending and not stop.asked:
        _say_captions(pending, progress)
        conds = embed_captions(pending, load_text(), config, progress)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _encode_all(pending, conds, load_vae(), config, form, report, stop, progress)
    progress.close()
    _write_skipped(config.out, report)
    return report


def format_of(config: CacheConfig) -> Format:
    """The format clips are cut to. Raises CacheError where a number does not fit the VAE."""
    usual = USUAL[config.backbone]
    form = Format(**{name: getattr(usual if getattr(config, name) is None else config, name) for name in usual.__dict__})
    for name, value in (("width", form.width), ("height", form.height)):
        if value < SIDE_MULTIPLE or value % SIDE_MULTIPLE:
            near = max(1, round(value / SIDE_MULTIPLE)) * SIDE_MULTIPLE
            raise CacheError(f"{name} is {value}; it must be a multiple of {SIDE_MULTIPLE}, for example {near}.")
    if form.frames <= TEMPORAL_STRIDE or form.frames % TEMPORAL_STRIDE != 1:
        near = max(1, form.frames // TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1
        raise CacheError(f"frames is {form.frames}; it must be a multiple of {TEMPORAL_STRIDE} plus 1, for example {near}.")
    for name, value, least in (("fps", form.fps, 0), ("windows", config.windows, 0), ("workers", config.workers, 1)):
        if value < least:
            raise CacheError(f"{name} is {value}; it must be at least {least}.")
    if config.limit is not None and config.limit < 1:
        raise CacheError(f"limit is {config.limit}; it must be at least 1.")
    return form


def plan(clips: Sequence[Path], config: CacheConfig, form: Format, report: CacheReport) -> list[Job]:
    """Reads captions and hashes. Clips that cannot be read, and further copies of the same content, go to the report."""
    settings = {
        **form.__dict__,
        "windows": config.windows,
        "short": config.allow_short,
        "tokens": config.tokens,
        "store": config.store,
        "backbone": config.backbone,
        "source": encoders_of(config),
    }
    listed = listed_captions(config)
    known = {match[2]: match[1] for path in config.out.glob("*.safetensors") if (match := CACHED_NAME.match(path.name))}

    def look(clip: Path) -> Job | VideoError:
        try:
            caption, origin = (listed[clip], "file") if clip in listed else caption_of(clip)
            if origin == "name" and not config.name_captions:
                caption, origin = "", "none"
            source_hash = content_hash(clip)
        except VideoError as error:
            return error
        key = described({**settings, "caption": caption, "content": source_hash})
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", clip.stem if clip.is_file() else clip.name)[:60]
        stem = known.get(source_hash[:12], f"{name}-{source_hash[:12]}")
        return Job(path=clip, caption=caption, caption_from=origin, source_hash=source_hash, key=key, stem=stem)

    with ThreadPoolExecutor(config.workers) as pool:
        looked = list(pool.map(look, clips))
    jobs: dict[str, Job] = {}
    for clip, job in zip(clips, looked):
        if isinstance(job, VideoError):
            report.skipped.append((clip, str(job)))
        elif job.source_hash in jobs:
            report.same.append((clip, jobs[job.source_hash].path))
        else:
            jobs[job.source_hash] = job
    return list(jobs.values())


def encoders_of(config: CacheConfig) -> object:
    """What names the encoders in a clip's key. The toy world's come with the pack and change with it, so their content does."""
    if config.backbone != "toy" or config.source or config.vae:
        return config.source or [config.vae, config.text, *([config.dit] if config.dit else [])]
    from .backbones import TOY_WEIGHTS
    from .teachers.base import digest_of

    return [digest_of([TOY_WEIGHTS / f"toy_{part}.safetensors"]) for part in ("vae", "text")]


def listed_captions(config: CacheConfig) -> dict[Path, str]:
    """Video -> caption of `config.captions`; empty where there is no list. Raises CacheError where it cannot be used."""
    if config.captions is None:
        return {}
    if len(config.videos) > 1:
        raise CacheError("with a list of captions, give one folder of videos, the one its names are looked up in.")
    try:
        return read_captions(config.captions, config.videos[0] if config.videos else None)
    except CaptionError as error:
        raise CacheError(str(error)) from error


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
            f"{len(named)} of {len(pending)} clips have no .txt caption beside them; their file names are used, "
            f"for example {named[0].caption!r} for {named[0].path.name}."
        )


def embed_captions(
    pending: Iterable[Job], text: TextEncoder, config: CacheConfig, progress: ProgressLine
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Caption -> (pooled embedding `D`, tokens `L D` or None). Pooled: the mean over the attention mask, in float32."""
    captions = sorted({job.caption for job in pending})
    store = getattr(torch, config.store)
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for start in range(0, len(captions), TEXT_BATCH):
        part = captions[start : start + TEXT_BATCH]
        tokens, mask = text.embed_prompts(part)
        pooled = pool_tokens(tokens, mask)
        for row, caption in enumerate(part):
            if not torch.isfinite(pooled[row]).all():
                raise CacheError(f"the embedding of the caption {caption!r} is not finite; use a bf16 or fp32 text encoder.")
            found[caption] = (pooled[row].cpu(), tokens[row][mask[row].bool()].to("cpu", store) if config.tokens else None)
        progress.show(min(0.99, (start + len(part)) / len(captions)), f"{start + len(part)}/{len(captions)} captions")
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
    """Encodes what the reading threads deliver, in the order in which it comes."""
    _check_folder(config.out, vae.latent_space)
    done, warned = 0, False
    clips = type(progress)("cache", progress.stream, progress.every)  # its clock starts here, not with the captions

    def skip(job: Job, reason: VideoError) -> None:
        report.skipped.append((job.path, str(reason)))
        clips.say(f"skipped: {reason}")

    def said() -> str:
        return f"{done}/{len(pending)} clips, {len(report.written)} files, {len(report.skipped)} skipped"

    with closing(read_ahead(pending, config, form, stop)) as read:
        for job, item in read:
            if isinstance(item, VideoError):
                skip(job, item)
            elif isinstance(item, Window):
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
                if job.path not in {clip for clip, _ in report.skipped}:
                    _remove_stale(config.out, job)
                clips.show(done / len(pending), said())
    report.stopped = stop.asked and done < len(pending)
    clips.close()


def _check_folder(out: Path, latent_space: str) -> None:
    """Raises CacheError where `out` holds clips of another latent space."""
    for path in sorted(out.glob("*.safetensors")):
        try:
            info = read_info(path)
        except WeightsError:
            continue
        if info.kind == KIND and info.latent_space != latent_space:
            raise CacheError(f"{out} holds clips of {info.latent_space}, this backbone makes {latent_space}: use another folder.")
        return


def encode_window(
    job: Job, window: Window, cond: tuple[Tensor, Tensor | None], vae: VideoEncoder, config: CacheConfig
) -> Path | None:
    """Encodes and writes one window; returns its path, or None where it is there already.

    Raises VideoError where the latent is not finite, CacheError where memory runs out, RunError where the file cannot be written.
    """
    path = _place(config.out, job, window.index)
    form = format_of(config)
    there = read_clip_info(path)
    if there is not None and there.key == job.key and there.last == window.last:
        return None
    frames, height, width = window.frames.shape[:3]
    video = torch.from_numpy(window.frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255  # 1 3 T H W
    try:
        latent = vae.encode_video(video)[0]
    except torch.OutOfMemoryError as error:
        shape = f"{width}x{height} with {frames} frames"
        raise CacheError(f"{shape} does not fit into the GPU's memory; use a smaller size or --device cpu.") from error
    store = getattr(torch, config.store)
    latent = latent.to("cpu", store)
    if not torch.isfinite(latent).all():
        raise VideoError(f"{job.path.name}: its latent is not finite in {config.store}.")
    info = ClipInfo(
        source=job.path.name,
        source_hash=job.source_hash,
        key=job.key,
        caption=job.caption,
        caption_from=job.caption_from,
        window=window.index,
        last=window.last,
        start=window.start,
        frames=frames,
        width=width,
        height=height,
        fps=window.fps,
        fps_limit=form.fps,
    )
    with saving(path.name, "the clips finished so far are safe"):
        write_clip(path, latent, cond[0].to(store), info, vae.latent_space, tokens=cond[1])
    return path


def _warn_disk(path: Path, clips_left: int, progress: ProgressLine) -> bool:
    """Says, once, that the disk will not hold what is still to come."""
    need, free = path.stat().st_size * clips_left, shutil.disk_usage(path.parent).free
    if need > free:
        sizes = f"about {need / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
        progress.say(f"warning: the clips still to come need {sizes}.")
    return need > free


def _remove_stale(out: Path, job: Job) -> None:
    """Deletes windows of this clip that an earlier run with other settings left."""
    for path in out.glob(f"{job.stem}-w*.safetensors"):
        info = read_clip_info(path)
        if info is None or info.key != job.key:
            path.unlink(missing_ok=True)


def read_ahead(
    jobs: Sequence[Job], config: CacheConfig, form: Format, stop: StopRequest
) -> Iterator[tuple[Job, Window | VideoError | None]]:
    """Reads clips in `config.workers` threads; yields the windows of each, then None; or a VideoError, then None.

    Clips come interleaved. At most two windows per thread wait to be taken. Closing the iterator, or a stop request, ends
    the threads.
    """
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    ready: queue.Queue[tuple[Job | None, Any]] = queue.Queue(maxsize=2 * config.workers)
    over = threading.Event()

    def hand_over(job: Job | None, item: Any) -> None:
        while not over.is_set():
            try:
                return ready.put((job, item), timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        while not over.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                break
            try:
                for window in windows(
                    job.path,
                    frames=form.frames,
                    width=form.width,
                    height=form.height,
                    fps=form.fps,
                    limit=config.windows,
                    allow_short=TEMPORAL_STRIDE if config.allow_short else 0,
                ):
                    hand_over(job, window)
                    if over.is_set():
                        return
            except Exception as error:
                hand_over(job, error)
            hand_over(job, None)
        hand_over(None, None)

    threads = [threading.Thread(target=read, name=f"reader-{number}", daemon=True) for number in range(config.workers)]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working and not stop.asked:
            try:
                job, item = ready.get(timeout=0.2)
            except queue.Empty:
                continue
            if job is None:
                working -= 1
            elif isinstance(item, Exception) and not isinstance(item, VideoError):
                raise item
            else:
                yield job, item
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _write_skipped(out: Path, report: CacheReport) -> None:
    """Leaves skipped.txt in the folder: one line per clip that could not be used; none where all could."""
    path = out / "skipped.txt"
    if report.skipped:
        with saving(path.name, "the cached clips are safe"):
            write_atomically(path, "".join(f"{clip}\t{reason}\n" for clip, reason in report.skipped).encode())
    else:
        path.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where every clip that could be read is cached, 1 on an error, 130 where stopped."""
    from .backbones import BackboneError

    return cli.run_command(lambda: _command(argv), CacheError, RunError, VideoError, WeightsError, BackboneError)


def _command(argv: list[str]) -> int:
    config = cli.parse(CacheConfig, argv, prog="latent-physics cache", description="Videos -> latents and prompt embeddings.")
    format_of(config)
    if config.captions is not None:
        clips = sorted(listed_captions(config))
    else:
        clips = find_clips(config.videos) if config.videos or config.templates is None else []
    if config.templates is not None:
        extra = template_clips(config.templates)
        if not extra:
            raise CacheError(
                f"no clip of ComfyUI's template packages matches {config.templates!r}; pip install comfyui-workflow-templates."
            )
        clips += extra
    clips = clips[: config.limit]
    load_text, load_vae = loaders(config)
    with StopRequest() as stop:
        report = cache_clips(clips, config, load_text, load_vae, stop=stop)
    return summarise(report, config)


def loaders(config: CacheConfig) -> tuple[Callable[[], TextEncoder], Callable[[], VideoEncoder]]:
    """Functions that load the backbone's text encoder and its VAE. Raises CacheError where the files do not go together."""
    from .backbones import load_backbone

    device = cli.pick_device(config.device)
    source: Any = config.source
    if config.vae or config.text:
        if not (config.vae and config.text) or config.source:
            raise CacheError("vae and text go together, instead of source: give both files, or a source alone.")
        if config.backbone == "cogvideox" and not config.dit:
            raise CacheError(
                "2B and 5B of CogVideoX share a VAE file, but not the scale of their latents: give the model's file as dit, too."
            )
        also = {"tokenizer": config.tokenizer, "dit": config.dit if config.backbone == "cogvideox" else None}
        source = {"vae": config.vae, "text": config.text, **{name: value for name, value in also.items() if value}}
    elif config.dit:
        raise CacheError("dit goes with vae and text: a source says itself which CogVideoX it is.")
    # The text encoder is 5 to 11 GB in half precision, and half precision is what the models were trained with.
    text_dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return (
        lambda: load_backbone(config.backbone, source, parts=("text",), device=device, dtype=text_dtype),
        lambda: load_backbone(config.backbone, source, parts=("vae",), device=device),
    )


def summarise(report: CacheReport, config: CacheConfig) -> int:
    """Prints what was done; returns the exit status."""
    for clip, taken in report.same[:5]:
        print(f"double: {clip.name} holds what {taken.name} holds; one of them was taken.")
    if report.skipped:
        print(f"{len(report.skipped)} clips were skipped (all of them in {config.out / 'skipped.txt'}):")
        for _, reason in report.skipped[:10]:
            print(f"  {reason}")
    there = len(report.written) + report.finished_before
    if report.stopped:
        print(f"Stopped: {len(report.written)} files written to {config.out}; the same command goes on from here.")
        return 130
    if not there:
        raise CacheError(f"none of the {len(report.skipped)} clips could be used; the first: {report.skipped[0][1]}")
    print(f"Cached: {len(report.written)} files written to {config.out}, {report.finished_before} clips were there before.")
    return 0

