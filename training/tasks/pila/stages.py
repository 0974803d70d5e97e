"""The stages of PILA's training (arXiv 2606.04737, section B.3): which parts learn in each, how fast, and how
noisy it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.pila import PilaAdapter, PilaConfig, residual_terms
from ....methods.pila.files import build_method
from ....methods.pila.losses.objective import Laws
from ....methods.step import shifted
from .settings import PilaTraining

GROUPS = ("main", "slow")
"""Names of the groups of parts in a stage: `parts_of` says what is in them."""


def same_labels(labels: Tensor, generator: torch.Generator) -> Tensor:
    """The labels as they are."""
    return labels


@dataclass(frozen=True, kw_only=True)
class Method:
    """Subject of a training: the paper's method, or one row of its ablation tables."""

    name: str = "full"
    architecture: str = PilaAdapter.architecture
    """Name of the adapter's class, for its file."""
    build: Callable[[str, PilaConfig, Any], PilaAdapter] = build_method
    """Makes the adapter of that name."""
    laws: Laws = residual_terms
    """Residuals of a category's fields."""
    relabel: Callable[[Tensor, torch.Generator], Tensor] = same_labels
    """The labels that training sees, from those of the clips, `B 8`."""
    staged: bool = True
    """Train stages A and B before C; otherwise C alone, with every part learning from its first step."""

    def adapter(self, config: PilaConfig) -> PilaAdapter:
        """A new adapter, drawn from torch's random generator."""
        return self.build(self.architecture, config, nn)


FULL = Method()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with its own trainable parts and noise range."""

    name: str
    steps: int
    low: float
    """Smallest index fraction (0 is pure noise, 1 is clean): how noisy it gets."""


def stages_of(config: PilaTraining, method: Method = FULL) -> list[Stage]:
    """The stages in order; the coupling stage alone for a method without staged recovery."""
    coupling = Stage(name="C", steps=config.coupling_steps, low=0.0)
    if not method.staged:
        return [coupling]
    observable = [
        Stage(name=f"A{i}", steps=config.observable_steps, low=low)
        for i, low in enumerate((0.90, 0.75, 0.50), 1)
    ]
    return [*observable, Stage(name="B", steps=config.recovery_steps, low=0.0), coupling]


def parts_of(adapter: PilaAdapter, stage: str, staged: bool = True) -> dict[str, list[nn.Module]]:
    """Modules that learn in a stage: "main" at the full rate, "slow" (frozen at first) in the coupling
    stage."""
    if not staged:
        return {"main": [adapter], "slow": []}  # nothing was trained before, so there is nothing to protect
    if stage.startswith("A"):
        return {
            "main": [adapter.encoder, adapter.level, adapter.afe.scaffold, adapter.afe.u_head],
            "slow": [],
        }
    if stage == "B":
        return {"main": [adapter.afe.p_rho_head, adapter.afe.heads], "slow": []}
    rest = [adapter.level, adapter.condition, adapter.router, adapter.experts, adapter.decoder]
    return {
        "main": [*rest, adapter.afe.p_rho_head, adapter.afe.heads],
        "slow": [adapter.encoder, adapter.afe.scaffold],
    }


def draw_sigma(count: int, low: float, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels of index fractions uniform in [low, 1), one draw per stratum, `count`."""
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    s = 1.0 - (low + (1.0 - low) * share)
    return shifted(s, shift).clamp(min=1e-3)
