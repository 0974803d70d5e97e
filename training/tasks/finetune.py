"""`latent-physics finetune`: a video diffusion model, videos, objectives -> a file that ComfyUI loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoders import TeacherError
from ...encoders.need import TeacherNeed, cache_name
from ...methods.weights import WeightsError
from .. import settings
from ..backbones import Backbone
from ..backbones.families import KINDS
from ..backbones.header import WanHeader, hunyuan_header, wan_header
from ..backbones.ltx2 import no_encoders
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.batches import TrainingClips
from ..data.cache import cache_clips
from ..data.feature_cache import FeatureCache
from ..data.features import prepare_features
from ..data.format import CacheConfig, usual_format
from ..data.loaders import BOTH, Part
from ..data.report import summarise
from ..data.sources import gather
from ..data.toy import make_toy_clips, toy_paths
from ..data.videos import VideoError
from ..loop import processes
from ..loop.boards import check_trackers
from ..loop.checkpoint import CHECKPOINT
from ..loop.config import TrainerConfig
from ..loop.loop import train
from ..loop.optimizers import optimizer_arguments
from ..loop.processes import make_accelerator
from ..loop.task import Outcome, Run
from ..objectives import parse
from ..settings import Count, NotNegative, Number, Share
from .companions import FILE as PROMPTS
from .companions import Companions
from .denoise import DenoisingTask, fitted
from .export import ExportConfig, export
from .first_frame import check_first_frame, share_of_first_frames
from .masks import check_masks
from .model import ModelConfig, about_model, check_model, encoder_files, load_dit, make_trainable
from .noise import NoiseConfig
from .noise import check as check_noise
from .preview import Samples, read_sizes

ERRORS = (TeacherError, VideoError, WeightsError)


@dataclass(kw_only=True)
class FinetuneConfig(ModelConfig):
    """Fine-tunes a text- or image-to-video model with any weighted set of physics objectives."""

    out: Path = Path("runs/finetune")
    """Folder of the run: checkpoint, log.csv, curves.png, and the exported file. The same command
    resumes it."""
    data: Path | None = None
    """Clips cached by `latent-physics cache --tokens`; left out, `videos` are cached into the run's folder
    first."""
    videos: list[Path] = field(default_factory=list)
    """Videos or folders of them: to cache, and for the teachers' features. Captions: .txt files of the same
    name."""
    captions: Path | None = None
    """A list of captions instead of .txt files: .jsonl, .csv (as OpenVid's) or .json (as WISA-80K's)."""
    masks: Path | None = None
    """Folder of the clips' masks, for caching; `mask_min_value` uses them."""
    toy_clips: Number = 0
    """Number of toy clips to draw and train on, with the toy backbone, instead of reading videos."""
    limit: Count | None = None
    """Maximum number of clips."""
    features: Path | None = None
    """Folder of the teachers' features; left out, a folder beside the clips."""

    dit_low: Path | None = None
    """Wan 2.2 14B: the low-noise expert's file, `dit` being the high-noise one. Both are fine-tuned, one
    after the other, each on its range of the noise, into the folders `high` and `low` of the run."""
    clip_vision: Path | None = None
    """A CLIP vision file, for caching for Wan 2.1 image-to-video; a source folder has its own."""
    first_frame: Share | None = None
    """Share of the clips whose first frame the model is given, where it can do with and without: Wan 2.2 5B.
    Left out, half. Image-to-video models are always given it."""
    width: Count | None = None
    """Pixels, for caching; left out, what the family was trained at."""
    height: Count | None = None
    """Pixels, for caching."""
    frames: Count | None = None
    """Frames per clip, for caching."""
    fps: NotNegative | None = None
    """Frames per second at most, for caching; left out, what the family was trained at."""

    objectives: list[str] = field(default_factory=list)
    """Objectives, each "kind key=value ...", for example "drift weight=0.4 lag=2"."""
    samples: list[str] = field(default_factory=list)
    """Prompts whose clips are written at every validation, so that progress can be seen; needs the VAE and
    the text encoder."""
    sample_sizes: list[str] = field(default_factory=list)
    """Sizes of those clips, each WIDTHxHEIGHTxFRAMES, such as 640x368x49; every prompt is sampled at each.
    Left out, the first cached clip's."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Noise levels of the training."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Settings of the training."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """All that a fine-tune reads beside the transformer."""

    clips: TrainingClips
    needs: Sequence[TeacherNeed]
    features: FeatureCache
    null_tokens: Tensor | None
    """`L D` of the empty prompt, where prompts are dropped."""
    samples: Samples | None


def finetune(
    config: FinetuneConfig,
    stop: StopRequest | None = None,
    progress: ProgressLine | None = None,
    kept: Path | None = None,
) -> tuple[Outcome, Path | None]:
    """Runs the fine-tune: data, then the model, then the run. Returns what `train` returns (step 0 where it
    was stopped before the training) and the exported file. Raises one of ERRORS or TrainingError.

    kept: file of embedded prompts; left out, one in the run's folder.
    """
    check(config)
    accelerator = make_accelerator(config.trainer, KINDS[config.backbone].backbone.leaves_unused)
    check_sharding(config, accelerator)
    progress, stop = progress or ProgressLine("fine-tune"), stop or StopRequest()
    companions = make_companions(config, kept or config.out / PROMPTS, progress)
    data = prepare(config, companions, accelerator, stop, progress)
    if data is None:
        return Outcome(step=0, stopped=True, checkpoint=config.out / CHECKPOINT), None
    task = make_task(config, load_dit(config), **vars(data))
    outcome = train(
        Run(config=config.trainer, task=task, out=config.out, accelerator=accelerator), stop, progress
    )
    path = None
    if config.export and not outcome.stopped and accelerator.is_main_process:
        path = export(ExportConfig(run=config.out, dtype=config.export_dtype, format=config.export_format))
    return outcome, path


def check_sharding(config: FinetuneConfig, accelerator: Any) -> None:
    """Raises TrainingError where a launch shards weights of two number formats, or swapped ones."""
    sharded = "FSDP" in str(accelerator.distributed_type)
    if sharded and config.tune.mode == "lora" and config.weights != "float32":
        raise TrainingError(
            f"weights is {config.weights}; FSDP2 shards weights of one format, and a LoRA's are float32: "
            f"use float32."
        )
    if sharded and config.blocks_to_swap:
        raise TrainingError(
            f"blocks_to_swap is {config.blocks_to_swap}, and FSDP2 shards every block's weights over the "
            f"cards: leave it out, or launch with ddp.yaml."
        )


def prepare(
    config: FinetuneConfig,
    companions: Companions,
    accelerator: Any,
    stop: StopRequest,
    progress: ProgressLine,
) -> Data | None:
    """Clips, embedded prompts and teachers' features, made where they are not there yet; None where it was
    stopped: a run that began on half of the clips could not go on with all of them."""
    folder = config.data or config.out / "cache"
    if config.data is None and accelerator.is_main_process:
        cache_videos(config, folder, companions, stop, progress)
    if processes.stopping(accelerator, stop):
        return None
    trainer = config.trainer
    clips = TrainingClips(
        folder, batch=trainer.batch, seed=trainer.seed, held_out=trainer.held_out, limit=config.limit
    )
    header = model_header(config)
    if header is not None and header.first_frame == "needed":
        clips.check_first_frames(vision=header.vision)
    if config.noise.mask_min_value is not None:
        clips.check_masks()
    if accelerator.is_main_process:
        progress.say(clips.describe())
    companions.gather(accelerator)
    null_tokens = companions.take([""]).tokens[0].float() if trainer.prompt_dropout else None
    samples = make_samples(config, clips, companions, accelerator) if config.samples else None
    needs = parse.needed_teachers(config.objectives)
    features = FeatureCache(config.features or folder / "features")
    prepare_features(
        clips, needs, features, videos=config.videos, device=accelerator.device, progress=progress,
        share=(accelerator.process_index, accelerator.num_processes), stop=stop,
    )  # fmt: skip
    if processes.stopping(accelerator, stop):
        return None
    return Data(clips=clips, needs=needs, features=features, null_tokens=null_tokens, samples=samples)


def check(config: FinetuneConfig) -> None:
    """Everything that can be known before anything is loaded. Raises TrainingError."""
    settings.check(config)
    check_noise(config.noise, config.backbone)
    optimizer_arguments(config.trainer)
    check_trackers(config.trainer)
    for text in config.objectives:
        parse.check_files(*parse.parse(text))
    trainer = config.trainer
    check_model(config, trainer.precision, trainer.checkpointing, config.noise.noise_preset)
    if config.toy_clips and config.backbone != "toy":
        raise TrainingError(f"toy_clips are for the toy backbone, not for {config.backbone}; give --videos.")
    if config.data is None and not config.videos and config.captions is None and not config.toy_clips:
        what = "--data (cached clips), --videos or --captions" + (
            ", or --toy-clips" if config.backbone == "toy" else ""
        )
        raise TrainingError(f"there is nothing to train on; give {what}.")
    check_masks(config.data, config.masks, config.noise.mask_min_value)
    read_sizes(config.sample_sizes, config.backbone)
    encoded_here = config.data is None or config.samples or config.trainer.prompt_dropout
    if encoded_here and not KINDS[config.backbone].encoders:
        no_encoders()
    check_first_frame(model_header(config), config.first_frame, config.samples)


def model_header(config: FinetuneConfig) -> WanHeader | None:
    """Inputs of a model on this disk, before it is loaded. Raises TrainingError for one that cannot be
    trained."""
    if config.backbone == "hunyuan15":
        return hunyuan_header(None if config.dit else config.source)
    return wan_header(config.source, config.dit) if config.backbone == "wan" else None


def make_companions(config: FinetuneConfig, kept: Path, progress: ProgressLine) -> Companions:
    """Text encoder and VAE for all that the run needs of them. Raises TrainingError where files do not go
    together."""
    parts: tuple[Part, ...] = ("text",) if config.trainer.prompt_dropout else ()
    parts = BOTH if config.data is None or config.samples else parts
    empty = [""] if config.trainer.prompt_dropout or config.samples else []
    return Companions(cache_settings(config, parts), [*config.samples, *empty], kept, progress, parts)


def cache_settings(config: FinetuneConfig, parts: Sequence[Part]) -> CacheConfig:
    """Settings of the run's own cache, of whose encoders `parts` are used."""
    caching = config.data is None
    return CacheConfig(
        **encoder_files(config, parts), out=config.out / "cache", videos=config.videos, width=config.width,
        height=config.height, frames=config.frames, fps=config.fps, limit=config.limit,
        captions=config.captions, masks=config.masks, tokens=True,
        clip_vision=config.clip_vision if caching else None,
        first_frame=caching and shows_first_frames(config),
        device="cpu" if config.toy_clips else "auto",
    )  # fmt: skip


