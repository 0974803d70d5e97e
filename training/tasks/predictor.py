"""`latent-physics predictor`: trains LaMo's motion field predictor on cached latents (arXiv 2605.23878,
section 3.3, eq 7).

`train_predictor` is the whole training as one function, for scripts and nodes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...methods.lamo import MotionFieldPredictor, predictor_loss, save_predictor
from ...methods.step import shifted
from ...methods.video_models import seconds_per_latent_frame
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.clips import Clips
from ..data.pairs import Pairs, PairSet
from ..loop.checkpoint import CHECKPOINT, CURVES, LOG
from ..loop.config import LoopConfig
from ..loop.log import Log
from ..loop.loop import Loop
from ..loop.processes import OneProcess, pick_device
from ..loop.task import OnStep, Report, Run, Task
from ..settings import Count, Decay, NotNegative, Number, Positive, Share, check
from .predictor_metrics import LEVELS, Where, error_sums, figures, names, noised, variance

EXPORT = "motion_predictor.safetensors"
FILES = (CHECKPOINT, EXPORT, LOG, CURVES)
"""Files of a run in its folder."""
TIMESTEPS = 1000
FINAL_SHARE = 0.02
"""The cosine schedule ends at this share of the learning rate."""


@dataclass(kw_only=True)
class PredictorConfig:
    """Sizes and training of a predictor. The defaults are the full recipe: about 10.8M parameters at 16
    channels."""

    lag: Count = 2
    """Number of latent frames that it predicts ahead (the paper's tau)."""
    order: Literal[1, 2] = 1
    """1: from one frame, as in the paper. 2: from one frame and the last change."""
    width: Count = 256
    """Channels inside."""
    blocks: Count = 8
    """Residual blocks."""
    alpha: NotNegative = 0.5
    """Weight of the cosine term (eq 7)."""
    noise_probability: Share = 0.5
    """Share of inputs with added noise, as the sampler's estimates are (the paper's p_aug)."""
    shift: Positive = 3.0
    """Shift of the noise levels of flow models, as their schedulers use it; CogVideoX brings its own
    levels."""
    prompt_dropout: Share = 0.2
    """Share of prompts replaced by the learned null prompt (p_drop)."""
    batch: Count = 16
    """Frame pairs per step. The full recipe holds 0.4 GiB of activations per pair at 480x832 pixels."""
    steps: Count = 20000
    """Training steps."""
    minutes: Positive | None = None
    """Stop cleanly after this many minutes, if that comes before `steps`; the learning rate then falls with
    the clock."""
    learning_rate: Positive = 3e-4
    """Learning rate of AdamW."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: Number = 200
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: Positive = 1.0
    """Clip gradients to this norm."""
    ema: Decay = 0.999
    """Decay of the running mean of the weights, which is what is validated and saved; 0 saves the weights
    themselves."""
    held_out: Share = 0.1
    """Fraction of the clips held out, at least one; 0 for none."""
    validation_pairs: Count = 512
    """Maximum number of held-out frame pairs that are measured."""
    keep: Literal["best", "last"] = "best"
    """Averaged weights that are saved: those with the least unexplained variance on held-out clips with
    noise on them, or the last ones."""
    every: Count = 500
    """Steps between validations, checkpoints and drawn curves."""
    seed: int = 0
    """Seed of the weights, the split, the order of the data and the noise."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    bf16: bool = False
    """Compute in bfloat16 (weights stay float32); faster on a GPU."""


RECIPES: dict[str, PredictorConfig] = {
    "full": PredictorConfig(),
    "toy": PredictorConfig(
        width=64,
        blocks=4,
        batch=32,
        steps=3000,
        learning_rate=1e-3,
        warmup=50,
        ema=0.995,
        every=100,
        shift=1.0,
    ),
    "quick": PredictorConfig(
        width=128, blocks=6, steps=3000, learning_rate=5e-4, warmup=100, ema=0.998, every=250, bf16=True
    ),
}
"""full: for a real backbone's latents on a GPU. toy: 0.5M parameters, for small latents on a CPU. quick: 2.2M
parameters for a real backbone's latents: 4e15 operations at 480x832 pixels, minutes on a GPU that does 10 to
50 TFLOP/s, and at most 2.4 GiB."""


def train_predictor(
    dataset: Clips,
    config: PredictorConfig | None = None,
    on_step: OnStep | None = None,
    *,
    folder: Path | None = None,
    stop: StopRequest | None = None,
) -> MotionFieldPredictor:
    """Trains a predictor on clips; returns it frozen, on the CPU, with the averaged weights.

    With `config.keep` "best" and clips held out, the weights are those of the validation that left the least
    unexplained.
    `on_step` is called after every step; the run ends where it returns False. An exception it raises (a
    host's cancel) goes
    through, after the state has been saved. `folder` keeps checkpoint, log and curves, and a run found there
    is resumed; None
    keeps everything in memory. May be called under `torch.inference_mode()`.
    Raises DatasetError or TrainingError where the data, a setting or the folder's run does not fit, or a file
    cannot be written.
    """
    training = PredictorTraining(dataset, config or RECIPES["full"], folder)
    training.run(on_step, stop)
    return training.averaged()


class PredictorStudent(nn.Module):
    """The predictor with its loss (eq 7)."""

    def __init__(self, model: MotionFieldPredictor, config: PredictorConfig) -> None:
        super().__init__()
        self.model, self.alpha, self.bf16 = model, config.alpha, config.bf16

    def forward(self, pairs: Pairs, dropped: Tensor, where: Where | None = None) -> dict[str, Tensor]:
        """Pairs whose `after` is the change, and whose prompts are dropped -> the loss.

        In evaluation mode the sums over the pairs of the clean loss and of the squared errors, which
        `metrics` divides.
        """
        predicted = self.predict(pairs, torch.where(dropped[:, None], self.model.null_prompt, pairs.cond))
        loss = predictor_loss(predicted, pairs.after, self.alpha)
        if self.training or where is None:
            return {"loss": loss}
        clean = {"loss": len(dropped) * loss} if where.level == 0 else {}
        return clean | error_sums(predicted, pairs.after, where)

    def predict(self, pairs: Pairs, cond: Tensor) -> Tensor:
        """f(z, c), of order 2 with the last change, `N C H W` float32."""
        previous = None if pairs.before is None else pairs.frame - pairs.before
        with torch.autocast(pairs.frame.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(pairs.frame, cond, previous).float()


class PredictorTask(Task):
    """LaMo's predictor on pairs of cached latent frames (section 3.3)."""

    names, shown = ("loss",), ("val_loss", "unexplained", "unexplained_noisy")
    pictures = {
        CURVES: {
            "loss (eq 7)": ("loss", "val_loss"),
            "unexplained variance of the change": ("unexplained", "unexplained_noisy"),
        }
    }

    def __init__(self, clips: Clips, config: PredictorConfig) -> None:
        """Raises DatasetError where clips are too few or too short, TrainingError where the held-out ones do
        not move."""
        if not clips.prompted:
            config = replace(config, prompt_dropout=0.0)  # there is no prompt to drop
        self.clips, self.config = clips, config
        training, held = clips.split(config.held_out, config.seed)
        self.pairs = PairSet(clips, training, config.lag, config.order)
        self.held, self.numbers = held_out_pairs(clips, held, config) if held else (None, None)
        self.validation_names = ("val_loss", *names(self.numbers)) if held else ()
        self.noise_levels = noise_levels(clips.latent_space, config.shift)
        self.latent_space, self.about = clips.latent_space, {"recipe": "motion predictor"}
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.manual_seed(config.seed)
            sizes = {"width": config.width, "blocks": config.blocks, "order": config.order}
            self.model = MotionFieldPredictor(clips.channels, clips.cond_dim, **sizes)
        self.module = PredictorStudent(self.model, config)
        if self.held is not None:
            self.variance = variance(self.held.after - self.held.frame)
            if self.variance <= 1e-12:
                raise TrainingError(
                    "The held-out clips do not move, so nothing can be measured on them: cache moving ones."
                )

    @property
    def validation_count(self) -> int:
        return 0 if self.held is None else len(LEVELS) * math.ceil(len(self.held.frame) / self.config.batch)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Pairs, Tensor]:
        pairs = self.pairs.at_step(number, self.config.batch, self.config.seed)
        frame, before, dropped = augment(pairs, self.config, self.noise_levels, generator)
        return Pairs(frame=frame, before=before, after=pairs.after - pairs.frame, cond=pairs.cond), dropped

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Pairs, Tensor, Where]:
        """The held-out pairs at one noise level after the other, prompt given."""
        place, level = divmod(place, len(LEVELS))
        held, part = self.held, slice(place * self.config.batch, (place + 1) * self.config.batch)
        before, change = (
            None if held.before is None else held.before[part],
            held.after[part] - held.frame[part],
        )
        pairs = Pairs(frame=held.frame[part], before=before, after=change, cond=held.cond[part])
        where = Where(LEVELS[level], self.numbers[part])
        return noised(pairs, where.level, generator), torch.zeros(len(change), dtype=torch.bool), where

    def metrics(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """The clean loss, and how much of the change is not explained (`predictor_metrics.figures`)."""
        change = self.held.after - self.held.frame
        return {"val_loss": sums["loss"] / len(change), **figures(sums, change, self.numbers)}

    def score(self, found: Mapping[str, float]) -> float | None:
        return found.get("unexplained_noisy")

    def fingerprint(self) -> str:
        return self.clips.fingerprint()

    def write(self, folder: Path, weights: Mapping[str, Tensor], report: Report) -> None:
        self.export(folder / EXPORT, weights, report)

    def export(self, path: Path, weights: Mapping[str, Tensor], report: Report) -> None:
        """Writes the predictor file that ComfyUI loads. Raises OSError."""
        save_predictor(path, self.network(weights), self.latent_space, self.config.lag, self.recipe(report))

    def network(self, weights: Mapping[str, Tensor]) -> MotionFieldPredictor:
        """The predictor with these weights: frozen, in evaluation mode, on the CPU."""
        with torch.inference_mode(False):
            model = copy.deepcopy(
                self.model
            ).cpu()  # a new one would draw its weights from the host's random state
            model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
            model.prompted = self.clips.prompted  # else prompts would act through untrained weights
            return model.requires_grad_(False).eval()

    def recipe(self, report: Report) -> dict[str, object]:
        """Origin of the weights, for their metadata."""
        settings = {key: value for key, value in asdict(self.config).items() if key != "device"}
        seconds = seconds_per_latent_frame(self.latent_space, self.clips.fps)
        facts = {
            "fps": self.clips.fps,
            "seconds_per_latent_frame": seconds,
            "step": report.step,
            "seconds": round(report.seconds, 1),
            "clips": len(self.clips),
            "pairs": len(self.pairs),
        }
        return {**settings, **facts, "data": self.fingerprint(), "kept_step": report.kept_step, **report.kept}


class PredictorTraining:
    """One training run: what `train_predictor` does, for callers that want to look inside."""

    def __init__(self, clips: Clips, config: PredictorConfig, folder: Path | None = None) -> None:
        """Raises DatasetError or TrainingError where the data, a setting or the run in `folder` does not
        fit."""
        check(config)
        self.config, self.task = config, PredictorTask(clips, config)
        accelerator = OneProcess(pick_device(config.device))
        out = Path(folder) if folder else None
        self._run = Run(
            config=loop_config(config),
            settings=asdict(config),
            task=self.task,
            out=out,
            accelerator=accelerator,
        )
        self.loop = Loop(self._run)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.loop.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done or the time is used up."""
        return self.loop.finished

    @property
    def log(self) -> Log:
        """The rows so far."""
        return self.loop.log

    def run(
        self,
        on_step: OnStep | None = None,
        stop: StopRequest | None = None,
        progress: ProgressLine | None = None,
    ) -> None:
        """Trains until finished, until `stop` is asked for, or until `on_step` returns False; then saves."""
        self._run.on_step = on_step
        self.loop.go(stop, progress)

    def averaged(self) -> MotionFieldPredictor:
        """The predictor with the weights that `config.keep` says, averaged: frozen, in evaluation mode, on
        the CPU."""
        return self.task.network(self.loop.kept())

    def best_metrics(self) -> dict[str, float]:
        """Step and held-out figures of the weights that are saved; no figures where nothing is held out."""
        report = self.loop.report()
        return {"kept_step": report.kept_step, **report.kept}

    def recipe(self) -> dict[str, object]:
        """Origin of the weights, for their metadata."""
        return self.task.recipe(self.loop.report())

    def export(self, path: Path) -> None:
        """Writes the predictor file that ComfyUI loads. Raises OSError."""
        self.task.export(path, self.loop.kept(), self.loop.report())


def loop_config(config: PredictorConfig) -> LoopConfig:
    """The part of the settings that any training has."""
    return LoopConfig(
        steps=config.steps, minutes=config.minutes, batch=config.batch,
        learning_rate=config.learning_rate, warmup=config.warmup,
        schedule=config.schedule, final_share=FINAL_SHARE, weight_decay=config.weight_decay, beta1=0.9,
        beta2=0.999,
        max_grad_norm=config.max_grad_norm, ema=config.ema, keep=config.keep, seed=config.seed,
        validate_every=config.every, save_every=config.every, validate_first=True,
        validation_clips=len(LEVELS) * config.validation_pairs,
    )  # fmt: skip


def augment(
    pairs: Pairs, config: PredictorConfig, levels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The training input: (frame, before, dropped) with frames `N C H W`, and `N` bools saying whose prompt
    is dropped.

    With probability `noise_probability` a sample becomes z + sigma eps with sigma drawn uniformly from
    `levels` (the paper's diffusion-aligned augmentation; not (1 - sigma) z + sigma eps, because f reads
    denoised estimates, whose signal is not scaled down). Both frames of order 2 get the same sigma and
    different noise: they come from the same sampling step.
    """
    count = len(pairs.frame)
    noised = torch.rand(count, generator=generator) < config.noise_probability
    sigma = levels[torch.randint(len(levels), (count,), generator=generator)] * noised
    dropped = torch.rand(count, generator=generator) < config.prompt_dropout
    sigma = sigma[:, None, None, None]
    frame = pairs.frame + sigma * torch.randn(pairs.frame.shape, generator=generator)
    if pairs.before is None:
        return frame, None, dropped
    return frame, pairs.before + sigma * torch.randn(pairs.before.shape, generator=generator), dropped


def noise_levels(latent_space: str, shift: float = 3.0) -> Tensor:
    """sigma_t over the training timesteps of a latent space's scheduler, ascending, `1000`.

    CogVideoX: sqrt(1 - alpha_bar). Flow models: s u / (1 + (s - 1) u) for u = 1/1000 .. 1.
    """
    if latent_space.startswith("cogvideox"):
        from ...methods.cogvideox import alphas_cumprod

        return (
            (1 - alphas_cumprod(1.0 if latent_space == "cogvideox1.5" else 3.0)).clamp(min=0).sqrt().float()
        )
    u = torch.arange(1, TIMESTEPS + 1) / TIMESTEPS
    return shifted(u, shift)


def held_out_pairs(clips: Clips, held: Sequence[int], config: PredictorConfig) -> tuple[Pairs, Tensor]:
    """(held-out pairs, the frame each begins at). Those that both orders have, i from 1, where clips are long
    enough, so that a predictor of order 1 and one of order 2 are measured on the same."""
    shared = max(clips.lengths[clip] for clip in held) > config.lag + 1
    pairs = PairSet(clips, held, config.lag, config.order, first=1 if shared else None)
    chosen = pairs.evenly(config.validation_pairs)
    return pairs.batch(chosen), pairs.numbers(chosen)
