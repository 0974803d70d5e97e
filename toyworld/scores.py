"""Scores of a clip: law score (does it keep the law), adherence (is what the prompt asked for there), dynamic
degree (how much moves), permanence (do things stay what they are).

All read pixels alone. Calibration constants come from
`benchmarks/toyworld/scores.py`, which also prints the validation table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .canvas import COLOURS, SIZE, UNITS, moments
from .data import world_named
from .lasting import permanence as things_stay
from .prompts import Request, understand
from .worlds import World

CALIBRATION: dict[str, tuple[float, float]] = {
    "rigid_body": (0.01, 0.801),
    "elastic": (0.01, 0.608),
    "fluid": (0.023, 0.501),
    "compressible_flow": (0.176, 0.622),
    "collision": (0.029, 0.582),
    "phase_change": (0.007, 0.703),
    "thermal": (0.245, 0.555),
    "optical": (0.02, 0.628),
}
"""Median residual of real clips and of the same clips with frames shuffled, per world: law score 1 and 0."""
REAL_MOTION: dict[str, float] = {
    "rigid_body": 236.6,
    "elastic": 291.1,
    "fluid": 113.6,
    "compressible_flow": 53.0,
    "collision": 155.1,
    "phase_change": 77.7,
    "thermal": 13.6,
    "optical": 286.0,
}
"""`motion` of real clips, per world: dynamic degree 1."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a batch of clips, each a float32 tensor `B`."""

    law: Tensor
    """0 (like shuffled frames) .. 1 (like real clips)."""
    adherence: Tensor
    """0 .. 1."""
    dynamic_degree: Tensor
    """0 (still) and up; 1 = as much change as real clips of that world."""
    permanence: Tensor
    """0 .. 1 (things stay as many, as large and of the colours that they are)."""
    residual: Tensor
    """The residual behind the law score, 0 (the law holds) .. 1: it still differs where that is 0 for all."""


