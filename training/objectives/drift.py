"""LaMo's motion drift loss as an objective (arXiv 2605.23878, eq 3-6)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...kernels.drift import drift_loss, motion_drift
from .base import Objective, StepView
from .settings import DriftSettings, ObjectiveError


class DriftObjective(Objective):
    """LaMo eq 6 without lambda: batch mean of the signal power times the drift loss."""

    kind = "drift"

    def __init__(self, settings: DriftSettings, **_: Any) -> None:
        super().__init__(settings)

    def forward(self, view: StepView) -> Tensor:
        s: DriftSettings = self.settings
        if view.latent.shape[2] <= s.lag:
            raise ObjectiveError(
                f"clips of {view.latent.shape[2]} latent frames have no drift at lag {s.lag}; use longer clips or a smaller lag."
            )
        return view.signal.mean() * drift_variant(view.x0, view.latent, s.lag, s.target, s.scale)


def drift_variant(x0: Tensor, latent: Tensor, lag: int, target: str, scale: str, eps: float = 1e-6) -> Tensor:
    """The drift loss (LaMo eq 5) and its ablations. "mean" and "relative" is the method itself.

    "dense" compares the change at every position, norms over C, H and W; "raw" leaves the normalisation out. Scalar.
    """
    if (target, scale) == ("mean", "relative"):
        return drift_loss(x0, latent, lag, eps)
    change = (
        (lambda z: (z[:, :, lag:] - z[:, :, :-lag]).float())
        if target == "dense"
        else (lambda z: motion_drift(z, lag)[..., None, None])
    )
    ours, theirs = change(x0), change(latent).detach()
    error, size = ((value**2).sum(dim=(1, 3, 4)) for value in (ours - theirs, theirs))
    return (error / (size + eps) if scale == "relative" else error).mean()
