"""The files of a PILA run: the adapter that ComfyUI loads, the log's columns and their curves."""

from __future__ import annotations

from ....methods.pila import CATEGORIES
from ....methods.pila.bank import SLOTS
from ....methods.pila.losses.objective import TERM_NAMES
from ....methods.pila.losses.recovery import RECOVERY_NAMES
from ....methods.pila.residuals import TERMS
from .losses import ROUTING_COLUMNS, SIGMA_COLUMNS

EXPORT, RESIDUALS = "pila_adapter.safetensors", "residuals.png"
COLUMNS = (
    "loss", "observable", "flow", "base", "gain", "physics", "samples", "ratio", "mask", "off_label",
    "recall",
    *(f"B {name}" for name in RECOVERY_NAMES),
    *TERM_NAMES,
    *(f"std {name}" for name in SLOTS),
    *ROUTING_COLUMNS,
    *SIGMA_COLUMNS,
)  # fmt: skip
"""gain: 1 - flow / base, the share of the frozen model's error that the correction removes. off_label:
routing weight given to experts without a label. recall: share of the labels whose expert ran. route X: mean
routing weight of an expert. X + Y: share of the clips for which both experts ran. X at sigma S: mean residual
of a category by noise level. std X: deviation of a field within a clip before the experts; constants obey
every law, so a fall towards 0 means that the residuals judge nothing any more."""
VALIDATION_COLUMNS = (
    "val_gain",
    *(f"val_std {name}" for name in SLOTS),
    *(f"val_runs {name}" for name in CATEGORIES),
)
"""val_gain, val_std X: as gain and std X, on held-out clips. val_runs X: share of those for which an expert
ran."""
CURVE_PANELS = {
    "flow target": ("observable",),
    "flow matching": ("flow", "base"),
    "error removed": ("gain", "val_gain"),
    "physics": ("physics",),
    "|g dv| / |v|": ("ratio",),
    "routing": ("off_label", "recall"),
    "variation of the fields": tuple(f"std {name}" for name in SLOTS),
}
RESIDUAL_PANELS = {category: [f"{category}/{name}" for name in TERMS[category]] for category in CATEGORIES}
"""Routed residuals; 0: the law holds, 1: unrelated."""
