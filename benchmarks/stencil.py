"""PILA's balances: ours against the same residual through autograd. `kernels.py` runs it."""

from __future__ import annotations

import functools
import math

import torch
from common import Kernel, Step
from latent_physics.kernels.balance import transport_balance, wave_balance
from latent_physics.methods.pila import stencils as st
from torch import Tensor

FLOOR, DIFFUSIVITY, SPEED2 = 0.1, 1e-3, 0.25


def by_autograd(terms: list[Tensor], weight: Tensor) -> Tensor:
    """The balance of some terms, as its formula reads."""
    total = weight.sum()

    def mean(field: Tensor) -> Tensor:
        return (field * weight).sum(dim=(1, 2, 3, 4)) / total

    return mean(sum(terms).square()) / (sum(mean(term.square()) for term in terms) + FLOOR)


def definition(name: str, field: Tensor, velocity: Tensor, weight: Tensor) -> Tensor:
    """Slices, concatenations and products, each recorded by autograd."""
    if name == "wave":
        return by_autograd([st.second_derivative(field, st.TIME), -SPEED2 * st.laplacian(field)], weight)
    flux_x, flux_y = st.ddx(field * velocity[:, :1]), st.ddy(field * velocity[:, 1:])
    if name == "continuity":
        return by_autograd([st.ddt(field), flux_x, flux_y], weight)
    return by_autograd([st.ddt(field), flux_x + flux_y, -DIFFUSIVITY * st.laplacian(field)], weight)


def ours(name: str, field: Tensor, velocity: Tensor, weight: Tensor) -> Tensor:
    """The kernels."""
    if name == "wave":
        return wave_balance(field, weight, FLOOR, SPEED2)
    return transport_balance(field, velocity, weight, FLOOR, None if name == "continuity" else DIFFUSIVITY)


def prepare(name: str, variant: str, device: str, size: list[int], batch: int) -> Step:
    """Random fields in float32, all with gradients."""
    field = torch.randn(batch, 2 if name == "wave" else 1, *size, device=device, requires_grad=True)
    velocity = torch.randn(batch, 2, *size, device=device, requires_grad=True)
    weight = torch.ones(1, 1, *size, device=device)
    loss = functools.partial(ours if variant == "ours" else definition, name)
    if "compiled" in variant:
        loss = torch.compile(loss)

    def step() -> Tensor:
        field.grad = velocity.grad = None
        value = loss(field, velocity, weight).sum()
        value.backward()
        return value.detach()

    return step


def kernel(name: str, what: str, fields: int) -> Kernel:
    """The benchmark of one law; `fields` is how many numbers a point has."""
    return Kernel(
        name=name,
        what=what,
        prepare=functools.partial(prepare, name),
        shapes=({"size": [13, 60, 90], "batch": 1}, {"size": [21, 60, 104], "batch": 4}),
        variants=("ours", "definition", *(("definition compiled",) if torch.cuda.is_available() else ())),
        bytes=lambda size, batch: 2 * fields * 4 * batch * math.prod(size),  # fields in, gradients out
    )


KERNELS = (
    kernel("wave", "wave law of a displacement, 2 channels (PILA)", 2),
    kernel("continuity", "conservation of mass (PILA)", 3),
    kernel("heat", "transport and diffusion of heat (PILA)", 3),
)