def shows_first_frames(config: FinetuneConfig) -> bool:
    """Whether clips are cached with their first frame: the model needs it, or may and is given what sees it
    (HunyuanVideo 1.5, whose file does not say which of both it is)."""
    header = model_header(config)
    if header is None:
        return config.backbone == "hunyuan15" and config.clip_vision is not None
    return header.first_frame == "needed"


def cache_videos(
    config: FinetuneConfig, out: Path, companions: Companions, stop: StopRequest, progress: ProgressLine
) -> None:
    """Caches `config.videos` with their prompts' tokens, or draws toy clips; clips that are there already are
    kept."""
    load_vae = partial(companions.load_vae, keep=bool(config.samples))
    if config.toy_clips:
        seed = config.trainer.seed + 1
        if not all(path.is_file() for path in toy_paths(out, seed, range(config.toy_clips))):
            backbone = companions.load_text()
            backbone.vae = load_vae().vae
            make_toy_clips(out, backbone, config.toy_clips, seed, progress=progress)
        return
    settings = cache_settings(config, BOTH)
    found = gather(settings)
    report = cache_clips(
        found.clips, settings, companions.load_text, load_vae, left_out=found.left_out, stop=stop,
        progress=progress,
    )  # fmt: skip
    summarise(report, settings)


def usual_fps(config: FinetuneConfig) -> float:
    """The rate the clips were thinned to."""
    return usual_format(config.backbone).fps if config.fps is None else config.fps


