"""What guidance did, as a plot and as a table."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..methods.lamo import GuidanceTrace, TraceRow
from . import views

HINT = "switch on full_trace in LaMo Guidance to see the error after the nudge"


def panels(traces: dict[str, GuidanceTrace]) -> list[views.Panel]:
    """Motion error and size of the nudge over the sampler's steps, means over the batch, one set of curves per correction."""
    losses, ratios = [], []
    for name, trace in traces.items():
        prefix = f"{name}: " if len(traces) > 1 else ""
        losses.append(_curve(f"{prefix}before", trace, lambda row: row.loss_before))
        losses.append(_curve(f"{prefix}after", trace, lambda row: row.loss_after, dashed=True))
        ratios.append(_curve(f"{prefix}nudge", trace, lambda row: row.edit_ratio if row.active else None))
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
        views.Panel(title="motion error L_guide", curves=[curve for curve in losses if curve.x], log=True, note=hint, **frame),
        views.Panel(title="size of the nudge, |edit| / |x0|", curves=[curve for curve in ratios if curve.x], **frame),
    ]


def table(traces: dict[str, GuidanceTrace]) -> str:
    """The same numbers as comma-separated text, a line per evaluation of the model."""
    lines = ["correction,step,steps,sigma,active,loss_before,loss_after,edit_ratio"]
    for name, trace in traces.items():
        for row in trace.rows:
            numbers = [row.loss_before, row.loss_after, row.edit_ratio]
            values = ",".join("" if value is None else f"{float(value.mean()):.6g}" for value in numbers)
            lines.append(f"{name},{row.index},{row.count},{float(row.sigma.mean()):.6g},{int(row.active)},{values}")
    return "\n".join(lines)


def _curve(label: str, trace: GuidanceTrace, value: Callable[[TraceRow], Tensor | None], dashed: bool = False) -> views.Curve:
    points = [(x, value(row)) for x, row in zip(_places(trace), trace.rows)]
    known = [(x, float(y.mean())) for x, y in points if y is not None]
    return views.Curve(label=label, x=[x for x, _ in known], y=[y for _, y in known], dashed=dashed)


def _places(trace: GuidanceTrace) -> list[float]:
    """Where each row lies on the step axis: samplers that evaluate a step several times share its width among the evaluations."""
    indices = [row.index for row in trace.rows]
    return [index + indices[:n].count(index) / indices.count(index) for n, index in enumerate(indices)]
