"""Our own measures of real videos, so that a table exists without any scorer.

`flicker` and `dynamic_degree` follow VBench's definitions (its temporal_flickering.py and dynamic_degree.py),
`motion` and the critics are the pack's. Measures are kept clip by clip in measures.jsonl and computed once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .benchmarks.base import Column, Reading, clip_score
from .errors import EvaluationError
from .files import append_lines, whole_lines
from .manifest import Manifest
from .video import read_frames

FILE = "measures.jsonl"
FLOW_FPS = 8
"""Frames per second that VBench looks at."""
FASTEST = 0.05
"""Share of the pixels, the fastest ones, whose mean flow counts."""
LIMIT = 6.0 / 256.0
"""Flow of a moving pixel between two frames, as a share of the shorter side."""
MOVING_PAIRS = 4.0 / 16.0
"""Pairs of frames that must move, as a share of the frames."""
FRAME_BY_FRAME = "frame by frame"
"""Part of the geometry measure's name: values that looked at whole clips at once are computed again."""
Measure = Callable[[np.ndarray, float], float]
"""Frames `T H W 3` uint8 and frames per second -> a number."""

COLUMNS = (
    Column(key="motion", title="motion", scale=100, digits=2),
    Column(key="dynamic", title="dynamic degree (RAFT)"),
    Column(key="flicker", title="temporal flicker", scale=100, digits=2),
    Column(key="surprise", title="surprise critic", scale=1, digits=3),
    Column(key="geometry", title="geometry critic", scale=1, digits=3),
)
"""Columns of the measures; those that were not computed are left out of the table."""


