"""Category-specific residual constraints: how far a set of fields is from the laws of a category.

Source: PILA Table 1, 6 and 7 and section A.3 give names, roles and families. The formulas lost their symbols
in every copy we know, so they are restored from the prose and from physics; docs/pila.md lists where we had
to choose. Every term is scale-free and bounded: 0 means the law holds, about 1 means its terms are unrelated.

Units: one latent pixel, one latent frame. Means run over a validity mask that leaves out two border pixels
and the first and last frame, times the optional motion mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..labels.taxonomy import CATEGORIES, category_index
from . import bank as banks
from . import stencils as st
from .afe import centre

FAMILIES = ("pde", "kinematic", "closure", "stabilising")
MINIMUM_FRAMES, MINIMUM_SIDE = 4, 5
BORDER = 2
TINY = 1e-8
"""Keeps 0/0 at 0; far below any activity floor."""


@dataclass(frozen=True, kw_only=True)
class ResidualSettings:
    """Constants of the residuals, in lattice units."""

    wave_speed2: float = 0.25
    """c^2 of the wave terms, px^2 per frame^2."""
    viscosity: float = 1e-3
    """nu of the momentum balance. Numerically negligible at this size; about 0.05 makes diffusion matter."""
    diffusivity: float = 1e-3
    """kappa of heat and phase diffusion; see `viscosity`."""
    smooth: bool = True
    """Apply a 1-2-1 filter before derivatives: learned fields carry white noise that differences amplify. The
    regularity terms always read the unfiltered fields, because that noise is what they are there to
    charge."""


class Averager:
    """The masked mean of the residuals, per sample; sums over channels."""

    def __init__(self, sample: Tensor, mask: Tensor | None) -> None:
        frames, height, width = sample.shape[-3:]
        valid = sample.new_zeros(1, 1, frames, height, width)
        valid[:, :, 1:-1, BORDER:-BORDER, BORDER:-BORDER] = 1.0
        self.points = valid if mask is None else valid * mask.detach().to(sample.dtype)
        steps = valid[:, :, 1:] * valid[:, :, :-1]
        self.intervals = steps if mask is None else steps * st.step_mean(mask.detach().to(sample.dtype))

    def __call__(self, field: Tensor) -> Tensor:
        """Mean over space and time of the channel sum, `B`; picks the interval mask where `field` has one
        frame fewer."""
        weight = self.points if field.shape[2] == self.points.shape[2] else self.intervals
        total = weight.expand(field.shape[0], -1, -1, -1, -1).sum(dim=(1, 2, 3, 4)).clamp(min=TINY)
        return (field * weight).sum(dim=(1, 2, 3, 4)) / total

    def channel_mean(self, field: Tensor) -> Tensor:
        """Masked mean of each channel, `B C 1 1 1`."""
        return torch.stack([self(field[:, i : i + 1]) for i in range(field.shape[1])], dim=1)[
            :, :, None, None, None
        ]

    def variance(self, field: Tensor) -> Tensor:
        """Masked variance summed over channels, `B`, detached: it only sets scales."""
        field = field.detach()
        return self((field - self.channel_mean(field)).square())


def balance(mean: Averager, terms: Sequence[Tensor], floor: Tensor | float) -> Tensor:
    """N1: <(sum of terms)^2> / sum of <term^2>. 0 where the terms cancel, 1 where they are unrelated.

    `floor` is the activity below which nothing is charged. The denominator is live: detached it would reward
    a field for shrinking.
    """
    whole = mean(sum(terms).square())
    return whole / (sum(mean(term.square()) for term in terms) + floor + TINY)


def closure(mean: Averager, y: Tensor, x: Tensor, *, centred: bool, sign: int = 0) -> Tensor:
    """N2: the share of y that no multiple of x explains, 1 - corr^2. `sign` +1 allows only positive
    multiples, 0 both."""
    if centred:
        x, y = x - mean.channel_mean(x), y - mean.channel_mean(y)
    xx, yy, xy = mean(x.square()), mean(y.square()), mean(x * y)
    if sign:
        xy = (sign * xy).clamp(min=0)
    return ((yy - xy.square() / (xx + TINY)) / (yy + TINY)).clamp(min=0)


FREE_WAVELENGTH = 6.0
FREE_SLOPE2 = 1 / 16


def roughness(mean: Averager, field: Tensor, bound: Tensor | float | None = None) -> Tensor:
    """N3: the share of gradient energy above `bound`; by default any structure of 6 pixels or more is
    free."""
    energy = st.forward_energy(field)
    if bound is None:
        bound = 2.0 * (2.0 * math.pi / FREE_WAVELENGTH) ** 2 * mean.variance(field)
    if isinstance(bound, Tensor):
        bound = bound[:, None, None, None, None]
    return mean((energy - bound).clamp(min=0)) / (mean(energy) + TINY)


MOVING_SPEED = 0.1
DEFORMATION_LENGTH = 16.0


def interior_weight(velocity: Tensor) -> Tensor:
    """Where a region moves and so do its neighbours, `B 1 T H W` in [0, 1], detached.

    A rigid body on a still background shears at its outline; eroding by 7x7 (3x3 on small latents) leaves its
    inside.
    """
    speed2 = velocity.detach().square().sum(dim=1, keepdim=True)
    moving = speed2 / (speed2 + MOVING_SPEED**2)
    size = 7 if min(velocity.shape[-2:]) >= 21 else 3
    eroded = -F.max_pool3d(-moving, (1, size, size), stride=1, padding=(0, size // 2, size // 2))
    return eroded.square()


def non_rigidity(mean: Averager, strain: Tensor, velocity: Tensor) -> Tensor:
    """N4: bounded strain inside moving regions, relative to speed over 16 pixels."""
    weight = interior_weight(velocity)
    energy = strain.square().sum(dim=1, keepdim=True)
    scale = velocity.square().sum(dim=1, keepdim=True) / DEFORMATION_LENGTH**2
    return mean(weight * energy / (energy + scale + TINY)) / (mean(weight) + 1e-6)


FLOOR_KINEMATIC = 1e-4
FLOOR_ACCELERATION = 1e-6
FLOOR_ACOUSTIC = 1e-8
SHARE_SCALAR = 4e-4
SHARE_WAVE = 4e-6

Fields = Mapping[str, Tensor]


class Checked(dict[str, Tensor]):
    """Fields by slot, with a sentence where one is missing."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(f"the residual needs the field {name!r}; the bank offers {', '.join(self)}.")


