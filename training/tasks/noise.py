"""Noise levels of a fine-tune, and weights of the denoising error.

Without settings the times are the family's own (`Backbone.sample_t`). Shares of noise run from 0, the clean
latent, to 1: sigma of a flow, the timestep over the last one of DDPM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...methods.step import shifted
from ..backbones import Backbone
from ..backbones.base import mean_over
from ..console import TrainingError
from ..settings import NotNegative, Positive, Share

TIMESTEPS = 1000
ROUNDS = 200
"""Draws of a thousand times after which a range counts as empty."""
BANDS = ("low", "middle", "high")
"""Thirds of the noise, from the clean latent on."""


@dataclass(kw_only=True)
class NoiseConfig:
    """Noise levels of the training."""

    noise_preset: Literal[
        "none", "wan2.1-480p", "wan2.1-720p", "wan2.2-t2v-high", "wan2.2-t2v-low", "wan2.2-i2v-high",
        "wan2.2-i2v-low", "wan2.2-5b", "hunyuanvideo1.5-480p", "hunyuanvideo1.5-720p",
    ] = "none"  # fmt: skip
    """Shift and range of a published model; what is given beside it wins."""
    timestep_sampling: Literal["family", "logit_normal", "sigmoid", "uniform", "mode"] = "family"
    """Distribution of the training times, by the field's names; "family" is Wan's logit-normal and
    CogVideoX's uniform, "sigmoid" the logit-normal of mean 0 and deviation 1."""
    logit_mean: float = 0.0
    """Mean of the normal distribution behind "logit_normal"."""
    logit_std: Positive = 1.0
    """Deviation of that normal distribution."""
    shift: Positive | None = None
    """Moves the times of a flow towards noise, sigma = s u / (1 + (s - 1) u); left out, 3 for Wan, 7
    for HunyuanVideo 1.5 and 7.8 for LTX-2.3, as ComfyUI samples them."""
    min_t: Share = 0.0
    """Least share of noise that is trained at."""
    max_t: Share = 1.0
    """Largest share of noise that is trained at."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """Weight of the denoising error: 1, or min(SNR, 5) / (SNR + 1) for v-prediction (CogVideoX)."""
    huber: NotNegative = 0.0
    """Errors above this count linearly instead of squared; 0 squares all."""
    mask_min_value: Share | None = None
    """Weighs the denoising error by the clips' masks (`cache --masks`): 1 where they are white, this much
    where black (ai-toolkit's word); left out, masks have no effect."""


BOUNDARY = {"t2v": 0.875, "i2v": 0.9}
"""Wan 2.2 14B: share of noise above which its high-noise expert answers."""
PRESETS: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "wan2.1-480p": {"shift": 3.0},
    "wan2.1-720p": {"shift": 5.0},
    "wan2.2-t2v-high": {"shift": 12.0, "min_t": BOUNDARY["t2v"]},
    "wan2.2-t2v-low": {"shift": 12.0, "max_t": BOUNDARY["t2v"]},
    "wan2.2-i2v-high": {"shift": 5.0, "min_t": BOUNDARY["i2v"]},
    "wan2.2-i2v-low": {"shift": 5.0, "max_t": BOUNDARY["i2v"]},
    "wan2.2-5b": {"shift": 5.0},
    "hunyuanvideo1.5-480p": {"shift": 5.0},
    "hunyuanvideo1.5-720p": {"shift": 9.0},
}
"""Shifts and boundaries of the models' own published sampling settings."""


def resolved(config: NoiseConfig) -> NoiseConfig:
    """The settings with the preset's values where none were given. Raises TrainingError for a range without
    room."""
    usual = {field.name: field.default for field in fields(NoiseConfig)}
    chosen = PRESETS[config.noise_preset]
    found = replace(
        config, **{name: value for name, value in chosen.items() if getattr(config, name) == usual[name]}
    )
    if found.min_t >= found.max_t:
        raise TrainingError(f"min_t is {found.min_t:g} and max_t {found.max_t:g}; min_t must be the smaller.")
    return found


