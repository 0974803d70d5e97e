"""Critics (methods/critics) with the frozen networks that they look through, by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..methods.critics import CausalSurprise, Critic, CriticError, MotionConsistency, TrajectoryGeometry
from .base import Teacher
from .images import FrameByFrame, ImageEncoder
from .vjepa import VJEPATeacher

METHODS = {
    "surprise": "causal surprise of a world model (V-JEPA 2)",
    "geometry": "trajectory geometry of an encoder's features (DINOv2, DINOv3, VideoMAE, V-JEPA 2)",
    "motion": "motion consistency under a LaMo predictor, on latents",
}
"""Critics by name, as nodes, benchmarks and rewards call them."""


def critic_through(encoder: Teacher, method: str | None = None, **settings: Any) -> Critic:
    """A critic that looks through a loaded encoder. method: "surprise" or "geometry"; None is what the
    encoder is best for.

    settings: of CausalSurprise or TrajectoryGeometry. Raises CriticError where the encoder cannot serve the
    method.
    """
    predicts = isinstance(encoder, VJEPATeacher)
    method = method or ("surprise" if predicts else "geometry")
    if method == "surprise" and not predicts:
        raise CriticError(
            f"causal surprise needs a world model that predicts (V-JEPA 2), but {encoder.identity} does not."
        )
    if method not in ("surprise", "geometry"):
        raise CriticError(
            f"the critic {method!r} does not look through an encoder; choose surprise or geometry."
        )
    if method == "surprise":
        return CausalSurprise(encoder, **settings)
    return TrajectoryGeometry(encoder if encoder.patch[0] == 1 else FrameByFrame(encoder), **settings)


def load_critic(
    method: str, source: str | os.PathLike[str], device: str | torch.device = "cpu", **settings: Any
) -> Critic:
    """A critic from a name of METHODS and a source, frozen, on `device`.

    source: a name of `load_teacher` ("toy_vjepa2", "vjepa2", ...), a transformers folder of an image encoder,
    or the file of a
    motion predictor. Raises CriticError, TeacherError or WeightsError (all ValueError), in one sentence.
    """
    from . import NAMES, load_teacher

    if method not in METHODS:
        raise CriticError(f"there is no critic {method!r}; choose one of {', '.join(METHODS)}.")
    if method == "motion":
        from ..methods.lamo import load_predictor

        predictor, info = load_predictor(source)
        return MotionConsistency(predictor.to(device), **{"lag": info.config["lag"], **settings})
    if str(source) in NAMES:
        return critic_through(load_teacher(str(source), device=device), method, **settings)
    if method == "surprise":
        return critic_through(VJEPATeacher.from_source(str(source), device), method, **settings)
    return critic_through(ImageEncoder.from_source(str(Path(source)), device), method, **settings)
