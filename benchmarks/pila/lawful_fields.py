"""Fields that obey (or break) each category's laws by construction: what the residuals are measured against.

Every sample is a dict from slot to field `1 C T H W` in float64, in lattice units. Where a term links two
slots, both come from independent formulas; only strain and stress are made from the velocity, as Eq 16 and 20
define them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from latent_physics.methods.pila import stencils as st
from latent_physics.methods.pila.afe import stress
from torch import Tensor

Fields = dict[str, Tensor]
FRAMES, HEIGHT, WIDTH = 21, 48, 64


@dataclass(frozen=True)
class Lattice:
    """Coordinates of every point, `1 1 T H W` each."""

    t: Tensor
    y: Tensor
    x: Tensor

    @classmethod
    def of(cls, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Lattice:
        """Frame, row and column numbers."""
        axes = (torch.arange(n, dtype=torch.float64) for n in (frames, height, width))
        return cls(*(axis[None, None] for axis in torch.meshgrid(*axes, indexing="ij")))

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle."""
        return float(self.x.max()) / 2, float(self.y.max()) / 2

    def moving(self, ux: float, uy: float) -> tuple[Tensor, Tensor]:
        """Coordinates that travel with a velocity, relative to the middle of the grid at the middle frame."""
        cx, cy = self.centre
        age = self.t - self.t.max() / 2
        return self.x - cx - ux * age, self.y - cy - uy * age


def vector(x: Tensor, y: Tensor) -> Tensor:
    """Two components as one field."""
    return torch.cat([x, y], dim=1)


def with_stress(fields: Fields) -> Fields:
    """Adds strain and stress made from the velocity."""
    strain = st.symmetric_gradient(fields["u"])
    pressure = fields.get("p", torch.zeros_like(fields["u"][:, :1]))
    return {**fields, "eps": strain, "sigma": stress(pressure, strain)}


