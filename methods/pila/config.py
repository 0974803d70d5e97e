"""Sizes of a PILA adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..labels.taxonomy import CATEGORIES
from .encoder import GROUPS

GATE_FLOORS = {"quadratic": 0.05, "linear": 0.30}
"""Shapes of the gate, and the floor that goes with each: the paper's, and that of the authors' Wan
scripts."""


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
    """Course of the correction over the noise: "quadratic" (the paper) or "linear" (the authors' Wan
    scripts)."""
    gate_floor: float = 0.05
    """f: the share of the correction applied at pure noise. The authors' linear gate has 0.30."""
    decoder_blocks: int = 1
    """Residual blocks of the decoder."""
    decoder_sees_feature: bool = False
    """Also feed the encoder's feature to the decoder, beside the bank, as the authors' code does."""
    normalise_prompt: bool = True
    """Bring the pooled prompt embedding to mean 0 and deviation 1. Off in files of version 1."""
    bound_logits: bool = True
    """Keep the router's learned logits so small that a label selects its expert. Off in files of version
    1."""
    ungated_penalty: float = 0.0
    """Weight of the penalty on the ungated correction that files of version 1 were trained with; the gate
    makes up for it."""

    def __post_init__(self) -> None:
        if self.hidden < GROUPS or self.hidden % GROUPS:
            raise ValueError(f"hidden width is {self.hidden}; it must be a multiple of {GROUPS}.")
        for name in ("channels", "blocks", "head_width", "cond_dim", "decoder_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_top_k(self.top_k)
        for name, unit in (("temperature", "the routing temperature"), ("label_bias", "the label bias")):
            if not getattr(self, name) > 0:
                raise ValueError(f"{unit} is {getattr(self, name)}; it must be above 0.")
        if self.gate not in GATE_FLOORS:
            raise ValueError(f"sigma gate is {self.gate!r}; it must be one of {', '.join(GATE_FLOORS)}.")
        if not 0.0 < self.gate_floor <= 1.0:
            raise ValueError(f"the gate's floor is {self.gate_floor}; it must be above 0, at most 1.")
        if self.ungated_penalty < 0:
            raise ValueError(f"the ungated penalty is {self.ungated_penalty}; it must be at least 0.")


def check_top_k(top_k: int) -> None:
    """Raises ValueError unless `top_k` is a count of experts."""
    if not 0 <= top_k <= len(CATEGORIES):
        raise ValueError(f"top-k is {top_k}; it must be 0 to {len(CATEGORIES)} experts.")


TOY = PilaConfig(
    hidden=32,
    blocks=3,
    head_width=16,
    gate="linear",
    gate_floor=0.30,
    decoder_blocks=2,
    decoder_sees_feature=True,
)
"""A small adapter for the toy world: trains on two cores. Gate and decoder are those that learn fastest
there."""
