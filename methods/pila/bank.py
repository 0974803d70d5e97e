"""The 32-channel attribute bank: which channels hold which field, how fields are packed, how they are read
back.

Source: PILA Eq 12 and Table 5. A bank is one tensor `B 32 T H W` with ten fixed slots. The code works with
*fields*: a dict from slot name to its independent channels (`COMPACT`), in physical units. `pack` repeats
scalars to the width of their slot, `read` averages the copies.

Two choices of ours keep large numbers usable. Displacements reach tens of pixels, so the bank stores d/8.
Every other slot is limited softly: unchanged up to 5, then approaching 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Fields = Mapping[str, Tensor]

WIDTHS: dict[str, int] = {
    "d": 4,  # displacement
    "u": 4,  # velocity scaffold
    "p": 2,  # pressure
    "rho": 2,  # density
    "T": 2,  # temperature
    "alpha": 2,  # phase or support
    "eps": 4,  # strain-like
    "sigma": 4,  # stress-like
    "j": 4,  # impulse
    "psi": 4,  # wave
}
"""Channels of each slot, in the bank's order."""
COMPACT: dict[str, int] = {
    "d": 2,
    "u": 4,
    "p": 1,
    "rho": 1,
    "T": 1,
    "alpha": 1,
    "eps": 4,
    "sigma": 4,
    "j": 2,
    "psi": 1,
}
"""Independent channels of each slot; the rest are copies."""
SLOTS: tuple[str, ...] = tuple(WIDTHS)
OFFSETS: dict[str, int] = {name: sum(list(WIDTHS.values())[:i]) for i, name in enumerate(SLOTS)}
BANK_CHANNELS = sum(WIDTHS.values())
DISPLACEMENT_SCALE = 8.0
DENSITY_FLOOR = 1e-2
"""Smallest density that is ever divided by."""
SOFT_KNEE, SOFT_LIMIT = 5.0, 10.0


def soft_limit(values: Tensor) -> Tensor:
    """Identity up to 5 in magnitude, then 5 + 5 tanh((|x| - 5) / 5): continuous, with a continuous slope,
    below 10."""
    room = SOFT_LIMIT - SOFT_KNEE
    over = (values.abs() - SOFT_KNEE).clamp(min=0)
    return values.clamp(-SOFT_KNEE, SOFT_KNEE) + torch.sign(values) * room * torch.tanh(over / room)


def slot_of(bank: Tensor, name: str) -> Tensor:
    """The channels of one slot of a packed bank."""
    return bank[:, OFFSETS[name] : OFFSETS[name] + WIDTHS[name]]


def spread(name: str, compact: Tensor) -> Tensor:
    """Repeats a slot's independent channels to its width: (x, y) -> (x, y, x, y), s -> (s, s)."""
    return compact.repeat(1, WIDTHS[name] // COMPACT[name], 1, 1, 1)


def gather(name: str, slot: Tensor) -> Tensor:
    """The reverse of `spread`: the mean of the copies."""
    copies = WIDTHS[name] // COMPACT[name]
    return slot if copies == 1 else slot.unflatten(1, (copies, COMPACT[name])).mean(dim=1)


def pack(compact: Fields) -> Tensor:
    """One bank `B 32 T H W` from compact slots; slots that are missing stay exactly zero.

    `compact["u"]` is the four-channel velocity scaffold, `compact["d"]` is in pixels. Raises ValueError for
    an unknown slot, a wrong width and an empty mapping.
    """
    if not compact:
        raise ValueError("the attribute bank needs at least one field to know its size.")
    for name, values in compact.items():
        if name not in WIDTHS:
            raise ValueError(
                f"field {name!r} is not a slot of the attribute bank; the slots are {', '.join(SLOTS)}."
            )
        if values.ndim != 5 or values.shape[1] != COMPACT[name]:
            raise ValueError(
                f"field {name!r} has shape {tuple(values.shape)}; it must be (B, {COMPACT[name]}, T, H, W)."
            )
    sample = next(iter(compact.values()))
    parts = []
    for name in SLOTS:
        if name not in compact:
            parts.append(sample.new_zeros(sample.shape[0], WIDTHS[name], *sample.shape[2:]))
        elif name == "d":
            parts.append(spread(name, compact[name]) / DISPLACEMENT_SCALE)
        else:
            parts.append(soft_limit(spread(name, compact[name])))
    return torch.cat(parts, dim=1)


def pair_mean(scaffold: Tensor) -> Tensor:
    """Reads a four-channel velocity scaffold (x, y, x, y) as a velocity `B 2 T H W`."""
    return scaffold.unflatten(1, (2, 2)).mean(dim=1)


def read(
    bank: Tensor, slots: Iterable[str] = SLOTS, velocity: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """The readout G: fields in physical units from a packed bank.

    `velocity` reads the four-channel scaffold as a velocity `B 2 T H W`: the adapter passes its own head (Eq
    14); without one the scaffold is taken as (x, y, x, y). The phase slot is clipped to [0, 1] with a
    straight-through gradient. Raises ValueError for a tensor of another channel count.
    """
    if bank.ndim != 5 or bank.shape[1] != BANK_CHANNELS:
        raise ValueError(
            f"the attribute bank has shape {tuple(bank.shape)}; it must be (B, {BANK_CHANNELS}, T, H, W)."
        )
    fields = {}
    for name in slots:
        values = gather(name, slot_of(bank, name))
        if name == "d":
            values = values * DISPLACEMENT_SCALE
        elif name == "u":
            values = (velocity or pair_mean)(values)
        elif name == "alpha":
            values = values + (values.clamp(0.0, 1.0) - values).detach()
        fields[name] = values
    return fields
