"""The PILA adapter: frozen velocity in, physics-aware velocity correction out (arXiv 2606.04737, Eq 1-10)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..labels.taxonomy import CATEGORIES
from ..step import SamplingStep
from ..weights import WeightsError, WeightsInfo, load_weights, save_weights
from . import bank as banks
from .afe import AnchoredFieldEstimation
from .config import PilaConfig
from .decoder import FlowDecoder, sigma_gate
from .encoder import GROUPS, ConditionEncoder, PhysicalEncoder, ResidualBlock, head, mlp
from .experts import build_experts
from .routing import Router, Routing, uniform

KIND = "pila_adapter"
SMALLEST_SIGMA = 1e-4
"""Below it the velocity (z - x0) / sigma is rounding noise, and the correction would be invisible anyway."""


@dataclass
class PilaOutput:
    """What one pass of the adapter produced."""

    delta: Tensor
    """The velocity correction, `B C T H W` float32, before the sigma gate."""
    bank: Tensor | None = None
    """The estimated bank F, `B 32 T H W`."""
    refined: Tensor | None = None
    """The bank after the experts, F~ (Eq 8)."""
    fields: dict[str, Tensor] = field(default_factory=dict)
    """The estimated fields in physical units, before packing."""
    routing: Routing | None = None
    cond: Tensor | None = None
    """The condition vector c, `B hidden`."""
    feature: Tensor | None = None
    """The encoder's feature h, `B hidden T H W`."""
    updates: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per expert: which samples it ran for, and its unweighted update m_k * O_k of those (kept on request)."""

    def expert_bank(self, expert: int, samples: Tensor) -> Tensor:
        """F_k = F + m_k * O_k of Eq 5 for some samples (indices that the expert ran for)."""
        base = self.bank[samples]
        if expert not in self.updates:
            return base
        ran, update = self.updates[expert]
        return base + update[torch.searchsorted(ran, samples)]


class PilaAdapter(nn.Module):
    """Encoder, field estimation, router, experts and decoder. Also a correction: `adapter.correct(x0, step)`.

    `operations` is the namespace the layers come from: torch.nn, or an inference framework's casting layers. The
    convolutions run in the dtype of the weights; fields and differences are always float32, for which layers that cast are
    needed where the weights are not.
    """

    def __init__(self, config: PilaConfig | None = None, operations: Any = nn) -> None:
        super().__init__()
        self.config = config = config or PilaConfig()
        hidden, ablation = config.hidden, config.ablation
        self.level = mlp(1, hidden, hidden, operations=operations)
        self.condition = ConditionEncoder(config.cond_dim, hidden, operations)
        if ablation.plain_adapter:
            self.encoder = PhysicalEncoder(config.channels, hidden, config.blocks, operations)
            self.decoder = FlowDecoder(hidden, hidden, config.channels, plain_blocks(config), operations)
            return
        if ablation.afe:
            self.encoder = PhysicalEncoder(config.channels, hidden, config.blocks, operations)
            self.afe = AnchoredFieldEstimation(hidden, config.head_width, operations)
        else:
            self.generic = head(2 * config.channels, hidden, banks.BANK_CHANNELS, operations=operations)
        seen = hidden if ablation.afe else 0
        self.router = Router(hidden, config.label_bias, config.temperature, operations)
        if ablation.moe_operator:
            self.experts = build_experts(hidden, seen * config.expert_sees_feature, config.tie_duplicates, operations)
        inputs = banks.BANK_CHANNELS + seen * config.decoder_sees_feature
        self.decoder = FlowDecoder(inputs, hidden, config.channels, operations=operations)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the convolutions run in: the dtype of the weights."""
        return self.decoder.net[0].weight.dtype

    def read_velocity(self, scaffold: Tensor) -> Tensor:
        """Velocity `B 2 T H W` from the bank's u slot: the learned head where there is one."""
        return self.afe.read_velocity(scaffold) if self.config.ablation.afe else banks.pair_mean(scaffold)

    def read(self, bank: Tensor, slots: tuple[str, ...] = banks.SLOTS) -> dict[str, Tensor]:
        """Fields in physical units from a packed bank."""
        return banks.read(bank, slots, self.read_velocity)

    def gate(self, sigma: Tensor, floor: float | None = None) -> Tensor:
        """g(sigma), `B`; `floor` overrides the file's."""
        return sigma_gate(sigma, self.config.gate, self.config.gate_floor if floor is None else floor)

    def forward(
        self,
        x0: Tensor,
        velocity: Tensor,
        sigma: Tensor,
        cond: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        top_k: int | None = None,
        phase: str = "psi",
        ramp: float | Tensor = 1.0,
        keep_updates: bool = False,
    ) -> PilaOutput:
        """Eq 2-9. `x0`, `velocity` `B C T H W`; `sigma` `B`; `cond` `B cond_dim`; `labels` `B 8` in [0, 1].

        The velocity and the estimate are constants here: no gradient reaches the backbone. Raises ValueError for a latent of
        another channel count or below 3x3, and for a top-k outside 0..8.
        """
        self.check_latent(x0)
        x0, velocity = x0.detach().float(), velocity.detach().float()
        with torch.autocast(x0.device.type, enabled=False):
            level = self.level(sigma.float()[:, None])
            c = self.condition(level, None if cond is None else cond.float(), ramp)
        out = PilaOutput(delta=torch.zeros_like(x0), cond=c)
        if self.config.ablation.plain_adapter:
            out.feature = self._encode(x0, level)
            out.delta = self._decode(out.feature, c, velocity)
            return out
        self._estimate(out, x0, velocity, level, phase)
        self._refine(out, labels, self.config.top_k if top_k is None else top_k, keep_updates)
        out.delta = self.decode_bank(out, out.refined, velocity)
        return out

    def estimate(self, x0: Tensor, sigma: Tensor, phase: str = "psi") -> dict[str, Tensor]:
        """The fields alone, in physical units (Eq 2-3): what views and the recovery stage need. Raises ValueError as `forward`.

        Needs an adapter with field estimation (not the plain adapter or "no_afe").
        """
        self.check_latent(x0)
        if not hasattr(self, "afe"):
            raise ValueError("this adapter was trained without anchored field estimation; it has no fields to show.")
        out = PilaOutput(delta=x0)
        with torch.autocast(x0.device.type, enabled=False):
            level = self.level(sigma.float()[:, None])
        self._estimate(out, x0.detach().float(), x0, level, phase)
        return out.fields

    def check_latent(self, x0: Tensor) -> None:
        """Raises ValueError for a latent of another rank or channel count."""
        if x0.ndim != 5 or x0.shape[1] != self.config.channels:
            raise ValueError(f"the latent has shape {tuple(x0.shape)}; this adapter needs (B, {self.config.channels}, T, H, W).")

    def _encode(self, x0: Tensor, level: Tensor) -> Tensor:
        feature = self.encoder(x0.to(self.compute_dtype))
        return feature + level.to(feature.dtype)[:, :, None, None, None]

    def _estimate(self, out: PilaOutput, x0: Tensor, velocity: Tensor, level: Tensor, phase: str) -> None:
        """Eq 2-3: feature, fields, bank."""
        if self.config.ablation.afe:
            out.feature = self._encode(x0, level)
            out.fields, scaffold = self.afe(out.feature, phase, self.config.ablation.kinematic_anchor)
            out.bank = banks.pack({**out.fields, "u": scaffold})
        else:
            inputs = torch.cat([x0, velocity], dim=1).to(self.compute_dtype)
            out.bank = banks.soft_limit(self.generic(inputs).float())
            out.fields = self.read(out.bank)

    def _refine(self, out: PilaOutput, labels: Tensor | None, top_k: int, keep_updates: bool) -> None:
        """Eq 4, 5, 8: route, run the selected experts for the samples that selected them, add up."""
        if labels is not None:
            labels = labels.to(out.cond).reshape(-1, len(CATEGORIES)).expand(out.cond.shape[0], -1)
        out.routing = self.router(out.cond, labels, top_k)
        if not self.config.ablation.routing:
            out.routing = uniform(out.routing.logits)
        out.refined = out.bank
        if not self.config.ablation.moe_operator:
            return
        bank = out.bank.to(self.compute_dtype)
        feature = out.feature if self.config.expert_sees_feature else None
        for index, expert in enumerate(self.experts):
            samples = out.routing.selected[:, index].nonzero()[:, 0]
            if len(samples) == 0:
                continue
            update = expert(bank[samples], out.cond[samples], None if feature is None else feature[samples])
            weight = out.routing.weights[samples, index][:, None, None, None, None]
            out.refined = out.refined.index_add(0, samples, weight * update)
            if keep_updates:
                out.updates[index] = (samples, update)

    def decode_bank(self, out: PilaOutput, bank: Tensor, velocity: Tensor) -> Tensor:
        """Eq 9 for any bank; expert maps call it with one expert's update at a time."""
        values = bank.to(self.compute_dtype)
        if self.config.decoder_sees_feature and out.feature is not None:
            values = torch.cat([values, out.feature.to(values.dtype)], dim=1)
        return self._decode(values, out.cond, velocity)

    def _decode(self, values: Tensor, cond: Tensor, velocity: Tensor) -> Tensor:
        if not self.config.ablation.flow_correction:
            return torch.zeros_like(velocity)
        limit = self.config.correction_limit
        return self.decoder(values, cond, velocity).clamp(-limit, limit)

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """The corrected denoised estimate, with the file's own settings and no labels; see `PilaCorrection` for more."""
        from .correction import PilaCorrection

        return PilaCorrection(self).correct(x0, step)


