"""LaMo's motion drift loss as an objective (arXiv 2605.23878, eq 3-6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...kernels.drift import drift_loss, motion_drift
from ..console import TrainingError
from .base import Objective, StepView
from .settings import DriftSettings


class DriftObjective(Objective):
    """LaMo eq 6 without lambda: the mean over samples of signal power times drift loss.

    The paper writes the batch mean of the signal power before the loss. Per sample, as here, a clip counts
    the same in one batch as in micro-batches, and noisy samples, whose estimate says little of the drift,
    count little themselves. Epsilon of eq 5 is `settings.eps` x `unit`, the median of the target's squared
    size |mu*|^2 over the training clips (`calibrate`; 1, that is squared latent units, before it). The paper
    gives no value. |mu*|^2 spans seven decades in real clips, and with an epsilon far below the median the
    pairs whose mean stands still rule the loss.
    """

    kind, settings_type = "drift", DriftSettings

    def __init__(self, settings: DriftSettings, **_: Any) -> None:
        super().__init__(settings)
        self.unit = 1.0

    def calibrate(self, latents: Iterable[Tensor]) -> dict[str, float]:
        """Sets `unit` from clean latents `C T H W`; returns it by the name that the run's files carry."""
        s: DriftSettings = self.settings
        sizes = [
            squared_sizes(changes(latent[None].float(), s.lag, s.target)).flatten() for latent in latents
        ]
        self.unit = float(torch.cat(sizes).median())
        return {"median_squared_drift": self.unit}

    def forward(self, view: StepView) -> Tensor:
        s: DriftSettings = self.settings
        if view.latent.shape[2] <= s.lag:
            raise TrainingError(
                f"clips of {view.latent.shape[2]} latent frames have no drift at lag {s.lag}; use longer "
                f"clips or a smaller lag."
            )
        return drift_variant(view.x0, view.latent, s.lag, s.target, s.scale, s.eps * self.unit, view.signal)


def drift_variant(
    x0: Tensor, latent: Tensor, lag: int, target: str, scale: str, eps: float, weight: Tensor | None = None
) -> Tensor:
    """The drift loss (LaMo eq 5), samples weighted by `weight` (`B`), and its ablations. "mean" and
    "relative" is the method.

    "dense" compares the change at every position, norms over C, H and W; "raw" leaves the normalisation out.
    eps in squared latent units. Scalar.
    """
    if (target, scale) == ("mean", "relative"):
        return drift_loss(x0, latent, lag, eps, weight)
    ours, theirs = changes(x0, lag, target), changes(latent, lag, target).detach()
    error = squared_sizes(ours - theirs)
    distance = (error / (squared_sizes(theirs) + eps) if scale == "relative" else error).mean(dim=1)
    return (distance if weight is None else weight.to(distance) * distance).mean()


def changes(latent: Tensor, lag: int, target: str) -> Tensor:
    """Changes that are compared, `B C T-lag H W`, or `B C T-lag 1 1` for the spatial mean."""
    if target == "dense":
        return (latent[:, :, lag:] - latent[:, :, :-lag]).float()
    return motion_drift(latent, lag)[..., None, None]


def squared_sizes(change: Tensor) -> Tensor:
    """Squared norm over C, H and W, `B T-lag`."""
    return change.square().sum(dim=(1, 3, 4))
