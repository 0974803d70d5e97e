"""Measures every PILA residual on lawful and unlawful analytic fields and writes the table into docs/pila.md.

python3 dev.py bench pila/residuals            # prints the tables
python3 dev.py bench pila/residuals --write    # and puts them between the markers of docs/pila.md
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from latent_physics.methods.pila.residuals import TERMS, ResidualSettings, prepare

from . import lawful_fields as an

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
EXACT = ResidualSettings(smooth=False)
BEGIN, END = "<!-- measured residuals: begin -->", "<!-- measured residuals: end -->"

Negative = tuple[str, Callable[[an.Fields, an.Lattice], an.Fields]]
DEFORMING: Negative = ("a disc that stretches", lambda fields, grid: an.rigid_disc(grid, deformation=0.1))
NEGATIVES: dict[tuple[str, str], Negative] = {
    ("Rigid Body", "low_strain"): DEFORMING,
    ("Rigid Body", "rigid_motion"): DEFORMING,
    ("Rigid Body", "stress_strain"): (
        "stress scrambled in space",
        lambda fields, grid: an.scrambled(fields, ["sigma"]),
    ),
    ("Elastic", "stress_strain"): (
        "stress 5 frames late",
        lambda fields, grid: an.rolled(fields, ["sigma"], frames=5),
    ),
    ("Fluid", "pressure_regularity"): (
        "pressure + 120 % noise",
        lambda fields, grid: an.noisy(fields, 1.2, ["p"]),
    ),
    ("Fluid", "density_stability"): (
        "density scrambled in space",
        lambda fields, grid: an.scrambled(fields, ["rho"]),
    ),
    ("Compressible Flow", "pressure_density"): (
        "density 5 frames late",
        lambda f, grid: an.rolled(f, ["rho"], frames=5),
    ),
    ("Compressible Flow", "compression_regularity"): (
        "velocity scrambled",
        lambda fields, grid: an.scrambled(fields, ["u"]),
    ),
    ("Collision", "contact_compression"): (
        "impulse 7 frames late",
        lambda fields, grid: an.rolled(fields, ["j"], frames=7),
    ),
    ("Collision", "impulse_propagation"): (
        "impulse scrambled in space",
        lambda fields, grid: an.scrambled(fields, ["j"]),
    ),
    ("Phase Change", "density_phase"): (
        "density 8 frames late",
        lambda fields, grid: an.rolled(fields, ["rho"], frames=8),
    ),
    ("Phase Change", "support_regularity"): (
        "phase scrambled in space",
        lambda fields, grid: an.scrambled(fields, ["alpha"]),
    ),
    ("Thermal", "thermal_regularity"): (
        "temperature scrambled",
        lambda fields, grid: an.scrambled(fields, ["T"]),
    ),
    ("Optical", "support_gating"): (
        "support inverted",
        lambda fields, grid: {**fields, "alpha": 1.0 - fields["alpha"]},
    ),
    ("Optical", "support_regularity"): (
        "support scrambled",
        lambda fields, grid: an.scrambled(fields, ["alpha"]),
    ),
}
"""Terms that look at one frame at a time cannot see a common shuffle; each has a negative of its own."""
STEADY_NEGATIVES: dict[tuple[str, str], Negative] = {
    ("melting", "thermal_phase"): (
        "temperature 5 frames late",
        lambda fields, grid: an.rolled(fields, ["T"], frames=5),
    ),
    ("turning dye", "momentum"): (
        "pressure 9 px aside",
        lambda fields, grid: an.rolled(fields, ["p"], pixels=9),
    ),
}
"""Likewise for fields whose part in a term does not change in time."""
DEGENERATE = {("rigid translation", "stress_strain"), ("rigid rotation", "stress_strain")}
"""Fields without strain have no stress-strain relation to break: 0 by design."""


def score(fields: an.Fields, category: str, settings: ResidualSettings = EXACT) -> dict[str, float]:
    """Every term of a category that the fields allow, in float32, as in training."""
    context = prepare({name: field.float() for name, field in fields.items()}, None, settings)
    scores = {}
    for name, term in TERMS[category].items():
        with contextlib.suppress(ValueError):  # a slot that this sample does not define
            scores[name] = float(term.formula(context))
    return scores


def unlawful(
    name: str, category: str, term: str, fields: an.Fields, grid: an.Lattice
) -> tuple[str, list[an.Fields]]:
    """The negative of one term: its description and its samples."""
    special = STEADY_NEGATIVES.get((name, term)) or NEGATIVES.get((category, term))
    if special is not None:
        return special[0], [special[1](fields, grid)]
    return "frames shuffled", [an.shuffled(fields, seed) for seed in SEEDS]


def measure(
    noise: float = 0.0, settings: ResidualSettings = EXACT
) -> list[tuple[str, str, str, float, str, float]]:
    """Rows of (field, category, term, lawful, what was broken, broken)."""
    grid = an.Lattice.of()
    rows = []
    for name, (category, build) in an.LAWFUL.items():
        fields = build(grid)
        lawful = score(an.noisy(fields, noise) if noise else fields, category, settings)
        for term in lawful:
            what, samples = unlawful(name, category, term, fields, grid)
            if noise:
                samples = [an.noisy(sample, noise) for sample in samples]
            broken = sum(score(sample, category, settings)[term] for sample in samples) / len(samples)
            rows.append((name, category, term, lawful[term], what, broken))
    return rows


def wave_speeds() -> list[tuple[float, float]]:
    """Residual of the wave term on waves of c^2 = 0.25 times each factor, as (factor, residual)."""
    grid = an.Lattice.of()
    return [
        (f, score(an.elastic_wave(grid, 0.25 * f), "Elastic")["displacement_wave"])
        for f in (0.25, 0.5, 1.0, 2.0, 4.0)
    ]


def report() -> str:
    """All tables as markdown."""
    lines = [
        "| field | category | term | lawful | broken by | broken | lawful / broken, 5 % noise, filtered |",
        "|---|---|---|---|---|---|---|",
    ]
    filtered = {(row[0], row[2]): row for row in measure(0.05, ResidualSettings())}
    for name, category, term, lawful, what, broken in measure():
        noisy = filtered[name, term]
        note = " (no strain: nothing to break)" if (name, term) in DEGENERATE else ""
        cells = [
            name,
            category,
            term,
            f"{lawful:.1e}",
            what + note,
            f"{broken:.2g}",
            f"{noisy[3]:.2g} / {noisy[5]:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    factors = wave_speeds()
    lines += ["", "Waves of the wrong speed (displacement wave, c^2 relative to the residual's):", ""]
    lines += [
        "| " + " | ".join(["c^2 / c^2 assumed", *(f"{f:g}" for f, _ in factors)]) + " |",
        "|---" * (len(factors) + 1) + "|",
    ]
    lines.append("| " + " | ".join(["residual", *(f"{value:.2g}" for _, value in factors)]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Prints the tables; with --write also updates the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="put the tables between the markers of docs/pila.md"
    )
    text = report()
    if parser.parse_args().write:
        page = ROOT / "docs" / "pila.md"
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
