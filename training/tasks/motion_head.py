"""`latent-physics motion-head`: MoAlign's stage 1, a motion subspace of a video encoder that predicts optical
flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders import load_raft
from ...encoders.need import ORACLE, TeacherNeed, cache_name, weights_name
from ...methods.moalign import FLOW_SIZE, MotionHead, flow_loss
from ...methods.weights import WeightsError, WeightsInfo, load_weights, save_weights
from ..console import ProgressLine, StopRequest, TrainingError, saving
from ..data.batches import TrainingClips
from ..data.feature_cache import FeatureCache
from ..data.features import FrameSource, prepare_features, teacher_of
from ..data.oracle import OracleFlow
from ..loop import processes
from ..loop.boards import check_trackers
from ..loop.checkpoint import KIND as CHECKPOINT
from ..loop.checkpoint import kept_state
from ..loop.config import LoopConfig
from ..loop.loop import train
from ..loop.optimizers import optimizer_arguments
from ..loop.processes import make_accelerator
from ..loop.task import Outcome, Run, Task
from ..settings import Count, Decay, NotNegative, Positive, check

KIND = "motion_head"


@dataclass(kw_only=True)
class MotionHeadTrainer(LoopConfig):
    """Settings of stage 1's training. The defaults are the paper's: AdamW 1e-4, betas 0.9 and 0.95, weight
    decay 1e-3, batch 128, 50k steps, validation every 1000."""

    steps: Count = 50_000
    """Optimiser steps."""
    batch: Count = 128
    """Clips per micro-batch and process."""
    learning_rate: Positive = 1e-4
    """Learning rate."""
    weight_decay: NotNegative = 1e-3
    """Weight decay."""
    max_grad_norm: NotNegative = 0.0
    """Clip gradients to this norm; 0 disables."""
    validate_every: Count = 1000
    """Steps between validations."""
    save_every: Count = 1000
    """Steps between checkpoints."""
    held_out: Decay = 0.05
    """Share of the source videos kept for validation; 0 for none."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""


@dataclass(kw_only=True)
class MotionHeadConfig:
    """Trains MoAlign's motion head; a fine-tune then aligns with it: soft_trd motion_head=THE_FILE."""

    recipe: str = ""
    """A recipe that comes with the pack, or a JSON file; everything given after it on the command line
    wins."""
    about: str = ""
    """Where the recipe's numbers come from."""
    data: Path | None = None
    """Clips cached by `latent-physics cache`: the same folder as the fine-tune's."""
    videos: list[Path] = field(default_factory=list)
    """The videos they were made of: the teacher and RAFT look at pixels."""
    out: Path = Path("runs/motion-head")
    """Folder of the run; motion_head.safetensors is the result."""
    features: Path | None = None
    """Folder of features and flow; left out, a folder beside the clips."""
    teacher: str = "videomae"
    """Video encoder."""
    source: str | None = None
    """Its weights; left out, the usual ones."""
    raft: str = "raft_large"
    """raft_large, raft_small, a safetensors file of one of them, or toy_oracle: what the toy world itself
    knows of its clips."""
    flow_height: Count = FLOW_SIZE[0]
    """Height of the flow that is predicted."""
    flow_width: Count = FLOW_SIZE[1]
    """Width of the flow that is predicted, in pixels."""
    motion: Count = 64
    """Channels of the motion subspace."""
    hidden: Count = 256
    """Channels between the teacher's and the subspace's."""
    limit: Count | None = None
    """Maximum number of clips."""
    trainer: MotionHeadTrainer = field(default_factory=MotionHeadTrainer)
    """Settings of the training."""

    @property
    def need(self) -> TeacherNeed:
        """The video encoder whose features are read."""
        return TeacherNeed(name=self.teacher, source=self.source)

    @property
    def flow_size(self) -> tuple[int, int]:
        """Height and width of the flow."""
        return self.flow_height, self.flow_width

    @property
    def flow_name(self) -> str:
        """Name that the flow is cached under: the network's, the size's, and the encoder's, which says what
        part of a frame it is of."""
        network = weights_name(Path(self.raft)) or self.raft
        return f"flow {network} {self.flow_height}x{self.flow_width}, covered by {cache_name(self.need)}"


class FlowStudent(nn.Module):
    """The head with its loss."""

    def __init__(self, head: MotionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, flow: Tensor) -> dict[str, Tensor]:
        """Teacher features `B C F H W`, flow `B 2 F-1 h w` -> the loss of eq 4."""
        return {"flow": flow_loss(self.head(features), flow)}


