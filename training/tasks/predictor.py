"""`latent-physics predictor`: trains LaMo's motion field predictor on cached latents (arXiv 2605.23878, section 3.3, eq 7).

`train_predictor` is the whole training as one function, for scripts and nodes; `main` is its command line. Every random draw of
a step is a function of (seed, step), so a run that was stopped or killed ends with the weights it would have had anyway.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...methods.lamo import MotionFieldPredictor, predictor_loss, save_predictor
from ..console import RunError, StopRequest, load_checkpoint, remove_leftovers, save_checkpoint, saving
from ..data.clips import Clips
from ..data.pairs import Pairs, PairSet
from ..loop.checkpoint import differing
from ..loop.log import Log, draw_curves
from ..loop.processes import pick_device

KIND = "predictor_checkpoint"
CHECKPOINT, EXPORT, LOG, CURVES = "checkpoint.safetensors", "motion_predictor.safetensors", "log.csv", "curves.png"
COLUMNS = ("loss", "lr", "grad_norm", "seconds", "val_loss", "unexplained")
PANELS = {"loss (eq 7)": ("loss", "val_loss"), "unexplained variance of the change": ("unexplained",)}
FREE_TO_CHANGE = ("steps", "minutes", "every", "device")
"""Settings that may differ when a run goes on; the others would make it another run."""
TIMESTEPS = 1000
FINAL_LR = 0.02
"""The cosine schedule ends at this fraction of the learning rate."""


@dataclass(kw_only=True)
class PredictorConfig:
    """How a predictor is built and trained. The defaults are the full recipe: about 10.8M parameters at 16 channels."""

    lag: int = 2
    """How many latent frames ahead it predicts (the paper's tau)."""
    order: Literal[1, 2] = 1
    """1: from one frame, as in the paper. 2: from one frame and the last change."""
    width: int = 256
    """Channels inside."""
    blocks: int = 8
    """Residual blocks."""
    alpha: float = 0.5
    """Weight of the cosine term (eq 7)."""
    noise_probability: float = 0.5
    """How often the input is noised, as the sampler's estimates are (the paper's p_aug)."""
    shift: float = 3.0
    """Shift of the noise levels of flow models, as their schedulers use it; CogVideoX brings its own levels."""
    drop_probability: float = 0.2
    """How often the prompt is replaced by the learned null prompt (p_drop)."""
    batch: int = 16
    """Frame pairs per step. The full recipe holds 0.4 GiB of activations per pair at 480x832 pixels."""
    steps: int = 20000
    """Training steps."""
    minutes: float | None = None
    """Stop cleanly after this many minutes, if that comes before `steps`; the learning rate then falls with the clock."""
    lr: float = 3e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: int = 200
    """Steps over which the learning rate rises from 0."""
    clip: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the running mean of the weights, which is what is validated and saved; 0 saves the weights themselves."""
    validation: float = 0.1
    """Fraction of the clips held out, at least one; 0 for none."""
    validation_pairs: int = 512
    """At most so many frame pairs of them are looked at."""
    keep: Literal["best", "last"] = "best"
    """Which averaged weights are saved: those with the least unexplained variance on the held-out clips, or the last ones."""
    every: int = 500
    """Validate, save and draw the curves every so many steps."""
    seed: int = 0
    """Seed of the weights, the split, the order of the data and the noise."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    bf16: bool = False
    """Compute in bfloat16 (weights stay float32); faster on a GPU."""


RECIPES: dict[str, PredictorConfig] = {
    "full": PredictorConfig(),
    "toy": PredictorConfig(width=64, blocks=4, batch=32, steps=3000, lr=1e-3, warmup=50, ema=0.995, every=100, shift=1.0),
}
"""full: for a real backbone's latents on a GPU. toy: 0.5M parameters, for small latents on a CPU."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a training step tells its observer."""

    step: int
    """Steps done so far."""
    fraction: float
    """How much of the run is done, in [0, 1]: by steps or by the time budget, whichever ends first."""
    loss: float
    """Training loss of this step."""
    seconds: float
    """Training time so far, earlier runs included."""
    val_loss: float | None
    """Latest validation loss (clean input, prompt given); None where nothing is held out."""
    unexplained: float | None
    """Latest MSE(f, D) / Var(D) on held-out clips: 1 for a predictor that knows nothing, 0 for a perfect one."""


OnStep = Callable[[StepReport], "bool | None"]


def train_predictor(
    dataset: Clips,
    config: PredictorConfig | None = None,
    on_step: OnStep | None = None,
    *,
    folder: Path | None = None,
    stop: StopRequest | None = None,
) -> MotionFieldPredictor:
    """Trains a predictor on clips; returns it frozen, on the CPU, with the averaged weights.

    With `config.keep` "best" and clips held out, the weights are those of the validation that left the least unexplained.
    `on_step` is called after every step; the run ends where it returns False. An exception it raises (a host's cancel) goes
    through, after the state has been saved. `folder` keeps checkpoint, log and curves, and a run found there goes on; None
    keeps everything in memory. May be called under `torch.inference_mode()`.
    Raises DatasetError or RunError where the data, a setting or the folder's run does not fit, or a file cannot be written.
    """
    training = PredictorTraining(dataset, config or RECIPES["full"], folder)
    training.run(on_step, stop)
    return training.averaged()


class PredictorTraining:
    """One training run: what `train_predictor` does, for callers that want to look inside."""

    def __init__(self, clips: Clips, config: PredictorConfig, folder: Path | None = None) -> None:
        """Raises DatasetError or RunError where the data, a setting or the run in `folder` does not fit."""
        check_config(config)
        self.clips, self.config, self.folder = clips, config, Path(folder) if folder else None
        self.device = torch.device(pick_device(config.device))
        training, held = clips.split(config.validation, config.seed)
        self.pairs = PairSet(clips, training, config.lag, config.order)
        self.held = PairSet(clips, held, config.lag, config.order).spread(config.validation_pairs) if held else None
        self.noise_levels = noise_levels(clips.latent_space, config.shift)
        self.step, self.seconds = 0, 0.0
        self.val_loss: float | None = None
        self.unexplained: float | None = None
        self.best: dict[str, Tensor] = {}
        self.best_step, self.best_loss, self.best_unexplained = 0, math.inf, math.inf
        with torch.inference_mode(False):
            self._build()
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.folder)
                self._resume()
        self.log = Log(self.folder / LOG if self.folder else None, COLUMNS, after=self.step)

    def _build(self) -> None:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = MotionFieldPredictor(
                self.clips.channels, self.clips.cond_dim, width=config.width, blocks=config.blocks, order=config.order
            )
        self.model.to(self.device)
        self.mean = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    # -- the loop ------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all steps are done or the time is used up."""
        return self.fraction >= 1

    @property
    def fraction(self) -> float:
        """How much of the run is done, in [0, 1]."""
        timed = self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, timed))

    def run(self, on_step: OnStep | None = None, stop: StopRequest | None = None) -> None:
        """Trains until finished, until `stop` is asked for, or until `on_step` returns False; then saves."""
        with torch.inference_mode(False), torch.enable_grad(), ThreadPoolExecutor(1) as reader:
            if self.step == 0:
                self.validate()
                with saving(LOG, self._kept()):
                    self.log.add(step=0, **self._validation())
            last, began = self.seconds, time.monotonic()
            ahead = reader.submit(self._draw, self.step)
            while not self.finished and not (stop and stop.asked):
                pairs, ahead = ahead.result(), self._ahead(reader)
                row = self._step_in_memory(pairs)
                self.seconds = last + time.monotonic() - began
                if self.step % self.config.every == 0 or self.finished:
                    self.validate()
                    row |= self._validation()
                with saving(LOG, self._kept()):
                    self.log.add(step=self.step, seconds=round(self.seconds, 3), **row)
                if self.step % self.config.every == 0:
                    self.save()
                if on_step is not None and self._tell(on_step, row["loss"]) is False:
                    break
            ahead.cancel()
            self.save()

    def _ahead(self, reader: ThreadPoolExecutor) -> Future[Pairs]:
        """Starts reading the next step's batch while this step computes."""
        return reader.submit(self._draw, self.step + 1)

    def _draw(self, step: int) -> Pairs:
        return self.pairs.at_step(step, self.config.batch, self.config.seed)

    def _tell(self, on_step: OnStep, loss: float) -> bool | None:
        report = StepReport(
            step=self.step,
            fraction=self.fraction,
            loss=loss,
            seconds=self.seconds,
            val_loss=self.val_loss,
            unexplained=self.unexplained,
        )
        try:
            return on_step(report)
        except BaseException:
            self.save()
            raise

    def _step_in_memory(self, pairs: Pairs) -> dict[str, float]:
        """`train_step`, with a GPU that is too small said in one sentence."""
        try:
            return self.train_step(pairs)
        except torch.OutOfMemoryError as error:
            hint = f"use a smaller batch than {self.config.batch}, or bf16"
            raise RunError(f"The GPU's memory does not hold step {self.step}; {self._kept()}: {hint}.") from error

    def train_step(self, pairs: Pairs) -> dict[str, float]:
        """One optimiser step on a batch; returns loss, lr and gradient norm. Raises RunError where the loss is not finite."""
        config = self.config
        lr = config.lr * lr_factor(config, self.step, self.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        seed = np.random.SeedSequence([config.seed, self.step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
        frame, before, dropped = augment(pairs, config, self.noise_levels, generator)
        pairs = Pairs(frame=frame, before=before, after=pairs.after - pairs.frame, cond=pairs.cond).to(self.device)
        cond = torch.where(dropped.to(self.device)[:, None], self.model.null_prompt, pairs.cond)
        self.optimizer.zero_grad(set_to_none=True)
        loss = predictor_loss(self._predict(self.model, pairs, cond), pairs.after, config.alpha)
        if not torch.isfinite(loss):
            hint = f"lower the learning rate ({config.lr})"
            raise RunError(f"The loss is {loss.item()} at step {self.step}; {self._kept()}: {hint}.")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self._average()
        return {"loss": loss.item(), "lr": lr, "grad_norm": norm.item()}

    def _predict(self, model: MotionFieldPredictor, pairs: Pairs, cond: Tensor) -> Tensor:
        previous = None if pairs.before is None else pairs.frame - pairs.before
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return model(pairs.frame, cond, previous).float()

    def _average(self) -> None:
        """Moves the running mean of the weights; its decay rises with the steps, so that the first weights are forgotten."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.config.ema else 0.0
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.mean[key].lerp_(value, 1 - decay)

    # -- validation and files ------------------------------------------------------------------------------------------

    def averaged(self) -> MotionFieldPredictor:
        """The predictor with the averaged weights, those that `config.keep` says: frozen, in evaluation mode, on the CPU."""
        return self._with(self.best or self.mean)

    def _with(self, state: dict[str, Tensor]) -> MotionFieldPredictor:
        with torch.inference_mode(False):
            model = copy.deepcopy(self.model).cpu()  # a new one would draw its weights from the host's random state
            model.load_state_dict(state)
            return model.requires_grad_(False).eval()

    @torch.no_grad()
    def validate(self) -> None:
        """Measures the averaged weights on the held-out pairs: clean input, prompt given. Sets `val_loss`, `unexplained`.

        Raises RunError where the held-out clips do not move at all.
        """
        if self.held is None:
            return
        model = self._with(self.mean).to(self.device)
        predicted = []
        for start in range(0, len(self.held.frame), self.config.batch):
            part = slice(start, start + self.config.batch)
            before = None if self.held.before is None else self.held.before[part]
            pairs = Pairs(frame=self.held.frame[part], before=before, after=self.held.after[part], cond=self.held.cond[part])
            pairs = pairs.to(self.device)
            predicted.append(self._predict(model, pairs, pairs.cond).cpu())
        prediction, change = torch.cat(predicted), self.held.after - self.held.frame
        self.val_loss = predictor_loss(prediction, change, self.config.alpha).item()
        self.unexplained = unexplained_variance(prediction, change)
        if not math.isfinite(self.unexplained):
            raise RunError("The held-out clips do not move, so nothing can be measured on them: cache clips with motion.")
        # Step 0 is the constant zero: guidance towards it would only stop all motion.
        if self.config.keep == "best" and self.step and self.unexplained < self.best_unexplained:
            self.best = {key: value.clone() for key, value in self.mean.items()}
            self.best_step, self.best_loss, self.best_unexplained = self.step, self.val_loss, self.unexplained

    def _validation(self) -> dict[str, float]:
        if self.val_loss is None or self.unexplained is None:
            return {}
        return {"val_loss": self.val_loss, "unexplained": self.unexplained}

    def recipe(self) -> dict[str, object]:
        """How the weights came about, for their metadata."""
        settings = {key: value for key, value in asdict(self.config).items() if key != "device"}
        facts = {"step": self.step, "seconds": round(self.seconds, 1), "clips": len(self.clips), "pairs": len(self.pairs)}
        return {**settings, **facts, "data": self.clips.fingerprint(), **self.kept()}

    def kept(self) -> dict[str, float]:
        """Step and held-out figures of the weights that are saved; no figures where nothing is held out."""
        if self.best:
            return {"kept_step": self.best_step, "val_loss": self.best_loss, "unexplained": self.best_unexplained}
        return {"kept_step": self.step, **self._validation()}

    def save(self) -> None:
        """Writes checkpoint, weights and curves into the folder, each all or nothing. Raises RunError where the disk is full."""
        if self.folder is None:
            return
        with saving(CHECKPOINT, self._kept()):
            save_checkpoint(
                self.folder / CHECKPOINT,
                kind=KIND,
                latent_space=self.clips.latent_space,
                config={**asdict(self.config), "data": self.clips.fingerprint()},
                progress={"step": self.step, "seconds": self.seconds, "kept": self.kept(), **self._validation()},
                states={"model": self.model.state_dict(), "mean": self.mean, "best": self.best},
                optimizer=self.optimizer,
            )
        self._saved = self.step
        with saving(EXPORT, self._kept()):
            self.export(self.folder / EXPORT)
            draw_curves(self.log, self.folder / CURVES, PANELS, f"{self.clips.latent_space}, step {self.step}")

    def export(self, path: Path) -> None:
        """Writes the predictor file that ComfyUI loads. Raises OSError."""
        save_predictor(path, self.averaged(), self.clips.latent_space, self.config.lag, self.recipe())

    _saved = 0

    def _kept(self) -> str:
        """What is safe if the next write fails."""
        return f"the checkpoint of step {self._saved} is safe" if self._saved else "no checkpoint was written before"

    def _resume(self) -> None:
        """Goes on from the checkpoint in the folder, where there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        states, progress, info = load_checkpoint(path, kind=KIND)
        new = {**asdict(self.config), "data": self.clips.fingerprint()}
        changed = differing(info.config, new, FREE_TO_CHANGE)
        if changed:
            hint = "use another folder, or start over with --fresh"
            raise RunError(f"{self.folder} holds a run with other settings ({changed}): {hint}.")
        load_checkpoint(path, kind=KIND, optimizer=self.optimizer)
        self.model.load_state_dict(states["model"])
        self.mean = {key: value.to(self.device) for key, value in states["mean"].items()}
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.val_loss, self.unexplained = progress.get("val_loss"), progress.get("unexplained")
        self.best = states.get("best", {})
        if self.best:
            kept = progress["kept"]
            self.best_step, self.best_loss, self.best_unexplained = kept["kept_step"], kept["val_loss"], kept["unexplained"]
        self._saved = self.step


def augment(
    pairs: Pairs, config: PredictorConfig, levels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The training input: (frame, before, dropped) with frames `N C H W`, and `N` bools saying whose prompt is dropped.

    With probability `noise_probability` a sample becomes z + sigma eps with sigma drawn uniformly from `levels` (the paper's
    diffusion-aligned augmentation; not (1 - sigma) z + sigma eps, because f reads denoised estimates, whose signal is not scaled
    down). Both frames of order 2 get the same sigma and different noise: they come from the same sampling step.
    """
    count = len(pairs.frame)
    noised = torch.rand(count, generator=generator) < config.noise_probability
    sigma = levels[torch.randint(len(levels), (count,), generator=generator)] * noised
    dropped = torch.rand(count, generator=generator) < config.drop_probability
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
        from ..backbones.cogvideox import alphas_cumprod

        return (1 - alphas_cumprod(1.0 if latent_space == "cogvideox1.5" else 3.0)).clamp(min=0).sqrt().float()
    u = torch.arange(1, TIMESTEPS + 1) / TIMESTEPS
    return shift * u / (1 + (shift - 1) * u)


def unexplained_variance(prediction: Tensor, change: Tensor) -> float:
    """MSE(f, D) / Var(D), both `N C H W`; the variance is about each channel's mean. inf where D does not vary."""
    variance = (change - change.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    error = (prediction - change).square().mean()
    return (error / variance).item() if variance > 1e-12 else math.inf


def lr_factor(config: PredictorConfig, step: int, fraction: float) -> float:
    """The learning rate's multiplier before step number `step`, with `fraction` of the run done."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    if config.schedule == "constant":
        return rise
    return rise * (FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * fraction)))


def check_config(config: PredictorConfig) -> None:
    """Raises RunError, in one sentence, for a setting out of range."""
    least = {"lag": 1, "width": 1, "blocks": 1, "batch": 1, "steps": 1, "validation_pairs": 1, "every": 1}
    for name, low in least.items():
        if getattr(config, name) < low:
            raise RunError(f"{name} is {getattr(config, name)}; it must be at least {low}.")
    for name in ("noise_probability", "drop_probability", "validation", "ema"):
        if not 0 <= getattr(config, name) <= 1:
            raise RunError(f"{name} is {getattr(config, name)}; it must be between 0 and 1.")
    for name in ("lr", "clip", "shift"):
        if not getattr(config, name) > 0:
            raise RunError(f"{name} is {getattr(config, name)}; it must be greater than 0.")
    if config.minutes is not None and not config.minutes > 0:
        raise RunError(f"minutes is {config.minutes}; it must be greater than 0.")
