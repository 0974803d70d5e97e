"""Teachers: frozen video encoders whose features a generator is aligned with, and optical flow. Their
features are cached on disk.

load_teacher("videomae")                                    VideoMAE v2 B from the hub, the papers' teacher
load_teacher("videomae", "MCG-NJU/videomae-base")           VideoMAE v1, or any other folder or hub id
load_teacher("videomae", "path/to/videomae_v2_b.safetensors")   VideoMAE v2 in its authors' key names
load_teacher("vjepa2", "facebook/vjepa2-vitl-fpc64-256")
load_teacher("toy_videomae"), load_teacher("toy_vjepa2")    the toy world's (`latent-physics toy-teachers`)
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .base import Teacher, TeacherError
from .raft import RaftFlow, load_raft
from .videomae import VideoMAETeacher
from .vjepa import VJEPATeacher

__all__ = [
    "NAMES",
    "RaftFlow",
    "Teacher",
    "TeacherError",
    "VJEPATeacher",
    "VideoMAETeacher",
    "load_raft",
    "load_teacher",
]

NAMES = ("videomae", "vjepa2", "toy_videomae", "toy_vjepa2")
DEFAULT_SOURCE = {"videomae": "OpenGVLab/VideoMAEv2-Base", "vjepa2": "facebook/vjepa2-vitl-fpc64-256"}
READING = {"videomae": 2}
"""Version of a teacher's reading of clips: features that were cached by another reading are made again. 2:
the raw tokens of the last block, of whole patches, with positions resized as VideoREPA resizes them."""
TOY_WEIGHTS = Path(__file__).resolve().parents[1] / "toyworld" / "weights"


def load_teacher(
    name: str, source: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
) -> Teacher:
    """Loads a frozen teacher. `source`: hub id, transformers folder or safetensors file; None for the usual
    one.

    Raises TeacherError, in one sentence, for an unknown name or a source that cannot be loaded.
    """
    if name not in NAMES:
        raise TeacherError(f"teacher {name!r} is unknown; choose one of {', '.join(NAMES)}.")
    kind = VideoMAETeacher if "videomae" in name else VJEPATeacher
    if name.startswith("toy_"):
        return kind.from_weights(source or TOY_WEIGHTS / f"{name}.safetensors", device)
    return kind.from_source(str(source or DEFAULT_SOURCE[name]), device)
