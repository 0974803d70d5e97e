"""Fine-tuning as a task of the trainer: the denoising loss plus objectives, on cached clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders.need import TeacherNeed
from ..backbones import Backbone
from ..backbones.first_frame import FirstFrame
from ..console import TrainingError
from ..data.batches import Batch, TrainingClips
from ..data.feature_cache import FeatureCache
from ..loop.config import TrainerConfig
from ..loop.optim import trainable
from ..loop.task import ParameterGroup, Task
from ..objectives.base import Objective, StepView
from .first_frame import not_possible
from .noise import BANDS, NoiseConfig, Times
from .preview import Samples


class Student(nn.Module):
    """The transformer and the objectives' projectors as one module, so that data parallelism sees one forward
    pass."""

    def __init__(self, backbone: Backbone, objectives: nn.ModuleDict, times: Times | None = None) -> None:
        super().__init__()
        self.times = times or Times(backbone)
        self.dit = backbone.dit
        self.objectives = objectives
        self.without_weight: frozenset[str] = frozenset()
        """Objectives that are not computed on this training step."""
        self._no_split_modules = backbone.dit._no_split_modules  # what FSDP shards one by one
        self.backbone = (backbone,)  # in a tuple: its other parts are not parameters of this module

    def forward(self, batch: Batch, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Unweighted losses by name, "denoise" first; in validation also sums by noise (`band_sums`)."""
        (backbone,) = self.backbone
        noised = backbone.noise(batch.latent, t, eps=eps).showing(batch.latent, batch.first)
        wanted = {name: objective for name, objective in self.objectives.items() if self.wants(name)}
        blocks = sorted({block for objective in wanted.values() for block in objective.blocks})
        with backbone.tap(*blocks) as taps:
            out = backbone.predict(noised.noisy, t, batch.tokens, batch.mask, batch.first, batch.rates)
        counted = self.times.mask_weight(batch.loss_mask)
        error = noised.weight * noised.error(out, self.times.error, counted)
        weight = self.times.weight(t)
        losses = {"denoise": (error if weight is None else weight.to(error) * error).mean()}
        if wanted:
            x0 = noised.with_given(backbone.x0(noised.noisy.float(), out.float(), t))
            view = StepView(
                latent=batch.latent,
                x0=x0,
                signal=backbone.signal_power(t),
                taps=taps,
                features=batch.features,
            )
            losses |= {name: objective(view) for name, objective in wanted.items()}
        # Several processes wait for the gradient of every parameter, those of objectives without weight too.
        unused = [
            p.sum()
            for name in self.objectives
            if name not in wanted
            for p in self.objectives[name].parameters()
        ]
        losses["denoise"] = losses["denoise"] + 0.0 * sum(unused) if unused else losses["denoise"]
        return losses if self.training else losses | self.band_sums(error.detach(), t)

    def band_sums(self, error: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Sum of the samples' errors `B` in each third of the noise, and their number."""
        bands, found = self.times.bands(t).to(error.device), {}
        for place, name in enumerate(BANDS):
            inside = (bands == place).to(error)
            found |= {f"denoise {name} noise": (inside * error).sum(), f"count {name} noise": inside.sum()}
        return found

    def wants(self, name: str) -> bool:
        """Whether an objective is to be computed: in validation, and where it has a weight on this step."""
        return not self.training or name not in self.without_weight


class DenoisingTask(Task):
    """L = L_denoise + sum of weighted objectives (LaMo eq 6, TSA eq 14, MoAlign eq 9)."""

    def __init__(
        self,
        backbone: Backbone,
        clips: TrainingClips,
        objectives: Mapping[str, Objective] | None = None,
        *,
        needs: Sequence[TeacherNeed] = (),
        features: FeatureCache | None = None,
        prompt_dropout: float = 0.0,
        null_tokens: Tensor | None = None,
        about: dict[str, Any] | None = None,
        samples: Samples | None = None,
        noise: NoiseConfig | None = None,
        first_frame: float = 0.0,
    ) -> None:
        """null_tokens: `L D` of the empty prompt, for `prompt_dropout`; first_frame: share of clips whose
        first frame a model that can be given one is given. Raises TrainingError where clips and backbone do
        not fit."""
        if clips.latent_space != backbone.latent_space:
            raise TrainingError(
                f"{clips.folder} holds clips of latent space {clips.latent_space}, the backbone's is "
                f"{backbone.latent_space}; "
                "cache the videos for this backbone."
            )
        if prompt_dropout and null_tokens is None:
            raise TrainingError("prompt_dropout needs the tokens of the empty prompt, which were not given.")
        if backbone.first_frame == "needed":
            clips.check_first_frames(vision=backbone.sees_with_clip)
        if noise is not None and noise.mask_min_value is not None:
            clips.check_masks()
        if first_frame and backbone.first_frame != "possible":
            raise TrainingError(not_possible(first_frame))
        self.first_frame = first_frame
        self.backbone, self.clips, self.needs, self.features = backbone, clips, needs, features
        self.prompt_dropout, self.null_tokens = prompt_dropout, null_tokens
        self.objectives = (
            objectives if isinstance(objectives, nn.ModuleDict) else nn.ModuleDict(objectives or {})
        )
        self.times = Times(backbone, noise)
        self.module = Student(backbone, self.objectives, self.times)
        self.names = ("denoise", *self.objectives)
        self.latent_space = backbone.latent_space
        self.about = about or {}
        self.samples = samples
        self.shown = tuple(self.objectives)
        self.validation_count = len(clips.validation)
        self.validation_names = (
            *(f"val_{name}" for name in self.names),
            *(f"val_denoise {band} noise" for band in BANDS),
        )

    def metrics(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        """Means of the losses, and of the denoising error in each third of the noise that a clip was in."""
        sums = dict(sums)
        totals = {band: sums.pop(f"denoise {band} noise") for band in BANDS}
        counts = {band: sums.pop(f"count {band} noise") for band in BANDS}
        found = super().metrics(sums, count)
        return found | {
            f"val_denoise {band} noise": totals[band] / counts[band] for band in BANDS if counts[band]
        }

    def weights(self, step: int) -> dict[str, float]:
        weights = {name: objective.settings.weight_at(step) for name, objective in self.objectives.items()}
        self.module.without_weight = frozenset(name for name, weight in weights.items() if not weight)
        return {"denoise": 1.0} | weights

    def groups(self, config: TrainerConfig) -> list[ParameterGroup]:
        """The transformer, and the objectives' projectors at a rate of their own."""
        values = trainable(self.module)
        outer = [value for name, value in values.items() if name.startswith("objectives.")]
        inner = [value for name, value in values.items() if not name.startswith("objectives.")]
        return [
            ParameterGroup(parameters=inner, learning_rate=config.learning_rate),
            ParameterGroup(
                parameters=outer,
                learning_rate=config.projector_learning_rate or config.learning_rate,
                max_grad_norm=config.projector_max_grad_norm,
            ),
        ]

    def draw(self, number: int, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
        batch = self.clips.read(self.clips.chosen(number), self.needs, self.features)
        if self.prompt_dropout:
            drop_prompts(
                batch,
                self.null_tokens,
                torch.rand(len(batch.names), generator=generator) < self.prompt_dropout,
            )
        self._show_first_frames(batch, generator)
        t = self.times.draw(len(batch.names), generator)
        return batch, t, torch.randn(batch.latent.shape, generator=generator)

    def _show_first_frames(self, batch: Batch, generator: torch.Generator) -> None:
        """Draws, for models that can be given a first frame, which clips give theirs; a picture has no frame
        to follow it."""
        if self.first_frame and batch.latent.shape[2] > 1:
            given = torch.rand(len(batch.names), generator=generator) < self.first_frame
            batch.first = FirstFrame(given=given)

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
        """One clip; the times of all validation clips are spread as training's are."""
        batch = self.clips.read([self.clips.validation[place]], self.needs, self.features)
        self._show_first_frames(batch, generator)
        times = self.times.draw(256, torch.Generator().manual_seed(1)).sort().values
        t = times[int((place + 0.5) * 0.618034 % 1 * 256)][None]
        return batch, t, torch.randn(batch.latent.shape, generator=generator)

    def show(self, step: int, folder: Path | None) -> None:
        if self.samples is not None:
            self.samples.write(self.backbone, step, folder)

    def fingerprint(self) -> str:
        return self.clips.fingerprint()

    def placed(self, accelerator: Any) -> None:
        self.backbone.device = accelerator.device


def fitted(built: nn.ModuleDict, clips: TrainingClips) -> dict[str, dict[str, float]]:
    """Fits objectives to the scale of the clips; returns what the run's files say of it, by name.

    Raises TrainingError before the first step where clips are too short for the drift's lag.
    """
    shortest = min(entry.shape[1] for entry in clips.entries)
    for objective in built.values():
        lag = getattr(objective.settings, "lag", 0)
        if shortest <= lag:
            raise TrainingError(
                f"the shortest clip has {shortest} latent frames, too few for a drift at lag {lag}; use "
                f"longer clips."
            )
    found = {name: objective.calibrate(some_latents(clips)) for name, objective in built.items()}
    return {name: values for name, values in found.items() if values}


def some_latents(clips: TrainingClips, most: int = 64) -> Iterator[Tensor]:
    """Clean latents `C T H W` of at most `most` training clips, spread over all of them: enough for a
    median."""
    stride = max(1, len(clips.training) // most)
    for index in clips.training[::stride][:most]:
        yield clips.read([index]).latent[0]


def drop_prompts(batch: Batch, null_tokens: Tensor, dropped: Tensor) -> None:
    """Replaces the prompts of the rows in `dropped` by the empty prompt, in place."""
    if not dropped.any():
        return
    length = max(batch.tokens.shape[1], len(null_tokens))
    batch.tokens = nn.functional.pad(batch.tokens, (0, 0, 0, length - batch.tokens.shape[1]))
    batch.mask = nn.functional.pad(batch.mask, (0, length - batch.mask.shape[1]))
    batch.tokens[dropped] = nn.functional.pad(null_tokens.float(), (0, 0, 0, length - len(null_tokens)))
    batch.mask[dropped] = torch.arange(length) < len(null_tokens)
