"""What guidance did, as a plot and as a table."""

from __future__ import annotations

from ..methods.lamo import GuidanceTrace
from . import views


def panels(traces: dict[str, GuidanceTrace]) -> list[views.Panel]:
    """Motion error and size of the nudge over the sampler's steps, means over the batch, one curve per correction."""
    losses, ratios, spans = [], [], []
    for name, trace in traces.items():
        rows, prefix = trace.rows, f"{name}: " if len(traces) > 1 else ""
        place = _places(trace)
        active = [(x, row) for x, row in zip(place, rows) if row.active]
        after = [(x, row) for x, row in active if row.loss_after is not None]
        losses.append(views.Curve(label=f"{prefix}before", x=place, y=[float(row.loss_before.mean()) for row in rows]))
        if after:
            y = [float(row.loss_after.mean()) for _, row in after]
            losses.append(views.Curve(label=f"{prefix}after", x=[x for x, _ in after], y=y, dashed=True))
        ratios.append(
            views.Curve(label=f"{prefix}nudge", x=[x for x, _ in active], y=[float(row.edit_ratio.mean()) for _, row in active])
        )
        if active:
            spans.append((active[0][0] - 0.5, max(row.count for row in rows) - 0.5))
    note = (
        ""
        if any(trace.measure_after for trace in traces.values())
        else "switch on full_trace on LaMo Guidance to see the error after"
    )
    shaded = spans[0] if spans else None
    return [
        views.Panel(
            title="motion error L_guide (mean of the batch)", x_label="step", curves=losses, log=True, shaded=shaded, note=note
        ),
        views.Panel(title="size of the nudge, |edit| / |x0|", x_label="step", curves=ratios, shaded=shaded),
    ]


def _places(trace: GuidanceTrace) -> list[float]:
    """Where each row lies on the step axis: samplers that evaluate a step several times share its width among the evaluations."""
    indices = [row.index for row in trace.rows]
    return [index + indices[:n].count(index) / indices.count(index) for n, index in enumerate(indices)]


def table(traces: dict[str, GuidanceTrace]) -> str:
    """The same numbers as comma-separated text, a line per evaluation of the model."""
    lines = ["correction,step,steps,sigma,active,loss_before,loss_after,edit_ratio"]
    for name, trace in traces.items():
        for row in trace.rows:
            after = "" if row.loss_after is None else f"{float(row.loss_after.mean()):.6g}"
            lines.append(
                f"{name},{row.index},{row.count},{float(row.sigma.mean()):.6g},{int(row.active)},"
                f"{float(row.loss_before.mean()):.6g},{after},{float(row.edit_ratio.mean()):.6g}"
            )
    return "\n".join(lines)
