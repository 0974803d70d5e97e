"""PILA's ablation tables (Tables 4 and 9-12): each row is the shipped method with one module, law or label
exchanged.

An ablated adapter has the shipped one's signature, so training, sampling and files treat both alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.labels.taxonomy import random_labels
from ...methods.pila import PilaAdapter, PilaConfig, PilaOutput, residual_terms
from ...methods.pila import bank as banks
from ...methods.pila.afe import CORE_SLOTS, AnchoredFieldEstimation, centre, density
from ...methods.pila.decoder import FlowDecoder
from ...methods.pila.encoder import (
    GROUPS,
    ConditionEncoder,
    NoiseLevel,
    PhysicalEncoder,
    ResidualBlock,
    count,
    head,
)
from ...methods.pila.experts import Experts, add_updates
from ...methods.pila.residuals import FAMILIES
from ...methods.pila.routing import EXPERTS, Router, Routing
from ..tasks.pila.stages import FULL, Method

# --- modules that stand in for the shipped ones -------------------------------------------------------------


class PlainAdapter(PilaAdapter):
    """Encoder and decoder alone, with the full method's parameter count: no bank, no experts, no
    residuals."""

    architecture = "PlainAdapter"

    def __init__(self, config: PilaConfig, operations: Any = nn) -> None:
        nn.Module.__init__(self)
        self.config, hidden = config, config.hidden
        self.level = NoiseLevel(hidden, operations)
        self.condition = ConditionEncoder(config.cond_dim, hidden, config.normalise_prompt, operations)
        self.encoder = PhysicalEncoder(config.channels, hidden, config.blocks, operations)
        self.decoder = FlowDecoder(hidden, hidden, config.channels, plain_blocks(config), operations)

    def forward(
        self,
        x0: Tensor,
        velocity: Tensor,
        sigma: Tensor,
        cond: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        top_k: int | None = None,
        ramp: float | Tensor = 1.0,
    ) -> PilaOutput:
        """As `PilaAdapter.forward`; labels and `top_k` change nothing."""
        x0, velocity = self.constants(x0, velocity)
        level = self.level(sigma)
        c = self.condition(level, cond, ramp)
        return PilaOutput(delta=self.decoder(self.encoder(x0, level), c, velocity), cond=c)

    def estimate(self, x0: Tensor, sigma: Tensor, phase: str = "psi") -> dict[str, Tensor]:
        """Raises ValueError: there are no fields."""
        raise ValueError(
            "this adapter was trained without anchored field estimation; it has no fields to show."
        )


def plain_blocks(config: PilaConfig) -> list[int]:
    """Inner widths of the decoder blocks that give the plain adapter as many parameters as the full method.

    All blocks but the last are as wide as the adapter; the last fills the gap, in group norm's multiples of 8
    (the remaining difference: 0.006 % at full size, 0.014 % in the toy world).
    """
    hidden = config.hidden
    with torch.device("meta"):
        missing = count(PilaAdapter(config)) - count(PhysicalEncoder(config.channels, hidden, config.blocks))
        missing -= count(FlowDecoder(hidden, hidden, config.channels, []))
        missing -= count(ConditionEncoder(config.cond_dim, hidden)) + count(NoiseLevel(hidden))
        narrow, narrowest = (
            count(ResidualBlock(hidden, hidden, inner=width)) for width in (2 * GROUPS, GROUPS)
        )
        whole = count(ResidualBlock(hidden, hidden))
    blocks = max(1, missing // whole)
    steps = round(
        (missing - blocks * whole - (2 * narrowest - narrow)) / (narrow - narrowest)
    )  # linear in the width
    return [hidden] * blocks + [steps * GROUPS] * (steps > 0)


class GenericFields(PilaAdapter):
    """No physical encoder and no constructed fields: a 1x1x1 head makes the bank from the estimate and the
    velocity."""

    architecture = "GenericFields"

    def __init__(self, config: PilaConfig, operations: Any = nn) -> None:
        super().__init__(replace(config, decoder_sees_feature=False), operations)
        del self.encoder, self.afe
        self.generic = head(2 * config.channels, config.hidden, banks.BANK_CHANNELS, operations=operations)

    def forward(
        self,
        x0: Tensor,
        velocity: Tensor,
        sigma: Tensor,
        cond: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        top_k: int | None = None,
        ramp: float | Tensor = 1.0,
    ) -> PilaOutput:
        """As `PilaAdapter.forward`, with another Eq 2 and 3."""
        x0, velocity = self.constants(x0, velocity)
        c = self.condition(self.level(sigma), cond, ramp)
        inputs = torch.cat([x0, velocity], dim=1).to(self.generic[0].weight.dtype)
        bank = banks.soft_limit(self.generic(inputs).float())
        routing = self.router(c, labels, top_k)
        updates = self.experts(bank, c, routing.selected)
        refined = add_updates(bank, updates, routing.weights)
        delta = self.decoder(refined, c, velocity)
        return PilaOutput(
            delta=delta,
            cond=c,
            bank=bank,
            refined=refined,
            fields=self.read(bank),
            routing=routing,
            updates=updates,
        )

    estimate = PlainAdapter.estimate

    def read_velocity(self, scaffold: Tensor) -> Tensor:
        """The mean of the slot's two (x, y) pairs: no head was trained."""
        return banks.pair_mean(scaffold)


