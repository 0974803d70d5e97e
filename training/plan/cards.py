"""Graphics cards: memory, speed and bandwidth as their makers publish them."""

from __future__ import annotations

from dataclasses import dataclass

from ..console import TrainingError

GIB = 2**30
REACHED = 0.5
"""Share of a card's published speed, and of its bandwidth, that a step is taken to reach. An assumption: none
of these cards was at hand."""
CONTEXT, FRAGMENTS = 0.6 * GIB, 0.05
"""Memory that CUDA's context and libraries take, and the allocator's unused share. An assumption, too."""

LINK = 20e9
"""Bytes a second from the computer's memory to a card: of the 32e9 of PCIe 4.0 with 16 lanes. An assumption,
too."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card."""

    name: str
    gib: int
    """Memory, GiB."""
    tflops: float
    """bf16 matrix products with float32 sums, dense, 1e12 operations a second."""
    gbs: float
    """Memory bandwidth, 1e9 bytes a second."""

    @property
    def room(self) -> float:
        """Bytes that a run's tensors may take."""
        return (self.gib * GIB - CONTEXT) / (1 + FRAGMENTS)


CARDS = (
    Card(name="4060ti-16gb", gib=16, tflops=44, gbs=288),
    Card(name="4080", gib=16, tflops=97, gbs=717),
    Card(name="3090", gib=24, tflops=71, gbs=936),
    Card(name="4090", gib=24, tflops=165, gbs=1008),
    Card(name="5090", gib=32, tflops=209, gbs=1792),
    Card(name="l40s", gib=48, tflops=362, gbs=864),
    Card(name="a100-80gb", gib=80, tflops=312, gbs=2039),
    Card(name="h100", gib=80, tflops=989, gbs=3350),
    Card(name="h200", gib=141, tflops=989, gbs=4800),
)


def find_card(name: str) -> Card:
    """The card of a name, with or without "rtx". Raises TrainingError."""
    short = name.lower().replace("rtx", "").replace("nvidia", "").strip(" -_")
    for card in CARDS:
        if card.name == short:
            return card
    known = ", ".join(card.name for card in CARDS)
    raise TrainingError(f"gpu is {name!r}, whose speed is not known; choose one of {known}.")