@dataclass(frozen=True)
class Context:
    """Arguments of a term: fields in physical units, the masked mean, and constants."""

    fields: Fields
    """Fields for the laws: filtered if the settings say so."""
    raw: Fields
    """Fields for the regularity terms: never filtered."""
    mean: Averager
    settings: ResidualSettings

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def density(self) -> Tensor:
        """Density that is safe to divide by."""
        return self["rho"].clamp(min=banks.DENSITY_FLOOR)


def kinematic(c: Context) -> Tensor:
    """Displacement changes by what the velocity carries: d[n+1] - d[n] = (u[n] + u[n+1]) / 2."""
    return balance(c.mean, [st.step_difference(c["d"]), -st.step_mean(c["u"])], FLOOR_KINEMATIC)


def low_strain(c: Context) -> Tensor:
    """A rigid body has no internal strain (slot eps)."""
    return non_rigidity(c.mean, c["eps"], c["u"])


def rigid_motion(c: Context) -> Tensor:
    """A rigid body does not deform: sym grad u = 0. Rotation is free."""
    return non_rigidity(c.mean, st.symmetric_gradient(c["u"]), c["u"])


def deviatoric(tensor: Tensor) -> Tensor:
    """A 2x2 tensor (xx, xy, yx, yy) without its trace; this cancels pressure, which some recipes do not
    contain."""
    half = 0.5 * (tensor[:, :1] + tensor[:, 3:])
    zero = torch.zeros_like(half)
    return tensor - torch.cat([half, zero, zero, half], dim=1)


