"""Features of a frozen encoder that an objective needs, and the names they are cached under."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from . import DEFAULT_SOURCE, READING, TOY_WEIGHTS

SAMPLED_BYTES = 1 << 20
ORACLE = "toy_oracle"
"""Name of the teacher that is no network: what the toy world itself knows of its clips
(`training.data.oracle`)."""


@dataclass(frozen=True, kw_only=True)
class TeacherNeed:
    """A teacher's features that an objective wants."""

    name: str
    source: str | None = None
    context: float = 0.0
    """Share of a window that a world model sees before it forecasts the rest; 0 asks for plain features."""
    window: int = 16
    """Frames of the window that slides over the clip, for a forecast."""

    @property
    def key(self) -> str:
        """Its name in `StepView.features`."""
        return f"{self.name}, {self.weights}" + (
            f", context {self.context:g} of {self.window}" if self.context else ""
        )

    @property
    def weights(self) -> str:
        """The source, or where the usual weights come from."""
        return self.source or DEFAULT_SOURCE.get(self.name, "default")


def cache_name(need: TeacherNeed) -> str:
    """Name that a need's features are cached under: the weights' content where they are on this disk, their
    name otherwise.
    """
    path = Path(need.source) if need.source else TOY_WEIGHTS / f"{need.name}.safetensors"
    named = f"{need.name}, {weights_name(path) or need.weights}, context {need.context:g}"
    if need.context:
        named += f", changes in windows of {need.window}"
    return named + (f", reading {READING[need.name]}" if need.name in READING else "")


def weights_name(path: Path) -> str | None:
    """The content of a weights file, or of the weights and the configuration in a folder; None where there is
    neither.
    """
    files = (
        [path] if path.is_file() else [*sorted(path.glob("*.safetensors")), *sorted(path.glob("config.json"))]
    )
    stats = [(file, file.stat()) for file in files]
    return "+".join(_content_of(file, stat.st_mtime_ns, stat.st_size) for file, stat in stats) or None


@lru_cache(maxsize=64)
def _content_of(path: Path, changed: int, size: int) -> str:
    """The sampled hash of a file, read once while it does not change: every batch asks for it."""
    digest = hashlib.blake2b(digest_size=16)
    sample_file(digest, path)
    return digest.hexdigest()


def sample_file(digest: hashlib.blake2b, path: Path, name: str = "") -> None:
    """Adds `name`, the length and the first and last MiB of a file to `digest`. Raises OSError.

    Whole files are not read: weights hold gigabytes, and folders of videos terabytes.
    """
    size = path.stat().st_size
    digest.update(os.fsencode(name) + f":{size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLED_BYTES))
        if size > SAMPLED_BYTES:
            file.seek(max(size - SAMPLED_BYTES, SAMPLED_BYTES))
            digest.update(file.read())


def read_file(digest: hashlib.blake2b, path: Path, name: str = "") -> None:
    """Adds `name`, the length and all of a file to `digest`: what `sample_file` adds where it has at most two
    MiB. Raises OSError."""
    digest.update(os.fsencode(name) + f":{path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        while part := file.read(SAMPLED_BYTES):
            digest.update(part)