def make_samples(
    config: FinetuneConfig, clips: TrainingClips, companions: Companions, accelerator: Any
) -> Samples:
    """All that shows clips on the way: embedded prompts and, in the process that writes them, the VAE."""
    tokens, mask = companions.take(config.samples).batch(range(len(config.samples)))
    return Samples(
        prompts=config.samples,
        tokens=tokens,
        mask=mask,
        null=companions.take([""]).batch([0]),
        vae=companions.vae if accelerator.is_main_process else None,
        shape=clips.entries[0].shape[1:],
        fps=usual_fps(config),
        sizes=read_sizes(config.sample_sizes, config.backbone),
    )


def make_task(
    config: FinetuneConfig,
    backbone: Backbone,
    clips: TrainingClips,
    needs: Sequence[TeacherNeed],
    features: FeatureCache,
    null_tokens: Tensor | None,
    samples: Samples | None = None,
) -> DenoisingTask:
    """The task with its LoRA (or nothing frozen) and its objectives' projectors, all drawn from the run's
    seed."""
    make_trainable(config, backbone, config.trainer.seed, config.trainer.checkpointing)
    torch.manual_seed(config.trainer.seed)
    first = clips.entries[0].identity
    channels = {need.key: features.read(cache_name(need), first)["features"].shape[0] for need in needs}
    built = parse.build(
        config.objectives, width=token_width(backbone), blocks=len(backbone.blocks), channels=channels
    )
    return DenoisingTask(
        backbone,
        clips,
        built,
        needs=needs,
        features=features,
        prompt_dropout=config.trainer.prompt_dropout,
        null_tokens=null_tokens,
        about={
            **about(config, backbone),
            "calibrated": fitted(built, clips),
        },
        samples=samples,
        noise=config.noise,
        first_frame=share_of_first_frames(config.first_frame, backbone),
    )


def token_width(backbone: Backbone) -> int:
    """Channels of the transformer's tokens."""
    return backbone.dit.config.num_attention_heads * backbone.dit.config.attention_head_dim


def about(config: FinetuneConfig, backbone: Backbone) -> dict[str, Any]:
    """The run's entries in the checkpoint and the exported file."""
    return {
        **about_model(config, backbone),
        "objectives": list(config.objectives),
        **({"blocks_from": 1} if parse.needed_teachers(config.objectives) else {}),
        **({"noise": asdict(config.noise)} if config.noise != NoiseConfig() else {}),
    }