def stress_strain(c: Context) -> Tensor:
    """Hooke's law up to scale: deviatoric stress follows deviatoric strain."""
    return closure(c.mean, deviatoric(c["sigma"]), deviatoric(c["eps"]), centred=False, sign=1)


def wave(c: Context, name: str, floor: Tensor | float) -> Tensor:
    """f_tt = c^2 laplacian(f)."""
    acceleration, curvature = st.second_derivative(c[name], st.TIME), st.laplacian(c[name])
    return balance(c.mean, [acceleration, -c.settings.wave_speed2 * curvature], floor)


def displacement_wave(c: Context) -> Tensor:
    """Elastic waves of the displacement."""
    return wave(c, "d", FLOOR_ACCELERATION)


def velocity_wave(c: Context) -> Tensor:
    """Elastic waves of the velocity."""
    return wave(c, "u", FLOOR_ACCELERATION)


def compatibility(c: Context) -> Tensor:
    """Strain accumulates into deformation. The slot eps is a rate (Eq 16), so it is compared with the change
    of sym grad d."""
    change = st.symmetric_gradient(st.step_difference(c["d"]))
    return balance(c.mean, [change, -st.step_mean(c["eps"])], FLOOR_KINEMATIC)


def continuity(c: Context) -> Tensor:
    """Mass is conserved: rho_t + div(rho u) = 0."""
    rho, u = c["rho"], c["u"]
    terms = [st.ddt(rho), st.ddx(rho * u[:, :1]), st.ddy(rho * u[:, 1:])]
    return balance(c.mean, terms, SHARE_SCALAR * c.mean.variance(rho))


def momentum(c: Context) -> Tensor:
    """u_t + (u . grad) u + grad p / rho - nu laplacian(u) = 0."""
    u, p = c["u"], c["p"]
    force = torch.cat([st.ddx(p), st.ddy(p)], dim=1) / c.density()
    terms = [st.ddt(u), st.advection(u, u), force, -c.settings.viscosity * st.laplacian(u)]
    return balance(c.mean, terms, FLOOR_ACCELERATION)


def pressure_regularity(c: Context) -> Tensor:
    """No pressure spikes."""
    return roughness(c.mean, c.raw["p"])


DENSITY_COLLAPSE = 0.02


def density_stability(c: Context) -> Tensor:
    """Smooth density that does not collapse to nothing; the guard is bounded, because a refined density may
    be negative."""
    missing = (DENSITY_COLLAPSE - c["rho"]).clamp(min=0) / DENSITY_COLLAPSE
    return roughness(c.mean, c.raw["rho"]) + c.mean(missing / (1.0 + missing))


def compression(c: Context) -> Tensor:
    """Acoustics: (div u)_t + laplacian(p) / mean density = 0, the divergence of the linearised momentum
    law."""
    mean_density = c.mean(c.density()).detach()[:, None, None, None, None]
    return balance(
        c.mean, [st.ddt(st.divergence(c["u"])), st.laplacian(c["p"]) / mean_density], FLOOR_ACOUSTIC
    )


def pressure_density(c: Context) -> Tensor:
    """An equation of state up to scale: pressure rises with density."""
    return closure(c.mean, c["p"], c["rho"], centred=True, sign=1)


def compression_regularity(c: Context) -> Tensor:
    """No spikes of expansion or compression."""
    return roughness(c.mean, st.divergence(c.raw["u"]))


def material_rate(c: Context) -> Tensor:
    """Rate of change of the phase as seen by moving matter: alpha_t + u . grad alpha."""
    return st.ddt(c["alpha"]) + st.advection(c["u"], c["alpha"])


def phase_transport(c: Context) -> Tensor:
    """The phase is carried along and diffuses, apart from a source on the interface of one constant strength
    per clip.

    The source is what real melting is. A strength per frame would make shuffled frames look lawful.
    """
    alpha = c["alpha"]
    change = st.ddt(alpha)
    carried = st.advection(c["u"], alpha) - c.settings.diffusivity * st.laplacian(alpha)
    interface = alpha * (1.0 - alpha)
    with torch.no_grad():
        strength = c.mean((change + carried) * interface) / (c.mean(interface.square()) + TINY)
        strength = strength[:, None, None, None, None]
    return balance(c.mean, [change, carried, -strength * interface], SHARE_SCALAR * c.mean.variance(alpha))


