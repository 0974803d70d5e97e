"""The PILA adapter: frozen velocity in, physics-aware velocity correction out (arXiv 2606.04737, Eq 1-10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..step import SamplingStep
from . import bank as banks
from .afe import AnchoredFieldEstimation
from .config import PilaConfig
from .decoder import FlowDecoder, sigma_gate, unshrunk
from .encoder import ConditionEncoder, NoiseLevel, PhysicalEncoder
from .experts import Experts, Updates, add_updates
from .routing import Router, Routing

SMALLEST_SIGMA = 1e-4
"""Below it the velocity (z - x0) / sigma is rounding noise, and the correction would be invisible anyway."""


@dataclass(frozen=True, kw_only=True)
class PilaOutput:
    """Output of one pass of an adapter; an adapter without a bank leaves everything but delta and cond
    empty."""

    delta: Tensor
    """The velocity correction, `B C T H W` float32, before the sigma gate."""
    cond: Tensor
    """The condition vector c, `B hidden`."""
    bank: Tensor | None = None
    """The estimated bank F, `B 32 T H W`."""
    refined: Tensor | None = None
    """The bank after the experts, F~ (Eq 8)."""
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    """The estimated fields in physical units, before packing."""
    routing: Routing | None = None
    feature: Tensor | None = None
    """The encoder's feature h, `B hidden T H W`, where the decoder reads it."""
    updates: Updates = field(default_factory=dict)
    """Per expert: which samples it ran for, and its unweighted update m_k * O_k of those."""

    def expert_bank(self, expert: int, samples: Tensor) -> Tensor:
        """F_k = F + m_k * O_k of Eq 5 for some samples (indices that the expert ran for)."""
        base = self.bank[samples]
        if expert not in self.updates:
            return base
        ran, update = self.updates[expert]
        return base + update[torch.searchsorted(ran, samples)]


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A corrected estimate, and what the correction consists of."""

    x0: Tensor
    """The estimate after the correction, in the dtype of the one before."""
    push: Tensor
    """The gated correction of the velocity times its strength, `B C T H W` float32."""
    velocity: Tensor
    """The velocity that was corrected, likewise."""
    out: PilaOutput


class PilaAdapter(nn.Module):
    """Encoder, field estimation, router, experts and decoder. Also a correction: `adapter.correct(x0, step)`.

    `operations` is the namespace the layers come from: torch.nn, or an inference framework's casting layers.
    The convolutions run in the dtype of the weights; fields and differences are always float32, for which
    layers that cast are needed where the weights are not.
    """

    architecture = "PilaAdapter"
    """Name of the class in a file's metadata; ablations have their own."""

    def __init__(self, config: PilaConfig | None = None, operations: Any = nn) -> None:
        super().__init__()
        self.config = config = config or PilaConfig()
        hidden, blocks = config.hidden, [config.hidden] * config.decoder_blocks
        self.level = NoiseLevel(hidden, operations)
        self.condition = ConditionEncoder(config.cond_dim, hidden, config.normalise_prompt, operations)
        self.encoder = PhysicalEncoder(config.channels, hidden, config.blocks, operations)
        self.afe = AnchoredFieldEstimation(hidden, config.head_width, operations)
        self.router = Router(
            hidden, config.top_k, config.label_bias, config.temperature, config.bound_logits, operations
        )
        self.experts = Experts(hidden, operations)
        inputs = banks.BANK_CHANNELS + hidden * config.decoder_sees_feature
        self.decoder = FlowDecoder(inputs, hidden, config.channels, blocks, operations)

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
        """The paper's figure, Eq 2-9. `x0`, `velocity` `B C T H W`; `sigma` `B`; `cond` `B cond_dim`;
        `labels` `B 8` in [0, 1].

        `ramp` fades the prompt in. The velocity and the estimate are constants here: no gradient reaches the
        backbone. Raises ValueError for a latent of another channel count or below 3x3, and for a top-k
        outside 0..8.
        """
        x0, velocity = self.constants(x0, velocity)
        level = self.level(sigma)
        c = self.condition(level, cond, ramp)
        h = self.encoder(x0, level)  # Eq 2
        fields, scaffold = self.afe(h)  # Eq 3
        bank = banks.pack({**fields, "u": scaffold})  # Eq 12
        routing = self.router(c, labels, top_k)  # Eq 4
        updates = self.experts(bank, c, routing.selected)  # Eq 5
        refined = add_updates(bank, updates, routing.weights)  # Eq 8
        read = h if self.config.decoder_sees_feature else None
        delta = self.decoder(refined, c, velocity, read)  # Eq 9
        return PilaOutput(
            delta=delta,
            cond=c,
            bank=bank,
            refined=refined,
            fields=fields,
            routing=routing,
            feature=read,
            updates=updates,
        )

    def estimate(self, x0: Tensor, sigma: Tensor, phase: str = "psi") -> dict[str, Tensor]:
        """The fields alone, in physical units (Eq 2-3), for views and the recovery stage. Raises ValueError
        as `forward`."""
        x0, _ = self.constants(x0, x0)
        return self.afe(self.encoder(x0, self.level(sigma)), phase)[0]

    def read_velocity(self, scaffold: Tensor) -> Tensor:
        """Velocity `B 2 T H W` from the bank's u slot, by the learned head (Eq 14)."""
        return self.afe.read_velocity(scaffold)

    def read(self, bank: Tensor, slots: tuple[str, ...] = banks.SLOTS) -> dict[str, Tensor]:
        """Fields in physical units from a packed bank."""
        return banks.read(bank, slots, self.read_velocity)

    def gate(self, sigma: Tensor, floor: float | None = None) -> Tensor:
        """g(sigma), `B`; `floor` overrides the file's. For a file of version 1 its training's shrinkage is
        undone."""
        config = self.config
        gate = sigma_gate(sigma, config.gate, config.gate_floor if floor is None else floor)
        return unshrunk(gate, config.ungated_penalty) if config.ungated_penalty else gate

    def constants(self, x0: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Both in float32 and without gradient. Raises ValueError for a latent of another rank or channel
        count."""
        if x0.ndim != 5 or x0.shape[1] != self.config.channels:
            raise ValueError(
                f"the latent has shape {tuple(x0.shape)}; this adapter needs (B, {self.config.channels}, T, "
                f"H, W)."
            )
        return x0.detach().float(), velocity.detach().float()

    @torch.no_grad()
    def apply_to(
        self,
        x0: Tensor,
        step: SamplingStep,
        labels: Tensor | None = None,
        *,
        top_k: int | None = None,
        floor: float | None = None,
        strength: float = 1.0,
    ) -> Corrected:
        """x0' = x0 - gain * g(sigma) * dv, because x0 = z - gain * v and v' = v + g(sigma) dv (Eq 10).

        Raises ValueError for a latent the adapter does not fit and for one that holds NaN or infinity.
        """
        estimate, noisy = self.constants(x0, step.noisy)
        if not torch.isfinite(estimate).all():
            raise ValueError("the latent holds NaN or infinite values before the PILA correction.")
        sigma = per_sample(step.sigma, x0)
        velocity = (noisy - estimate) / wide(sigma)
        cond = None if step.cond is None else per_sample(step.cond, x0)
        out = self(estimate, velocity, sigma, cond, labels, top_k=top_k)
        push = strength * wide(self.gate(sigma, floor)) * out.delta
        corrected = (estimate - wide(per_sample(step.gain, x0)) * push).to(x0.dtype)
        return Corrected(x0=corrected, push=push, velocity=velocity, out=out)

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """The corrected estimate, with the file's own settings and no labels; see `PilaCorrection` for
        more."""
        return x0 if float(step.sigma.max()) < SMALLEST_SIGMA else self.apply_to(x0, step).x0


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """A per-sample value in float32 on the latent's device, repeated where one stands for the whole batch."""
    value = value.to(device=like.device, dtype=torch.float32)
    value = value.reshape(1) if value.ndim == 0 else value
    return value.expand(like.shape[0], *value.shape[1:]) if value.shape[0] == 1 else value


def wide(vector: Tensor) -> Tensor:
    """`B` -> `B 1 1 1 1`."""
    return vector[:, None, None, None, None]
