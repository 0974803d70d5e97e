"""Settings of `latent-physics grpo`, named as the field's reinforcement trainers name them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ....toyworld.worlds import WORLDS
from ... import settings
from ...backbones.lora import TuneConfig
from ...console import TrainingError
from ...data.format import CacheConfig, Format, format_of
from ...loop.boards import check_trackers
from ...loop.config import LoopConfig
from ...loop.optimizers import optimizer_arguments
from ...settings import Count, Decay, NotNegative, Number, Positive
from ..model import ModelConfig, check_model
from . import rewards

LEAST_GROUP = 4
"""Clips of a prompt below which the group's own mean and deviation are mostly noise."""
TOY_FPS = 16.0


@dataclass(kw_only=True)
class PolicyTrainerConfig(LoopConfig):
    """Settings of a policy's training. `accumulate` is not set: it follows from the clips of an iteration and
    `batch`."""

    steps: Count = 200
    """Optimiser steps; an iteration takes `gradient_step_per_epoch` of them."""
    learning_rate: Positive = 1e-4
    """Learning rate: 1e-4 is usual for a LoRA, 1e-5 for all weights."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of AdamW."""
    beta2: Decay = 0.999
    """Decay of AdamW's second moment."""
    validation_clips: Number = 100_000
    """Maximum number of batches of held-out prompts."""
    validate_every: Count = 10
    """Steps between evaluations of held-out prompts, always with the same noise and an ODE sampler."""
    validate_first: bool = True
    """Also evaluate the model before any step: row 0 of the log."""
    save_every: Count = 5
    """Steps between checkpoints."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for one more forward pass."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""


@dataclass(kw_only=True)
class GrpoConfig(ModelConfig):
    """Reinforces a text-to-video model: groups of clips are sampled, judged and learned from."""

    out: Path = Path("runs/grpo")
    """Folder of the run: checkpoint, log.csv, curves.png, samples, and the exported file. The same command
    resumes it."""
    algorithm: Literal["grpo", "nft"] = "grpo"
    """grpo: stochastic steps with a density, and a clipped probability ratio. nft: DiffusionNFT, a contrast
    of two forward losses, with any sampler."""

    prompts: Path | None = None
    """A folder with train.txt and test.txt, or one file, a prompt a line."""
    eval_prompts: Path | None = None
    """Held-out prompts, a line each; left out, test.txt of the folder."""
    eval_count: Count = 64
    """Maximum number of held-out prompts."""
    toy_prompts: Number = 0
    """Number of prompts to draw from the toy world instead."""
    toy_worlds: list[str] = field(default_factory=list)
    """Worlds of those prompts, for example optical; left out, all eight."""
    width: Count | None = None
    """Pixels of the sampled clips; left out, what the family was trained at."""
    height: Count | None = None
    """Pixels of the sampled clips."""
    frames: Count | None = None
    """Frames of the sampled clips."""
    fps: NotNegative | None = None
    """Frames per second that the critics are told; left out, the family's rate."""

    group_size: Count = 16
    """Clips of one prompt that are compared with one another."""
    unique_sample_num_per_epoch: Count = 8
    """Number of prompts, and so of groups, in an iteration, over all processes."""
    gradient_step_per_epoch: Count = 1
    """Optimiser steps that the clips of an iteration are used for; each sees its own share of the groups."""
    num_inference_steps: Count = 10
    """Sampling steps of the clips that are learned from."""
    eval_num_inference_steps: Count = 30
    """Sampling steps of held-out prompts."""
    guidance_scale: NotNegative = 1.0
    """Classifier-free guidance; 1 is none."""
    train_cfg: bool = True
    """Whether the policy that learns is the guided one, which costs a second pass a step; otherwise guidance
    acts on held-out prompts alone."""
    dynamics_type: Literal["auto", "Flow-SDE", "Dance-SDE", "CPS", "ODE", "DDIM-eta"] = "auto"
    """Sampler inside the window: Flow-SDE for flow models and DDIM-eta for v-prediction, unless named."""
    noise_level: NotNegative = 0.7
    """Amount of noise that the sampler adds: a of the flow SDEs, eta of DDIM."""
    num_sde_steps: Count = 2
    """Neighbouring steps of a clip that are stochastic and learned from (the window); the others are an ODE
    sampler's."""
    sde_steps: list[int] = field(default_factory=list)
    """First and last step that a window may hold, counted from 0; left out, the first half."""
    same_initial_noise: bool = False
    """Whether the clips of a group begin with the same noise."""

    clip_range: Positive = 1e-4
    """Distance of a probability ratio from 1 at which it is clipped."""
    adv_clip_range: Positive = 5.0
    """Largest magnitude of an advantage."""
    global_std: bool = False
    """Divide by the deviation of all rewards of the iteration instead of the group's."""
    advantage_aggregation: Literal["sum", "gdpo"] = "sum"
    """sum: weighted rewards are added, then normalised. gdpo: each is normalised by itself, then added, and
    the sum brought to a deviation of 1."""
    kl_type: Literal["v-based", "x-based"] = "v-based"
    """Distance from the reference on the network's output, or on the mean of the next latent."""
    kl_beta: NotNegative = 0.0
    """Weight of that distance; 0 measures none."""
    nft_strength: Positive = 1.0
    """The beta of DiffusionNFT."""
    nft_decay: Decay = 0.5
    """Share of its old weights that nft's sampling policy keeps in an iteration."""
    offload_samples_to_cpu: bool = True
    """Keep the latents of an iteration in main memory."""

    rewards: list[str] = field(default_factory=list)
    """Rewards that are optimised, each "kind key=value ...", for example "motion weight=1 source=FILE"."""
    watch: list[str] = field(default_factory=lambda: ["dynamic_degree"])
    """Rewards that are logged and never optimised."""
    samples: Number = 4
    """Number of held-out clips written as videos at each evaluation, captioned with prompt and rewards."""
    tune: TuneConfig = field(default_factory=lambda: TuneConfig(rank=32, alpha=64.0))
    """Weights that are trained."""
    trainer: PolicyTrainerConfig = field(default_factory=PolicyTrainerConfig)
    """Settings of the training."""

    @property
    def turns(self) -> int:
        """Micro-batches that a batch of clips is used for: the steps of the window, or times of nft."""
        return self.num_sde_steps

    @property
    def window_range(self) -> tuple[int, int]:
        """First and last step that may be stochastic."""
        if self.sde_steps:
            return self.sde_steps[0], self.sde_steps[-1]
        return 0, max(self.num_sde_steps, self.num_inference_steps // 2) - 1


def form(config: GrpoConfig) -> Format:
    """Size, length and rate of the sampled clips. Raises TrainingError where they do not fit the VAE."""
    sizes = {key: getattr(config, key) for key in ("width", "height", "frames", "fps")}
    try:
        found = format_of(CacheConfig(out=config.out, backbone=config.backbone, **sizes))
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return found if found.fps else replace(found, fps=TOY_FPS)


def check(config: GrpoConfig) -> None:
    """Raises TrainingError for what can be known before anything is loaded."""
    settings.check(config)
    check_trackers(config.trainer)
    optimizer_arguments(config.trainer)
    check_model(config, config.trainer.precision, config.trainer.checkpointing)
    form(config)
    for text in [*config.rewards, *config.watch]:
        rewards.parse(text)
    if not config.rewards:
        raise TrainingError(
            'there is no reward to learn from; give --rewards, for example "motion weight=1".'
        )
    if config.prompts is None and not config.toy_prompts:
        raise TrainingError("there are no prompts; give --prompts, a folder with train.txt and test.txt.")
    if config.toy_prompts and config.backbone != "toy":
        raise TrainingError(
            f"toy_prompts are for the toy backbone, not for {config.backbone}; give --prompts."
        )
    if unknown := [name for name in config.toy_worlds if name not in WORLDS]:
        raise TrainingError(f"toy_worlds has {unknown[0]!r}; choose from {', '.join(WORLDS)}.")
    if config.group_size < LEAST_GROUP:
        raise TrainingError(
            f"group_size is {config.group_size}; advantages of fewer than {LEAST_GROUP} clips are noise: use "
            f"{LEAST_GROUP} or more, 8 to 16 in earnest."
        )
    if config.tune.dropout:
        raise TrainingError(
            f"dropout is {config.tune.dropout}; a policy must give the same probabilities twice: use 0."
        )
    if config.tune.mode == "full" and config.kl_beta:
        raise TrainingError(
            f"kl_beta is {config.kl_beta}, but a full fine-tune has no reference: use a LoRA, which is "
            "turned off for it, or 0."
        )
    check_sampler(config)


def check_sampler(config: GrpoConfig) -> None:
    """Raises TrainingError where steps, window or dynamics do not fit one another."""
    kind, v_model = config.dynamics_type, config.backbone == "cogvideox"
    if kind not in ("auto", "ODE") and (kind == "DDIM-eta") != v_model:
        what = "DDIM-eta" if v_model else "Flow-SDE, Dance-SDE or CPS"
        raise TrainingError(f"dynamics_type is {kind}; {config.backbone} takes {what}.")
    if config.algorithm == "nft":
        return
    if kind == "ODE" or config.noise_level == 0:
        raise TrainingError(
            f"dynamics_type is {kind} at noise_level {config.noise_level:g}, so no step has a probability to "
            "learn from; use noise, or --algorithm nft."
        )
    first, last = config.window_range
    if not 0 <= first <= last < config.num_inference_steps or len(config.sde_steps) > 2:
        raise TrainingError(
            f"sde_steps are {config.sde_steps or [first, last]}; they must be the first and last of a window "
            f"within 0 .. {config.num_inference_steps - 1}."
        )
    if config.num_sde_steps > last - first + 1:
        raise TrainingError(
            f"num_sde_steps is {config.num_sde_steps}, but steps {first} to {last} are only "
            f"{last - first + 1}; widen sde_steps."
        )


def accumulation(config: GrpoConfig, num_processes: int) -> int:
    """Micro-batches per optimiser step and process. Raises TrainingError where clips do not divide."""
    groups, updates, batch = (
        config.unique_sample_num_per_epoch,
        config.gradient_step_per_epoch,
        config.trainer.batch,
    )
    if config.trainer.accumulate != 1:
        raise TrainingError(
            f"accumulate is {config.trainer.accumulate}; it follows from the groups of an iteration: "
            "leave it out."
        )
    if groups % (num_processes * updates):
        raise TrainingError(
            f"unique_sample_num_per_epoch is {groups}; it must be a multiple of the {num_processes} "
            f"processes times the {updates} steps of an iteration."
        )
    clips = groups * config.group_size // (num_processes * updates)
    if clips % batch:
        raise TrainingError(f"batch is {batch}; it must divide the {clips} clips of a step and process.")
    return clips // batch * config.turns