def heat_terms(c: Context) -> list[Tensor]:
    """Storage, conservative advection (both directions together) and diffusion of the centred temperature."""
    warmth, u = centre(c["T"]), c["u"]
    flux = st.ddx(warmth * u[:, :1]) + st.ddy(warmth * u[:, 1:])
    return [st.ddt(warmth), flux, -c.settings.diffusivity * st.laplacian(warmth)]


def thermal_phase(c: Context) -> Tensor:
    """Heat is conserved where melting takes some: T_t + div(T u) - kappa laplacian(T) + D(alpha) = 0, in
    units of latent heat.

    alpha is the share of the phase with more enthalpy. An ice cube that merely moves does not melt: D is the
    material rate.
    """
    terms = [*heat_terms(c), material_rate(c)]
    return balance(c.mean, terms, SHARE_SCALAR * c.mean.variance(c["T"]))


def density_phase(c: Context) -> Tensor:
    """Density follows the phase, either way up: ice floats."""
    return closure(c.mean, c["rho"], c["alpha"], centred=True)


def support_regularity(c: Context) -> Tensor:
    """The phase or support field is smooth: slopes up to 1/4 per pixel are free."""
    return roughness(c.mean, c.raw["alpha"], FREE_SLOPE2)


def impulse_response(c: Context) -> Tensor:
    """Motion changes by the impulse: u_t = j, mass absorbed."""
    return balance(c.mean, [st.ddt(c["u"]), -c["j"]], FLOOR_ACCELERATION)


def contact_compression(c: Context) -> Tensor:
    """Impulses push apart only where something is compressed. One-sided, and independent of where
    displacement is zero."""
    squeeze = -st.divergence(c["d"])
    squeeze = squeeze - squeeze.amin(dim=2, keepdim=True)
    squeeze = F.max_pool3d(squeeze, (1, 3, 3), stride=1, padding=(0, 1, 1))
    with torch.no_grad():
        floor = 0.1 * torch.quantile(squeeze.flatten(1).float(), 0.9, dim=1)[:, None, None, None, None]
        scale = torch.maximum(squeeze.amax(dim=2, keepdim=True), floor.to(squeeze.dtype)) + TINY
    repulsion = st.divergence(c["j"]).clamp(min=0)
    unexplained = repulsion * (1.0 - squeeze / scale)
    return c.mean(unexplained.square()) / (c.mean(repulsion.square()) + TINY)


def impulse_propagation(c: Context) -> Tensor:
    """Impulses spread locally instead of appearing as isolated points."""
    return roughness(c.mean, c.raw["j"])


def heat_transport(c: Context) -> Tensor:
    """T_t + div(T u) - kappa laplacian(T) = 0 for the centred temperature."""
    return balance(c.mean, heat_terms(c), SHARE_SCALAR * c.mean.variance(c["T"]))


def thermal_regularity(c: Context) -> Tensor:
    """No isolated temperature spikes."""
    return roughness(c.mean, c.raw["T"])


def wave_propagation(c: Context) -> Tensor:
    """psi_tt = c^2 laplacian(psi)."""
    return wave(c, "psi", SHARE_WAVE * c.mean.variance(c["psi"]))


def support_gating(c: Context) -> Tensor:
    """The wave stays inside its support."""
    return c.mean(((1.0 - c["alpha"]) * c["psi"]).square()) / (c.mean(c["psi"].square()) + TINY)


@dataclass(frozen=True)
class Term:
    """One residual: its formula and the family that ablations switch."""

    formula: Callable[[Context], Tensor]
    family: str


