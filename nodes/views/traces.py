"""Records of guidance as a plot and as a table."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...methods.lamo import GuidanceTrace, MotionPriorGuidance, TraceRow
from ...methods.pila import CATEGORIES, PilaTrace
from . import figures

if TYPE_CHECKING:
    from ...training.tasks.predictor import PredictorTraining

HINT = "switch on full_trace in LaMo Guidance to see the error after the nudge"

_SHOWN: weakref.WeakKeyDictionary[MotionPriorGuidance, tuple[int, weakref.ref[Tensor]]] = (
    weakref.WeakKeyDictionary()
)
"""State shown last of each guidance: the number of its run, and the latent that the run gave."""


def of_this_run(guidance: MotionPriorGuidance, latent: Tensor) -> GuidanceTrace:
    """The trace of the run that gave `latent`; an empty one where that run took no step.

    ComfyUI tells a MODEL nothing of a sampler without steps (denoise 0), so the trace still holds the run
    before. It is known by this: another latent, and no run that began since the last time the trace was
    shown.
    """
    trace = guidance.trace or GuidanceTrace()
    run, shown = _SHOWN.get(guidance, (0, None))
    if shown is not None and run == trace.runs and shown() is not latent:
        return GuidanceTrace()
    _SHOWN[guidance] = (trace.runs, weakref.ref(latent))
    return trace


def panels(traces: dict[str, GuidanceTrace]) -> list[figures.Panel]:
    """Motion error, size of the nudge and its share of the stable step over the sampler's steps: means over
    the batch, one set of curves per correction."""
    losses, ratios, shares = [], [], []
    for name, trace in traces.items():
        prefix = f"{name}: " if len(traces) > 1 else ""
        losses.append(_curve(f"{prefix}before", trace, lambda row: row.loss_before))
        losses.append(_curve(f"{prefix}after", trace, lambda row: row.loss_after, dashed=True))
        ratios.append(_curve(f"{prefix}nudge", trace, lambda row: row.edit_ratio if row.active else None))
        shares.append(_curve(f"{prefix}share", trace, lambda row: row.share if row.active else None))
        held = _curve(
            f"{prefix}held by the bound",
            trace,
            lambda row: row.share if row.bounded.any() else None,
            dashed=True,
        )
        shares.append(held)
    rows = [row for trace in traces.values() for row in trace.rows]
    count = max(row.count for row in rows)
    first = min((row.index for row in rows if row.active), default=None)
    frame = {
        "x_label": "step",
        "x_range": (-0.5, count),
        "shaded": None if first is None else (first - 0.25, count),
    }
    hint = "" if any(trace.measure_after for trace in traces.values()) else HINT
    return [
        figures.Panel(
            title="motion error L_guide",
            curves=[curve for curve in losses if curve.x],
            log=True,
            note=hint,
            **frame,
        ),
        figures.Panel(
            title="size of the nudge, |edit| / |x0|", curves=[curve for curve in ratios if curve.x], **frame
        ),
        figures.Panel(
            title="step as a share of the largest that cannot overshoot",
            curves=[curve for curve in shares if curve.x],
            **frame,
        ),
    ]


def table(traces: dict[str, GuidanceTrace]) -> str:
    """The same numbers as comma-separated text, a line per evaluation of the model."""
    lines = ["correction,step,steps,sigma,active,loss_before,loss_after,edit_ratio,share,bounded"]
    for name, trace in traces.items():
        for row in trace.rows:
            numbers = [row.loss_before, row.loss_after, row.edit_ratio, row.share, row.bounded.float()]
            values = ",".join("" if value is None else f"{float(value.mean()):.6g}" for value in numbers)
            lines.append(
                f"{name},{row.index},{row.count},{float(row.sigma.mean()):.6g},{int(row.active)},{values}"
            )
    return "\n".join(lines)


def _curve(
    label: str, trace: GuidanceTrace, value: Callable[[TraceRow], Tensor | None], dashed: bool = False
) -> figures.Curve:
    points = [(x, value(row)) for x, row in zip(_places(trace), trace.rows)]
    known = [(x, float(y.mean())) for x, y in points if y is not None]
    return figures.Curve(label=label, x=[x for x, _ in known], y=[y for _, y in known], dashed=dashed)


def _places(trace: GuidanceTrace) -> list[float]:
    """Where each row lies on the step axis: samplers that evaluate a step several times share its width among
    the evaluations."""
    indices = [row.index for row in trace.rows]
    return [index + indices[:n].count(index) / indices.count(index) for n, index in enumerate(indices)]


def router_panels(trace: PilaTrace) -> list[figures.Panel]:
    """Routing weights and size of the correction over the steps; experts that never ran are left out."""
    curves = []
    for expert, name in enumerate(CATEGORIES):
        weights = [row[expert] for row in trace.weights]
        if max(weights) > 0:
            curves.append(figures.Curve(label=name, x=trace.index, y=weights))
    ratio = figures.Curve(label="correction", x=trace.index, y=trace.ratio)
    return [
        figures.Panel(title="routing weight (they add up to 1)", x_label="step", curves=curves),
        figures.Panel(title="size of the correction, |g dv| / |v|", x_label="step", curves=[ratio]),
    ]


def router_table(trace: PilaTrace) -> str:
    """The same numbers as comma-separated text, a line per corrected evaluation of the model."""
    lines = ["step,sigma,ratio," + ",".join(CATEGORIES)]
    for index, sigma, ratio, weights in zip(trace.index, trace.sigma, trace.ratio, trace.weights):
        lines.append(f"{index},{sigma:.6g},{ratio:.6g}," + ",".join(f"{weight:.6g}" for weight in weights))
    return "\n".join(lines)


def expert_report(step: int, weights: list[float], shown: str) -> str:
    """Names of the experts that ran at a step, strongest first."""
    order = sorted(zip(weights, CATEGORIES), reverse=True)
    ran = [f"{name} {weight:.3f}" for weight, name in order if weight > 0]
    return f"step {step}: {', '.join(ran) or 'no expert ran'}\nshown: {shown}"


SKIPPED = 20
"""Maximum number of skipped clips that are named."""
POINTS = 300
"""Maximum number of points per curve; longer runs are averaged over stretches of steps."""


def curves(training: PredictorTraining) -> list[figures.Panel]:
    """The log as plots. Curves of long runs are averaged."""
    rows = training.log.rows
    loss = [log_curve(rows, "loss", "training"), log_curve(rows, "val_loss", "held-out clips", dashed=True)]
    panels = [
        figures.Panel(
            title="loss (LaMo, eq 7)", x_label="step", curves=[one for one in loss if one], log=True
        )
    ]
    unexplained = log_curve(rows, "unexplained", "held-out clips")
    if unexplained:
        title = "share of the change that is not explained (1: knows nothing, 0: perfect)"
        panels.append(figures.Panel(title=title, x_label="step", curves=[unexplained]))
    return panels


def loss_panels(rows: Sequence[Mapping[str, float]], titles: Mapping[str, str]) -> list[figures.Panel]:
    """A panel for each loss of a log, with the held-out clips' beside it. titles: by the loss's column."""
    panels = []
    for column, title in titles.items():
        both = [
            log_curve(rows, column, "training"),
            log_curve(rows, f"val_{column}", "held-out clips", dashed=True),
        ]
        panels.append(
            figures.Panel(title=title, x_label="step", curves=[one for one in both if one], log=True)
        )
    return panels


def log_curve(
    rows: Sequence[Mapping[str, float]], column: str, label: str, dashed: bool = False
) -> figures.Curve | None:
    """A column of a log over the steps, averaged over stretches of long runs; None where it is empty."""
    found = [(row["step"], row[column]) for row in rows if column in row]
    if not found:
        return None
    table = [torch.tensor(part).mean(dim=0) for part in chunks(found, math.ceil(len(found) / POINTS))]
    return figures.Curve(
        label=label, x=[float(x) for x, _ in table], y=[float(y) for _, y in table], dashed=dashed
    )


def chunks(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def summary(training: PredictorTraining, kept_as: str, skipped: list[str]) -> str:
    """Summary for the info output."""
    from ...training.tasks.predictor_metrics import said

    task, kept = training.task, training.best_metrics()
    held = "no clip was held out, so nothing is known of new clips"
    if "unexplained" in kept:
        left = f"{kept['unexplained']:.3f}, at step {kept['kept_step']}, which is kept"
        held = f"unexplained change in held-out clips: {left}"
    rows = [row["loss"] for row in training.log.rows if "loss" in row]
    return "\n".join(
        [
            kept_as,
            f"{len(task.clips)} clips of {task.latent_space} latents, {len(task.pairs)} frame pairs",
            f"{training.step} steps in {training.loop.seconds:.0f} s, last loss {rows[-1]:.4f}"
            if rows
            else "no step was made",
            held,
            *said(kept),
            *skipped_lines(skipped),
        ]
    )


def skipped_lines(skipped: Sequence[str]) -> list[str]:
    """The first reasons why clips were skipped, under their number; [] where none was."""
    return (
        [f"{len(skipped)} clips were skipped:", *[f"  {why}" for why in skipped[:SKIPPED]]] if skipped else []
    )
