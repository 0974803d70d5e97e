"""Judgements and rankings: curves over time, heat over a clip, the table of candidates as a picture and as
JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...methods.critics import Judgement
from . import figures, points

COLUMNS = ("rank", "seed", "score", "plausibility", "gate", "motion")
"""Columns of a candidate's row, in this order; the critic's parts follow."""
WINNER, DROPPED = "#d7f0d7", "#eeeeee"


def curve_panel(judgement: Judgement, name: str) -> figures.Panel:
    """Implausibility over time, a line per clip."""
    times = judgement.times.tolist()
    lines = [
        figures.Curve(label=f"clip {number} (score {float(score):.3f})", x=times, y=row.tolist())
        for number, (row, score) in enumerate(zip(judgement.curve, judgement.score), start=1)
    ]
    return figures.Panel(title=f"{name}: implausibility, lower is better", x_label="seconds", curves=lines)


def judged_overlay(
    images: Tensor, judgement: Judgement, fps: float, opacity: float, covered: tuple[int, int]
) -> Tensor:
    """Clips of images `N H W C`, one after another, under their implausibility; a clip's hottest place is its
    brightest.

    covered: height and width, from the upper left corner, of the part of an image that the maps stand for.
    """
    heat = figures.unit_range(judgement.maps)
    clips = images.reshape(len(heat), -1, *images.shape[1:])
    moments = torch.arange(clips.shape[1]) / fps
    index = (torch.searchsorted(judgement.map_times.contiguous(), moments + 1e-6) - 1).clamp(min=0).tolist()
    return torch.cat(
        [points.under_heat(clip, maps, index, opacity, covered) for clip, maps in zip(clips, heat)]
    )


def judgement_rows(judgement: Judgement) -> list[dict[str, Any]]:
    """One row a clip: score, plausibility, gate, motion, implausibility, and the critic's parts."""
    columns = {
        name: getattr(judgement, name)
        for name in ("score", "plausibility", "gate", "motion", "implausibility")
    }
    numbers = {name: [round(value, 6) for value in column.tolist()] for name, column in columns.items()}
    parts = {name: [round(value, 6) for value in column.tolist()] for name, column in judgement.parts.items()}
    return [
        {
            **{name: column[row] for name, column in numbers.items()},
            "parts": {name: column[row] for name, column in parts.items()},
        }
        for row in range(len(judgement.score))
    ]


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def ranking_table(rows: Sequence[Mapping[str, Any]], title: str) -> Tensor:
    """Candidates, best first, as an IMAGE `(1, H, W, 3)`.

    A row has COLUMNS, "parts", and "dropped_at" where it was dropped.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = list(rows[0]["parts"])
    dropped = any(row.get("dropped_at") for row in rows)
    header = [*COLUMNS, *parts, *(["dropped at step"] if dropped else [])]
    body = [
        [
            *(_cell(row[name]) for name in COLUMNS),
            *(_cell(row["parts"].get(name, "")) for name in parts),
            *([str(row.get("dropped_at") or "")] if dropped else []),
        ]
        for row in rows
    ]
    colours = [[DROPPED if row.get("dropped_at") else "white"] * len(header) for row in rows]
    colours[0] = [WINNER] * len(header)
    figure = Figure(figsize=(1.15 * len(header), 0.32 * (len(rows) + 1) + 0.7), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96 - 0.4 / figure.get_figheight()))
    axes.axis("off")
    axes.table(cellText=body, colLabels=header, cellColours=colours, loc="upper center", bbox=(0, 0, 1, 1))
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255
    return torch.from_numpy(pixels.copy())[None]


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