TERMS: dict[str, dict[str, Term]] = {
    "Rigid Body": {
        "kinematic": Term(kinematic, "kinematic"),
        "low_strain": Term(low_strain, "stabilising"),
        "stress_strain": Term(stress_strain, "closure"),
        "rigid_motion": Term(rigid_motion, "stabilising"),
    },
    "Elastic": {
        "displacement_wave": Term(displacement_wave, "pde"),
        "velocity_wave": Term(velocity_wave, "pde"),
        "compatibility": Term(compatibility, "kinematic"),
        "stress_strain": Term(stress_strain, "closure"),
    },
    "Fluid": {
        "continuity": Term(continuity, "pde"),
        "momentum": Term(momentum, "pde"),
        "pressure_regularity": Term(pressure_regularity, "stabilising"),
        "density_stability": Term(density_stability, "stabilising"),
    },
    "Compressible Flow": {
        "continuity": Term(continuity, "pde"),
        "compression": Term(compression, "pde"),
        "pressure_density": Term(pressure_density, "closure"),
        "compression_regularity": Term(compression_regularity, "stabilising"),
    },
    "Collision": {
        "kinematic": Term(kinematic, "kinematic"),
        "impulse_response": Term(impulse_response, "closure"),
        "contact_compression": Term(contact_compression, "closure"),
        "impulse_propagation": Term(impulse_propagation, "stabilising"),
    },
    "Phase Change": {
        "phase_transport": Term(phase_transport, "pde"),
        "thermal_phase": Term(thermal_phase, "pde"),
        "density_phase": Term(density_phase, "closure"),
        "support_regularity": Term(support_regularity, "stabilising"),
    },
    "Thermal": {
        "heat_transport": Term(heat_transport, "pde"),
        "thermal_regularity": Term(thermal_regularity, "stabilising"),
    },
    "Optical": {
        "wave_propagation": Term(wave_propagation, "pde"),
        "support_gating": Term(support_gating, "stabilising"),
        "support_regularity": Term(support_regularity, "stabilising"),
    },
}
"""Every residual term by category (Tables 6 and 7), in the paper's order."""


def prepare(
    bank: Tensor | Fields,
    mask: Tensor | None,
    settings: ResidualSettings,
    velocity: Callable[[Tensor], Tensor] | None = None,
) -> Context:
    """Reads, checks and smooths the fields once for several terms. Raises ValueError for latents below 4
    frames or 5x5."""
    fields = banks.read(bank, velocity=velocity) if isinstance(bank, Tensor) else dict(bank)
    if not fields:
        raise ValueError("the residuals need at least one field.")
    fields = {
        name: field if field.dtype == torch.float64 else field.float() for name, field in fields.items()
    }
    sample = next(iter(fields.values()))
    st.require_size(sample, MINIMUM_FRAMES, MINIMUM_SIDE, "a physical residual")
    filtered = {name: st.smooth(field) for name, field in fields.items()} if settings.smooth else fields
    return Context(Checked(filtered), Checked(fields), Averager(sample, mask), settings)


def residual_terms(
    bank: Tensor | Fields,
    category: str | int,
    *,
    mask: Tensor | None = None,
    settings: ResidualSettings | None = None,
    velocity: Callable[[Tensor], Tensor] | None = None,
    drop_families: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Every residual of one category, each `B`: 0 where the law holds, about 1 where its terms are unrelated.

    `bank` is a packed bank `B 32 T H W` or a mapping from slot to fields in physical units (u `B 2 T H W`, d
    and j likewise, eps and sigma `B 4`, the rest `B 1`). `mask` `B 1 T H W` weighs where to look. `velocity`
    reads the packed velocity scaffold (`bank.read`). Raises ValueError for an unknown category or family, a
    missing field, and latents too small for the stencils.
    """
    for family in drop_families:
        if family not in FAMILIES:
            raise ValueError(f"residual family is {family!r}; it must be one of {', '.join(FAMILIES)}.")
    name = CATEGORIES[category_index(category)]
    context = prepare(bank, mask, settings or ResidualSettings(), velocity)
    with torch.autocast(device_type=next(iter(context.fields.values())).device.type, enabled=False):
        return {
            key: term.formula(context)
            for key, term in TERMS[name].items()
            if term.family not in drop_families
        }