class FlowTask(Task):
    """MoAlign eq 4 on cached features and flow."""

    names = ("flow",)
    latent_space = "pixels"

    def __init__(
        self,
        head: MotionHead,
        clips: TrainingClips,
        cache: FeatureCache,
        feature: str,
        flow: str,
        about: dict[str, Any],
    ) -> None:
        """feature, flow: what they are cached under."""
        self.module, self.clips, self.cache, self.feature, self.flow, self.about = (
            FlowStudent(head),
            clips,
            cache,
            feature,
            flow,
            about,
        )
        self.validation_count = len(clips.validation)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features and flow of some clips. Raises TrainingError where they are damaged."""
        entries = [self.clips.entries[index] for index in indices]
        try:
            features = [self.cache.read(self.feature, entry.identity)["features"] for entry in entries]
            flow = [self.cache.read(self.flow, entry.identity)["flow"] for entry in entries]
        except WeightsError as error:
            raise TrainingError(
                f"features or flow cannot be read ({error}); run the command again to mend them."
            ) from error
        return torch.stack(features), torch.stack(flow)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.read(self.clips.chosen(number))

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.read([self.clips.validation[place]])

    def fingerprint(self) -> str:
        return self.clips.fingerprint()


def train_motion_head(
    config: MotionHeadConfig, stop: StopRequest | None = None, progress: ProgressLine | None = None
) -> tuple[Outcome, Path]:
    """Runs stage 1; returns what `train` returns and the file. Raises TrainingError, TeacherError,
    VideoError or WeightsError."""
    progress = progress or ProgressLine("motion head")
    settings = config.trainer
    if config.data is None:
        raise TrainingError(
            "there is nothing to train on; give --data, a folder that latent-physics cache made."
        )
    check(config)
    check_trackers(settings)
    optimizer_arguments(settings)
    accelerator = make_accelerator(settings)
    clips = TrainingClips(
        config.data, batch=settings.batch, seed=settings.seed, held_out=settings.held_out, limit=config.limit
    )
    need, flow = config.need, config.flow_name
    cache = FeatureCache(config.features or config.data / "features")
    share = (accelerator.process_index, accelerator.num_processes)
    stop = stop or StopRequest()
    places = {"device": accelerator.device, "progress": progress, "share": share, "stop": stop}
    prepare_features(clips, [need], cache, videos=config.videos, **places)
    prepare_flow(clips, cache, config, **places)
    path = config.out / "motion_head.safetensors"
    if processes.stopping(accelerator, stop):
        return Outcome(step=0, stopped=True, checkpoint=config.out / "checkpoint.safetensors"), path
    first = cache.read(cache_name(need), clips.entries[0].identity)["features"]
    sizes = {"channels": first.shape[0], "hidden": config.hidden, "motion": config.motion}
    sizes["size"] = list(config.flow_size)
    torch.manual_seed(settings.seed)
    head = MotionHead(**sizes)
    about = {"recipe": "motion head", "sizes": sizes, "teacher": need.key, "raft": config.raft}
    task = FlowTask(head, clips, cache, cache_name(need), flow, about)
    outcome = train(Run(config=settings, task=task, out=config.out, accelerator=accelerator), stop, progress)
    if not outcome.stopped and accelerator.is_main_process:
        save_head(outcome.checkpoint, path)
    return outcome, path


def prepare_flow(
    clips: TrainingClips,
    cache: FeatureCache,
    config: MotionHeadConfig,
    device: str | torch.device,
    progress: ProgressLine,
    share: tuple[int, int] = (0, 1),
    stop: StopRequest | None = None,
) -> None:
    """Flow `2 F-1 h w` of every clip of this process's share that has none yet, between the teacher's feature
    frames: two video frames apart, the first one left out.

    It is of the part of a frame that the features stand for (`Teacher.covered`, whole patches: 816 of 832
    columns for VideoMAE), so that a place of one is the same place of the other.
    """
    name = config.flow_name
    missing = [entry for entry in clips.entries[share[0] :: share[1]] if not cache.has(name, entry.identity)]
    if not missing:
        return
    frames = FrameSource(clips.folder, config.videos)
    for entry in missing:
        frames.check(entry)
    teacher = teacher_of(config.need)  # asked what it covers, no more: it stays on the processor
    raft = OracleFlow() if config.raft == ORACLE else load_raft(config.raft, device)
    for done, entry in enumerate(missing):
        if stop is not None and stop.asked:
            return
        height, width = teacher.covered(entry.info.height, entry.info.width)
        video = frames.read(entry)[None, :, 1:, :height, :width]
        flow = raft.flow(video, step=2, size=config.flow_size)[0]
        with saving("optical flow", "what was made so far is safe"):
            cache.write(name, entry.identity, {"flow": flow.cpu()})
        progress.show((done + 1) / len(missing), f"optical flow, {done + 1}/{len(missing)} clips")


def save_head(checkpoint: Path, path: Path) -> None:
    """The head's own file from a checkpoint: of the weights that the run keeps."""
    tensors, info = load_weights(checkpoint, CHECKPOINT)
    kept, step = kept_state(tensors, info.recipe["progress"])
    prefix = f"{kept}/head."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    recipe = {
        "step": step,
        "trainer": info.recipe["trainer"],
        "raft": info.config["raft"],
    }
    config = {"sizes": info.config["sizes"], "teacher": info.config["teacher"]}
    with saving(path.name, "the checkpoint is safe"):
        save_weights(path, state, WeightsInfo(kind=KIND, latent_space="pixels", config=config, recipe=recipe))