def plain_blocks(config: PilaConfig) -> list[int]:
    """Inner widths of the decoder blocks that give the plain adapter as many parameters as the full method.

    All blocks but the last are as wide as the adapter; the last fills the gap, in group norm's multiples of 8
    (what is left: 0.006 % at full size, 0.014 % in the toy world).
    """
    with torch.device("meta"):
        complete = replace(config.ablation, plain_adapter=False, afe=True, moe_operator=True)
        missing = count(PilaAdapter(replace(config, ablation=complete)))
        missing -= count(PhysicalEncoder(config.channels, config.hidden, config.blocks))
        missing -= count(FlowDecoder(config.hidden, config.hidden, config.channels, 0))
        missing -= count(ConditionEncoder(config.cond_dim, config.hidden)) + count(mlp(1, config.hidden, config.hidden))
        narrow, narrowest = (count(ResidualBlock(config.hidden, config.hidden, inner=width)) for width in (2 * GROUPS, GROUPS))
        whole = count(ResidualBlock(config.hidden, config.hidden))
    blocks = max(1, missing // whole)
    steps = round((missing - blocks * whole - (2 * narrowest - narrow)) / (narrow - narrowest))  # linear in the width
    return [config.hidden] * blocks + [steps * GROUPS] * (steps > 0)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def save_adapter(
    path: str | os.PathLike[str],
    adapter: PilaAdapter,
    latent_space: str,
    recipe: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes an adapter as one safetensors file, all or nothing. Raises OSError."""
    info = WeightsInfo(kind=KIND, latent_space=latent_space, config=adapter.config.to_dict(), recipe=recipe or {})
    save_weights(path, {key: value.to(dtype) for key, value in adapter.state_dict().items()}, info)


def load_adapter(path: str | os.PathLike[str], operations: Any = nn) -> tuple[PilaAdapter, WeightsInfo]:
    """An adapter on the CPU, float32, in evaluation mode, without gradients, and the file's metadata.

    Raises WeightsError where the file is missing, damaged, of another kind, or its tensors do not fit its own configuration.
    Draws nothing from the random generators.
    """
    state, info = load_weights(path, KIND)
    name = os.path.basename(path)
    try:
        with torch.device("meta"):
            adapter = PilaAdapter(PilaConfig(**info.config), operations)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name} has an adapter configuration that cannot be built ({error}).") from error
    try:
        adapter.to_empty(device="cpu").load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{name} does not hold the tensors its configuration promises ({detail}).") from error
    return adapter.eval().requires_grad_(False), info