def rigid_translation(grid: Lattice) -> Fields:
    """The whole scene moves at one velocity."""
    one = torch.ones_like(grid.t)
    u = vector(0.6 * one, -0.3 * one)
    return with_stress({"u": u, "d": u * (grid.t - grid.t.shape[2] // 2)})


def rigid_rotation(grid: Lattice) -> Fields:
    """The whole scene turns about its middle."""
    cx, cy = grid.centre
    u = 0.03 * vector(-(grid.y - cy), grid.x - cx)
    return with_stress({"u": u, "d": u * (grid.t - grid.t.shape[2] // 2)})


def rigid_disc(grid: Lattice, deformation: float = 0.0) -> Fields:
    """A soft disc crosses a still background; with `deformation` it stretches while it moves."""
    x, y = grid.moving(0.5, 0.2)
    inside = torch.sigmoid((14.0 - (x.square() + y.square()).sqrt()) / 0.7)
    u = inside * vector(0.5 + deformation * x, 0.2 - deformation * y)
    path = torch.nn.functional.pad(st.step_mean(u).cumsum(dim=2), (0, 0, 0, 0, 1, 0))
    return with_stress({"u": u, "d": path - path[:, :, path.shape[2] // 2][:, :, None]})


def travelling_wave(grid: Lattice, speed2: float = 0.25, wavelength: float = 24.0) -> tuple[Tensor, Tensor]:
    """A plane wave and its rate of change, travelling obliquely with phase speed sqrt(speed2)."""
    k = 2.0 * math.pi / wavelength
    kx, ky = k * 0.8, k * 0.6
    omega = math.sqrt(speed2) * k
    phase = kx * grid.x + ky * grid.y - omega * grid.t
    return torch.sin(phase), -omega * torch.cos(phase)


def elastic_wave(grid: Lattice, speed2: float = 0.25) -> Fields:
    """A displacement wave with its exact velocity."""
    value, rate = travelling_wave(grid, speed2)
    return with_stress({"d": vector(value, -0.5 * value), "u": vector(rate, -0.5 * rate)})


def drifting_vortices(grid: Lattice) -> Fields:
    """Taylor-Green vortices carried by a drift, with a faint dye on their streamlines: divergence-free, exact
    for Euler.
    """
    x, y = grid.moving(0.4, 0.2)
    k, a = 2.0 * math.pi / 32.0, 0.5
    sx, cx, sy, cy = torch.sin(k * x), torch.cos(k * x), torch.sin(k * y), torch.cos(k * y)
    u = vector(0.4 + a * sx * cy, 0.2 - a * cx * sy)
    p = 0.25 * a**2 * (torch.cos(2 * k * x) + torch.cos(2 * k * y))
    return {"u": u, "p": p, "rho": 1.0 + 0.02 * torch.tanh(2.0 * sx * sy)}


def strong_dye(grid: Lattice) -> Fields:
    """The same vortices with a strong dye: mass is conserved exactly, momentum (at unit density) is left
    out.
    """
    fields = drifting_vortices(grid)
    return {"u": fields["u"], "rho": 1.0 + 25.0 * (fields["rho"] - 1.0)}


def turning_dye(grid: Lattice) -> Fields:
    """A solid-body vortex turns a faint dye; pressure holds the circle."""
    cx, cy = grid.centre
    x, y = grid.x - cx, grid.y - cy
    rate = 0.12
    angle = rate * grid.t
    bx, by = 10.0 * torch.cos(angle), 10.0 * torch.sin(angle)
    dye = torch.exp(-((x - bx).square() + (y - by).square()) / (2 * 5.0**2))
    return {
        "u": rate * vector(-y, x),
        "p": 0.5 * rate**2 * (x.square() + y.square()),
        "rho": 1.0 + 0.02 * dye,
    }


def sound(grid: Lattice) -> Fields:
    """A weak plane sound wave of speed 1 in a gas of density 1."""
    k = 2.0 * math.pi / 24.0
    swing = 0.02 * torch.cos(k * grid.x - k * grid.t)
    return {"u": vector(swing, torch.zeros_like(swing)), "p": swing, "rho": 1.0 + swing}


def bump(x: Tensor, y: Tensor, size: float) -> Tensor:
    """A Gaussian."""
    return torch.exp(-(x.square() + y.square()) / (2.0 * size**2))


def drifting_phase(grid: Lattice) -> Fields:
    """An ice cube that merely moves: phase, density and temperature are carried along."""
    x, y = grid.moving(0.5, -0.3)
    alpha = torch.sigmoid((10.0 - (x.square() + y.square()).sqrt()) / 2.5)
    one = torch.ones_like(alpha)
    return {
        "u": vector(0.5 * one, -0.3 * one),
        "alpha": alpha,
        "rho": 1.0 - 0.08 * alpha,
        "T": bump(x - 4, y, 7.0),
    }


def melting(grid: Lattice) -> Fields:
    """A front melts through a still block and takes its heat from it."""
    cx, _ = grid.centre
    alpha = torch.sigmoid(0.35 * (grid.t - 10.0) - 0.25 * (grid.x - cx) + 0.6 * torch.sin(grid.y / 8.0))
    still = torch.zeros_like(alpha)
    return {"u": vector(still, still), "alpha": alpha, "rho": 1.0 - 0.08 * alpha, "T": 0.3 - alpha}


def impact(grid: Lattice) -> Fields:
    """Matter runs together, is pushed apart at one moment, and runs back."""
    cx, cy = grid.centre
    x, y = grid.x - cx, grid.y - cy
    width, age = 1.5, grid.t - 9.5
    shape = vector(x, y) / 8.0 * bump(x, y, 8.0)
    swing = torch.tanh(age / width)
    return {
        "u": shape * swing,
        "d": shape * width * torch.log(torch.cosh(age / width)),
        "j": shape * (1.0 - swing.square()) / width,
    }


def warm_blob(grid: Lattice, diffusivity: float = 1e-3, drift: tuple[float, float] = (0.5, 0.3)) -> Fields:
    """A warm blob that drifts and spreads: the heat kernel, so diffusion is exact."""
    x, y = grid.moving(*drift)
    spread2 = 5.0**2 + 2.0 * diffusivity * grid.t
    one = torch.ones_like(x)
    heat = 25.0 / spread2 * torch.exp(-(x.square() + y.square()) / (2.0 * spread2))
    return {"u": vector(drift[0] * one, drift[1] * one), "T": heat}


def light(grid: Lattice, speed2: float = 0.25) -> Fields:
    """A plane pulse that travels inside its support."""
    x, _ = grid.moving(math.sqrt(speed2), 0.0)
    pulse = torch.cos(2.0 * math.pi * x / 16.0) * torch.exp(-x.square() / (2.0 * 6.0**2))
    support = torch.sigmoid((20.0 - x.abs()) / 2.0)
    return {"psi": pulse, "alpha": support}


LAWFUL: dict[str, tuple[str, Callable[[Lattice], Fields]]] = {
    "rigid translation": ("Rigid Body", rigid_translation),
    "rigid rotation": ("Rigid Body", rigid_rotation),
    "rigid disc": ("Rigid Body", rigid_disc),
    "elastic wave": ("Elastic", elastic_wave),
    "drifting vortices": ("Fluid", drifting_vortices),
    "strong dye": ("Fluid", strong_dye),
    "turning dye": ("Fluid", turning_dye),
    "sound": ("Compressible Flow", sound),
    "impact": ("Collision", impact),
    "drifting phase": ("Phase Change", drifting_phase),
    "melting": ("Phase Change", melting),
    "warm blob": ("Thermal", warm_blob),
    "light": ("Optical", light),
}
"""Lawful fields by name, with the category whose laws they obey."""


def shuffled(fields: Fields, seed: int) -> Fields:
    """The same frames in a random order, the same order for every slot."""
    frames = next(iter(fields.values())).shape[2]
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(seed))
    return {name: field[:, :, order] for name, field in fields.items()}


def scrambled(fields: Fields, names: Sequence[str], seed: int = 0) -> Fields:
    """The named slots with their pixels in a random order, the same in every frame."""
    result = dict(fields)
    for name in names:
        field = fields[name]
        order = torch.randperm(field.shape[3] * field.shape[4], generator=torch.Generator().manual_seed(seed))
        result[name] = field.flatten(3)[..., order].reshape(field.shape)
    return result


def rolled(fields: Fields, names: Sequence[str], *, frames: int = 0, pixels: int = 0) -> Fields:
    """The named slots shifted cyclically in time or along the width."""
    return {
        name: field.roll((frames, pixels), dims=(2, 4)) if name in names else field
        for name, field in fields.items()
    }


def noisy(fields: Fields, share: float, names: Sequence[str] | None = None, seed: int = 0) -> Fields:
    """White noise on every named slot, `share` of its standard deviation (of its size if it is
    constant).
    """
    generator = torch.Generator().manual_seed(seed)
    result = dict(fields)
    for name in fields if names is None else names:
        field = fields[name]
        scale = float(field.std()) or float(field.abs().mean())
        noise = torch.randn(field.shape, generator=generator, dtype=field.dtype)
        result[name] = field + share * scale * noise
    return result