def score(clips: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Law score per clip, `B` float32 in [0,1]: 1 for real clips, 0 for the same clips with their frames
    shuffled.

    clips (B,3,T,H,W) in [0,1]; worlds: one name for all clips, or one per clip. Raises ValueError for
    another shape or world, and for NaN.
    """
    return bounded(law_residual(clips, worlds), worlds)


def law_residual(clips: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Each world's own residual, `B` float32 in [0, 1], 0 where the law holds: what `score` scales and
    bounds. Raises as `score` does."""
    found = [world.residual(frames, world.unmix(frames)) for frames, world in _pairs(clips, worlds)]
    return torch.tensor(np.array(found), dtype=torch.float32)


def bounded(residuals: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Law scores `B` of residuals `B`."""
    names = [worlds] * len(residuals) if isinstance(worlds, str) else worlds
    best, worst = torch.tensor([CALIBRATION[name] for name in names]).reshape(-1, 2).unbind(1)
    return ((worst - residuals) / (worst - best)).clamp(0, 1)


def permanence(clips: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Permanence of number, mass and colour of the things over time, apart from motion, `B` float32 in [0,
    1]. Raises as `score` does."""
    found = [things_stay(world.unmix(frames), world) for frames, world in _pairs(clips, worlds)]
    return torch.tensor(found, dtype=torch.float32)


def dynamic_degree(clips: Tensor, worlds: str | Sequence[str]) -> Tensor:
    """Change of the moving things over four frames, relative to that of real clips, `B` float32. Raises as
    `score` does.

    Things, not pixels: the faint unrest of a decoded background is not motion. Four frames are one latent
    frame of the toy VAE, whose flicker inside a latent frame is not motion either.
    """
    found = [motion(world.unmix(frames)) / REAL_MOTION[world.name] for frames, world in _pairs(clips, worlds)]
    return torch.tensor(np.array(found), dtype=torch.float32)


def motion(alphas: np.ndarray) -> float:
    """Mean over time of how much opacity (T, colours, H, W) changes over four frames, px^2."""
    return float(np.abs(alphas[4:] - alphas[:-4]).sum((1, 2, 3)).mean())


def adherence(clips: Tensor, prompts: Sequence[str]) -> Tensor:
    """Share of each prompt's content that is there, `B` float32 in [0,1]: the world's scenery x the things
    of the right colours and size.

    A prompt that names no toy world counts as adhered to by nothing (0). Raises ValueError where shapes or
    lengths do not fit.
    """
    if len(prompts) != len(clips):
        raise ValueError(f"{len(prompts)} prompts were given for {len(clips)} clips; give one each.")
    found = []
    for clip, prompt in zip(clips, prompts):
        request = understand(prompt)
        if request.world is None:
            found.append(0.0)
            continue
        ((frames, world),) = _pairs(clip[None], request.world)
        alphas = world.unmix(frames)
        found.append(
            _scenery(frames, world) * _things(alphas, world, request.colours) * _heading(alphas, request)
        )
    return torch.tensor(found, dtype=torch.float32)


def evaluate(clips: Tensor, worlds: str | Sequence[str], prompts: Sequence[str]) -> Scores:
    """All scores of a batch."""
    residuals = law_residual(clips, worlds)
    return Scores(
        law=bounded(residuals, worlds),
        adherence=adherence(clips, prompts),
        dynamic_degree=dynamic_degree(clips, worlds),
        permanence=permanence(clips, worlds),
        residual=residuals,
    )


def _pairs(clips: Tensor, worlds: str | Sequence[str]) -> list[tuple[np.ndarray, World]]:
    """(frames (T,3,H,W), world) per clip; checks shapes."""
    if (
        clips.ndim != 5
        or clips.shape[1] != 3
        or tuple(clips.shape[3:]) != (SIZE, SIZE)
        or clips.shape[2] < 12
    ):
        raise ValueError(
            f"clips are {tuple(clips.shape)}; toy clips are (B, 3, T, {SIZE}, {SIZE}) with T of 12 or "
            f"more frames."
        )
    names = [worlds] * len(clips) if isinstance(worlds, str) else list(worlds)
    if len(names) != len(clips):
        raise ValueError(f"{len(names)} worlds were named for {len(clips)} clips; name one, or one each.")
    if not torch.isfinite(clips).all():
        raise ValueError(
            "the clips hold NaN or infinite values, so they have no score: look at what made them."
        )
    frames = clips.detach().float().cpu().movedim(2, 1).numpy()
    return [(clip, world_named(name)) for clip, name in zip(frames, names)]


def _scenery(frames: np.ndarray, world: World) -> float:
    """1 where at least 80 % of the clip's temporal median is this world's background, 0 at 50 % or less."""
    still = np.median(frames, axis=0)
    share = (np.abs(still - world.background).max(0) < 0.1).mean()
    return float(np.clip((share - 0.5) / 0.3, 0, 1))


def _things(alphas: np.ndarray, world: World, colours: Sequence[str]) -> float:
    """Share of frames in which each asked thing has a plausible mass, halved for every colour that is there
    unasked.
    """
    low, high = world.mass_range
    mass = alphas.sum((-2, -1))
    asked = [COLOURS.index(colour) for colour in colours]
    unasked = [
        index for index in range(len(COLOURS)) if index not in asked and mass[:, index].mean() > 0.35 * low
    ]
    if not asked:
        return 0.0 if not unasked else 1.0
    # a fading or leaving thing may lose mass: half the smallest and 1.5 times the largest are still plausible
    there = [((mass[:, index] > 0.5 * low) & (mass[:, index] < 1.5 * high)).mean() for index in asked]
    return float(np.mean(there)) * 0.5 ** len(unasked)


def _heading(alphas: np.ndarray, request: Request) -> float:
    """0.5 where the things plainly move (thrown balls, drifting gas) or start (other worlds) on the wrong
    side, else 1.

    Only left, right and up are judged. No score judges the sense of a turn or where a spring starts: the law
    holds for both.
    """
    if request.direction not in ("left", "right", "up"):
        return 1.0
    mass, x, y = moments(alphas.sum(1))
    there = np.flatnonzero(mass > 0.25 * max(mass.max(), 1e-6))
    if there.size < 4:
        return 1.0
    first, last = there[: there.size // 3], there[-(there.size // 3) :]
    if request.world in ("rigid_body", "compressible_flow"):
        dx, dy = x[last].mean() - x[first].mean(), y[last].mean() - y[first].mean()
        along = {"left": -dx, "right": dx, "up": -dy}[request.direction]
    else:
        along = {"left": UNITS / 2 - x[first].mean(), "right": x[first].mean() - UNITS / 2, "up": 0.0}[
            request.direction
        ]
    return 1.0 if along > -2 else 0.5
