"""Sizes and switches of a PILA adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..labels.taxonomy import CATEGORIES
from .encoder import GROUPS
from .residuals import FAMILIES

GATES = ("quadratic", "linear", "none")


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The switches of PILA's ablation tables (Tables 4 and 9-12). The defaults are the full method."""

    plain_adapter: bool = False
    """Encoder and decoder only, with the full method's parameter count: no bank, no experts, no residuals."""
    flow_correction: bool = True
    """Off: everything is trained, but nothing is added to the velocity."""
    afe: bool = True
    """Off: no physical encoder; a generic 1x1x1 head makes the bank from the velocity and the denoised estimate."""
    moe_operator: bool = True
    """Off: experts change nothing (O_k = 0); the estimated bank goes straight to the decoder."""
    residuals: bool = True
    """Off: the physics loss has weight 0."""
    prompt_refine: bool = True
    """Off: labels and condition come from the raw prompt. A property of the data; kept with the weights."""
    routing: bool = True
    """Off: all experts run with equal weight."""
    kinematic_anchor: bool = True
    """Off: pressure, density, displacement, strain and stress come straight from the scaffold."""
    staged_recovery: bool = True
    """Off: all slots are on from the first step, stages A and B are skipped."""
    random_label: bool = False
    """Replace each label set by a random one of the same size while training."""
    drop_families: tuple[str, ...] = ()
    """Residual families to leave out: "pde", "kinematic", "closure", "stabilising"."""
    proxy_only: bool = False
    """One undifferentiated L2 on the recipe's slots instead of the residual terms."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop_families", tuple(self.drop_families))
        for family in self.drop_families:
            if family not in FAMILIES:
                raise ValueError(f"residual family is {family!r}; it must be one of {', '.join(FAMILIES)}.")


ABLATIONS: dict[str, Ablation] = {
    "full": Ablation(),
    "plain_adapter": Ablation(plain_adapter=True, residuals=False, staged_recovery=False),
    "no_flow_correction": Ablation(flow_correction=False),
    "no_afe": Ablation(afe=False, staged_recovery=False),
    "no_moe_operator": Ablation(moe_operator=False),
    "no_residuals": Ablation(residuals=False),
    "no_prompt_refine": Ablation(prompt_refine=False),
    "no_routing": Ablation(routing=False),
    "no_kinematic_anchor": Ablation(kinematic_anchor=False),
    "no_staged_recovery": Ablation(staged_recovery=False),
    "random_label": Ablation(random_label=True),
    **{f"no_{family}": Ablation(drop_families=(family,)) for family in FAMILIES},
    "proxy_only": Ablation(proxy_only=True),
}
"""One entry per row of the source's tables, by name."""


@dataclass(frozen=True, kw_only=True)
class PilaConfig:
    """Constructor arguments of `PilaAdapter`; stored beside the weights."""

    channels: int = 16
    """Channels of the latent."""
    hidden: int = 128
    """Width of encoder, experts, decoder and condition vector; a multiple of 8."""
    blocks: int = 4
    """Residual blocks of the encoder."""
    head_width: int = 64
    """Width inside the small heads of the field estimation."""
    cond_dim: int = 4096
    """Width of the pooled prompt embedding (umT5: 4096)."""
    top_k: int = 4
    """Experts that run per sample, 0 to 8."""
    label_bias: float = 2.0
    """beta: what a label adds to its expert's logit (Eq 22)."""
    temperature: float = 2.0
    """tau of the softmax over the selected experts (Eq 23)."""
    gate: str = "quadratic"
    """How the correction fades with noise: "quadratic", "linear" or "none"."""
    gate_floor: float = 0.05
    """f: what is left of the correction at pure noise."""
    correction_limit: float = 10.0
    """The velocity correction is clamped to this magnitude."""
    tie_duplicates: bool = True
    """Experts update a slot's independent channels and the copies follow. Off: they update all 32 channels, which gives them a
    side channel that no readout sees."""
    expert_sees_feature: bool = False
    """Also feed the encoder's feature to the experts, past the bank."""
    decoder_sees_feature: bool = False
    """Also feed the encoder's feature to the decoder, past the bank."""
    ablation: Ablation = field(default_factory=Ablation)
    """What is switched off."""

    def __post_init__(self) -> None:
        if isinstance(self.ablation, Mapping):
            object.__setattr__(self, "ablation", Ablation(**self.ablation))
        if self.hidden < GROUPS or self.hidden % GROUPS:
            raise ValueError(f"hidden width is {self.hidden}; it must be a multiple of {GROUPS}.")
        for name in ("channels", "blocks", "head_width", "cond_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_top_k(self.top_k)
        if self.temperature <= 0:
            raise ValueError(f"routing temperature is {self.temperature}; it must be above 0.")
        if self.gate not in GATES:
            raise ValueError(f"sigma gate is {self.gate!r}; it must be one of {', '.join(GATES)}.")
        if not 0.0 <= self.gate_floor <= 1.0:
            raise ValueError(f"the gate's floor is {self.gate_floor}; it must be 0 to 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the file's metadata."""
        return asdict(self)

    def with_ablation(self, name: str) -> PilaConfig:
        """The same sizes with one row of the ablation tables. Raises ValueError for an unknown name."""
        if name not in ABLATIONS:
            raise ValueError(f"ablation is {name!r}; it must be one of {', '.join(ABLATIONS)}.")
        return replace(self, ablation=ABLATIONS[name])


def check_top_k(top_k: int) -> None:
    """Raises ValueError unless `top_k` is a count of experts."""
    if not 0 <= top_k <= len(CATEGORIES):
        raise ValueError(f"top-k is {top_k}; it must be 0 to {len(CATEGORIES)} experts.")


TOY = PilaConfig(hidden=32, blocks=3, head_width=16)
"""A small adapter for the toy world: trains on two cores."""