def check(config: NoiseConfig, family: str) -> None:
    """Raises TrainingError for what a family cannot do: known before anything is loaded."""
    found, flow = resolved(config), family != "cogvideox"
    if found.shift is not None and not flow:
        raise TrainingError(
            f"shift is {found.shift:g}; it moves the times of a flow, {family} has timesteps."
        )
    if found.loss_weighting == "min_snr" and flow:
        raise TrainingError(
            f"loss_weighting is min_snr, which is for v-prediction; {family} is a flow: use none."
        )


class Times:
    """Draws training times of a backbone."""

    def __init__(self, backbone: Backbone, config: NoiseConfig | None = None) -> None:
        """Raises TrainingError where the settings do not fit the backbone."""
        self.backbone, self.config = backbone, resolved(config or NoiseConfig())
        check(self.config, backbone.family)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Times `B` of the backbone's own unit, from the distribution restricted to the range. Raises
        TrainingError where it (almost) never falls there."""
        whole = (self.config.min_t, self.config.max_t) == (0.0, 1.0)
        if whole:
            return self._draw(count, generator)
        found: list[Tensor] = []
        for _ in range(ROUNDS):
            times = self._draw(TIMESTEPS, generator)
            share = self.share(times)
            found.append(times[(share >= self.config.min_t) & (share <= self.config.max_t)])
            if sum(map(len, found)) >= count:
                return torch.cat(found)[:count]
        raise TrainingError(
            f"no time falls between min_t {self.config.min_t:g} and max_t {self.config.max_t:g}; widen the "
            f"range or change the shift."
        )

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        config, flow = self.config, self.backbone.prediction == "flow"
        if config.timestep_sampling == "family" and config.shift is None:
            return self.backbone.sample_t(count, generator)
        scheme = config.timestep_sampling
        if scheme == "family":
            scheme = "sigmoid" if flow else "uniform"
        u = density(scheme, count, config, generator)
        if not flow:
            return (u * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        shift = config.shift if config.shift is not None else self.backbone.shift
        return shifted(u, shift)

    def share(self, t: Tensor) -> Tensor:
        """Share of noise of times `B`, in [0, 1]."""
        return t.float() if self.backbone.prediction == "flow" else t.float() / (TIMESTEPS - 1)

    def bands(self, t: Tensor) -> Tensor:
        """The third of the noise that each time is in, `B`: a place in BANDS."""
        return (self.share(t) * len(BANDS)).long().clamp(max=len(BANDS) - 1)

    def weight(self, t: Tensor) -> Tensor | None:
        """Weight of each sample's denoising error, `B`; None: 1. Source: Min-SNR (arXiv 2303.09556), for
        v-prediction."""
        if self.config.loss_weighting == "none":
            return None
        alpha_bar = self.backbone.signal_power(t)
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=5.0) / (snr + 1)

    def error(self, out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The squared error of each sample, or Huber's of the same scale, `B`; weighted by `mask`
        `B 1 T H W`."""
        difference, delta = out.float() - target.float(), self.config.huber
        if not delta:
            return mean_over(difference.square(), mask)
        size = difference.abs()
        linear = delta * (2 * size - delta)
        return mean_over(torch.where(size < delta, size.square(), linear), mask)

    def mask_weight(self, mask: Tensor | None) -> Tensor | None:
        """Weights of the error, `B 1 T H W`, of the clips' masks; None where masks have no effect."""
        least = self.config.mask_min_value
        return None if least is None else least + (1 - least) * mask


def density(scheme: str, count: int, config: NoiseConfig, generator: torch.Generator | None = None) -> Tensor:
    """`count` numbers in [0, 1] by diffusers' `compute_density_for_timestep_sampling`."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    settings: dict[str, Any] = {"logit_mean": config.logit_mean, "logit_std": config.logit_std}
    if scheme == "sigmoid":
        scheme, settings = "logit_normal", {"logit_mean": 0.0, "logit_std": 1.0}
    device = generator.device if generator is not None else "cpu"
    return compute_density_for_timestep_sampling(
        scheme if scheme != "uniform" else "none", count, **settings, mode_scale=1.29, device=device,
        generator=generator,
    )  # fmt: skip
