"""The stages of PILA's training (arXiv 2606.04737, section B.3): which parts learn in each, and how noisy it gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....methods.pila import PilaAdapter, PilaConfig
from .settings import PilaTraining

GROUPS = ("main", "slow")
"""Names of the groups of parts in a stage: `parts_of` says what is in them."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with its own trainable parts and noise range."""

    name: str
    steps: int
    low: float
    """Smallest index fraction (0 is pure noise, 1 is clean): how noisy it gets."""


def stages_of(config: PilaTraining, adapter: PilaConfig) -> list[Stage]:
    """The stages in order; without staged recovery (an ablation) the coupling stage alone."""
    coupling = Stage(name="C", steps=config.coupling_steps, low=0.0)
    if not adapter.ablation.staged_recovery:
        return [coupling]
    observable = [Stage(name=f"A{i}", steps=config.observable_steps, low=low) for i, low in enumerate((0.90, 0.75, 0.50), 1)]
    return [*observable, Stage(name="B", steps=config.recovery_steps, low=0.0), coupling]


def parts_of(adapter: PilaAdapter, stage: str) -> dict[str, list[nn.Module]]:
    """Which modules learn in a stage: "main" at the full rate, "slow" (frozen at first) in the coupling stage."""
    if stage.startswith("A"):
        return {"main": [adapter.encoder, adapter.level, adapter.afe.scaffold, adapter.afe.u_head], "slow": []}
    if stage == "B":
        return {"main": [adapter.afe.p_rho_head, adapter.afe.heads], "slow": []}
    if adapter.config.ablation.plain_adapter or not adapter.config.ablation.staged_recovery:
        return {"main": [adapter], "slow": []}  # nothing was trained before, so there is nothing to protect
    slow = [adapter.encoder, adapter.afe.scaffold]
    rest = [adapter.level, adapter.condition, adapter.router, adapter.decoder, adapter.afe.p_rho_head, adapter.afe.heads]
    return {"main": rest + ([adapter.experts] if adapter.config.ablation.moe_operator else []), "slow": slow}


def draw_sigma(count: int, low: float, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels of index fractions uniform in [low, 1), one draw per stratum, `count`."""
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    s = 1.0 - (low + (1.0 - low) * share)
    return (shift * s / (1.0 + (shift - 1.0) * s)).clamp(min=1e-3)