class Flow(Protocol):
    """encoders.raft.RaftFlow, or anything that finds flow."""

    identity: str

    def flow(self, video: Tensor, step: int, size: tuple[int, int]) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B 2 T-1 h w`, pixels of `size`."""
        ...


def flicker(frames: np.ndarray, fps: float) -> float:
    """(255 - mean absolute difference of consecutive frames) / 255: 1 for a clip that stands still."""
    if len(frames) < 2:
        return 1.0
    steps = [np.abs(a.astype(np.int16) - b).mean() for a, b in pairwise(frames)]
    return float((255 - np.mean(steps)) / 255)


def motion(frames: np.ndarray, fps: float) -> float:
    """The critics' motion of pixels: mean change of the busiest pixels within a quarter of a second."""
    from ..methods.critics import pixel_motion

    return float(pixel_motion(as_clip(frames), fps))


def dynamic_degree(frames: np.ndarray, fps: float, raft: Flow) -> float:
    """1 if the clip moves, 0 if not: at 8 frames a second, enough pairs in which the fastest 5 % exceed 6/256
    of the side.
    """
    picked = frames[:: max(1, round(fps / FLOW_FPS))]
    if len(picked) < 2:
        return 0.0
    size = flow_size(*picked.shape[1:3])
    limit, moving = LIMIT * min(size), 0
    needed = round(MOVING_PAIRS * len(picked))
    for before, after in pairwise(picked):
        flow = raft.flow(as_clip(np.stack([before, after])), step=1, size=size)[0, :, 0]
        speed = flow.square().sum(0).sqrt().flatten()
        moving += bool(speed.topk(max(1, int(FASTEST * len(speed)))).values.mean() > limit)
    return float(moving >= needed)


def flow_size(height: int, width: int) -> tuple[int, int]:
    """A size that RAFT takes: sides are multiples of 8 and at least 128, the aspect is kept nearly."""
    scale = max(1.0, 128 / min(height, width))
    return max(128, round(height * scale / 8) * 8), max(128, round(width * scale / 8) * 8)


def as_clip(frames: np.ndarray) -> Tensor:
    """`T H W 3` uint8 -> `1 3 T H W` in [0, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255


def critic_measure(critic: Any) -> Measure:
    """A critic's gated score as a measure; nan for a clip that it cannot judge."""
    from ..methods.critics import CriticError

    def judge(frames: np.ndarray, fps: float) -> float:
        try:
            return float(critic.judge(as_clip(frames), fps).score)
        except CriticError:
            return math.nan

    return judge


def measures_for(
    *, raft: str = "", world_model: str = "", encoder: str = "", device: str = "cpu"
) -> dict[str, tuple[Measure, str]]:
    """Measures by column, each with the identity of its network; networks only where the user named them.

    raft: torchvision's name or a safetensors file. world_model, encoder: "KIND" or "KIND:SOURCE" of a video
    encoder, for the surprise and the geometry critic ("toy_vjepa2" ships). Raises EvaluationError if one
    cannot be loaded.
    """
    from ..encoders import TeacherError, load_raft, load_teacher
    from ..encoders.critics import critic_through
    from ..methods.critics import CausalSurprise

    def teacher(text: str) -> Any:
        kind, _, source = text.partition(":")
        return load_teacher(kind, source or None, device)

    found: dict[str, tuple[Measure, str]] = {"motion": (motion, "1"), "flicker": (flicker, "1")}
    try:
        if raft:
            flow = load_raft(raft, device)
            found["dynamic"] = (lambda frames, fps: dynamic_degree(frames, fps, flow), flow.identity)
        if world_model:
            model = teacher(world_model)
            if not hasattr(model, "predicted"):
                raise EvaluationError(
                    f"{world_model} predicts nothing; the surprise critic needs vjepa2 or toy_vjepa2."
                )
            found["surprise"] = (critic_measure(CausalSurprise(model)), model.identity)
        if encoder:
            model = teacher(encoder)
            geometry = critic_measure(critic_through(model, "geometry"))
            found["geometry"] = (geometry, f"{model.identity}, {FRAME_BY_FRAME}")
    except (TeacherError, ImportError) as error:
        raise EvaluationError(str(error)) from error
    return found


def measure(
    manifest: Manifest,
    measures: Mapping[str, tuple[Measure, str]],
    say: Callable[[float, str], None] = lambda share, text: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Computes what measures.jsonl does not hold yet. Stops after a clip when `stopping()` is true."""
    path = manifest.folder / FILE
    known = load(path)
    records = list(manifest.records.values())
    for number, record in enumerate(records):
        todo = {name: entry for name, entry in measures.items() if (record.job, name, entry[1]) not in known}
        if not todo:
            continue
        if stopping():
            return
        say(number / len(records), f"{record.arm}, prompt {record.prompt_id}, run {record.run}")
        frames = read_frames(manifest.file_of(record))
        lines = [
            {"job": record.job, "measure": name, "by": by, "value": compute(frames, record.fps)}
            for name, (compute, by) in todo.items()
        ]
        append(path, lines)


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends JSON lines in one write; nan is written as null."""
    text = "".join(
        json.dumps({**line, "value": None if math.isnan(line["value"]) else line["value"]}) + "\n"
        for line in lines
    )
    append_lines(path, text)


def load(path: Path) -> dict[tuple[str, str, str], float]:
    """Value by job, measure and what it depends on; a line that a crash cut off is removed from the file."""
    found = {}
    for line in whole_lines(path):
        try:
            entry = json.loads(line)
            value = entry["value"]
            found[entry["job"], entry["measure"], entry["by"]] = math.nan if value is None else float(value)
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path} holds a line that is no measure ({error!r:.80}); delete the file."
            ) from error
    return found


def read_measures(manifest: Manifest) -> Reading:
    """The measures of all clips that have some; of a measure with several networks, the last one computed
    counts.
    """
    latest: dict[str, dict[str, float]] = {}
    for (job, name, _), value in load(manifest.folder / FILE).items():
        latest.setdefault(job, {})[name] = value
    present = {name for values in latest.values() for name in values}
    reading = Reading(columns=tuple(column for column in COLUMNS if column.key in present))
    for record in manifest.records.values():
        if record.job in latest:
            reading.clips.append(clip_score(record, latest[record.job]))
    return reading