class ScaffoldFields(AnchoredFieldEstimation):
    """No kinematic anchor (Table 9): the scaffold's own channels, with the ranges of Eq 18."""

    def construct(self, feature: Tensor, velocity: Tensor, scaffold: Tensor) -> dict[str, Tensor]:
        """Pressure, density, displacement, strain and stress as the scaffold says."""
        raw = {name: banks.gather(name, banks.slot_of(scaffold, name)) for name in CORE_SLOTS if name != "u"}
        return {**raw, "p": centre(raw["p"]), "rho": density(raw["rho"])}


class UniformRouter(Router):
    """No routing: every expert runs with weight 1/8."""

    def forward(self, cond: Tensor, labels: Tensor | None, top_k: int | None = None) -> Routing:
        """As `Router.forward`; labels and `top_k` change nothing."""
        logits = self.learned(cond)
        return Routing(
            logits, torch.ones_like(logits, dtype=torch.bool), torch.full_like(logits, 1.0 / EXPERTS)
        )


class NoExperts(Experts):
    """O_k = 0: the estimated bank goes to the decoder as it is."""

    def __init__(self) -> None:
        nn.ModuleList.__init__(self)

    def forward(self, bank: Tensor, cond: Tensor, selected: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """No updates."""
        return {}


class NoCorrection(FlowDecoder):
    """Everything is trained, and nothing is added to the velocity."""

    def forward(self, bank: Tensor, cond: Tensor, velocity: Tensor, feature: Tensor | None = None) -> Tensor:
        """Zeros `B C T H W`."""
        return torch.zeros_like(velocity)


def exchanged(
    part: str, module: Callable[[PilaConfig, Any], nn.Module]
) -> Callable[[PilaConfig, Any], PilaAdapter]:
    """A builder of the shipped adapter with another module in the place of `part`."""

    def build(config: PilaConfig, operations: Any = nn) -> PilaAdapter:
        adapter = PilaAdapter(config, operations)
        setattr(adapter, part, module(config, operations))
        return adapter

    return build


ARCHITECTURES: dict[str, Callable[[PilaConfig, Any], PilaAdapter]] = {
    "PilaAdapter": PilaAdapter,
    "PlainAdapter": PlainAdapter,
    "GenericFields": GenericFields,
    "NoExperts": exchanged("experts", lambda config, operations: NoExperts()),
    "NoCorrection": exchanged(
        "decoder",
        lambda c, operations: NoCorrection(
            banks.BANK_CHANNELS, c.hidden, c.channels, [c.hidden] * c.decoder_blocks, operations
        ),
    ),
    "UniformRouter": exchanged(
        "router",
        lambda c, operations: UniformRouter(
            c.hidden, c.top_k, c.label_bias, c.temperature, c.bound_logits, operations
        ),
    ),
    "ScaffoldFields": exchanged(
        "afe", lambda c, operations: ScaffoldFields(c.hidden, c.head_width, operations)
    ),
}
"""The shipped architecture and those of the ablations, by the name that their files carry."""


def build(architecture: str, config: PilaConfig, operations: Any = nn) -> PilaAdapter:
    """An adapter of any architecture. Raises ValueError for an unknown one."""
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"its architecture is {architecture!r}; it must be one of {', '.join(ARCHITECTURES)}"
        )
    adapter = ARCHITECTURES[architecture](config, operations)
    adapter.architecture = architecture
    return adapter


# --- laws and labels that stand in for the shipped ones -----------------------------------------------------


def no_laws(fields: dict[str, Tensor], category: str, **_: Any) -> dict[str, Tensor]:
    """No residuals."""
    return {}


def slot_energy(fields: dict[str, Tensor], category: str, **_: Any) -> dict[str, Tensor]:
    """Proxy only: one bounded L2 over the recipe's slots, `B`."""
    energy = sum(value.square().mean(dim=(1, 2, 3, 4)) for value in fields.values()) / len(fields)
    return {"slots": energy / (1.0 + energy)}


ABLATIONS: dict[str, Method] = {
    method.name: method
    for method in (
        FULL,
        Method(name="plain_adapter", architecture="PlainAdapter", build=build, laws=no_laws, staged=False),
        Method(name="no_flow_correction", architecture="NoCorrection", build=build),
        Method(name="no_afe", architecture="GenericFields", build=build, staged=False),
        Method(name="no_moe_operator", architecture="NoExperts", build=build),
        Method(name="no_residuals", laws=no_laws),
        Method(name="no_prompt_refine"),  # of the data: captions instead of rewritten prompts
        Method(name="no_routing", architecture="UniformRouter", build=build),
        Method(name="no_kinematic_anchor", architecture="ScaffoldFields", build=build),
        Method(name="no_staged_recovery", staged=False),
        Method(name="random_label", relabel=random_labels),
        *(
            Method(name=f"no_{family}", laws=partial(residual_terms, drop_families=(family,)))
            for family in FAMILIES
        ),
        Method(name="proxy_only", laws=slot_energy),
    )
}
"""One entry per row of the source's tables, by name."""


def ablation(name: str) -> Method:
    """A row of the tables. Raises ValueError for an unknown name."""
    if name not in ABLATIONS:
        raise ValueError(f"ablation is {name!r}; it must be one of {', '.join(ABLATIONS)}.")
    return ABLATIONS[name]
