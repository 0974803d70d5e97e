"""Which features of a frozen encoder an objective needs, and the names they are cached under."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from . import TOY_WEIGHTS

SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TeacherNeed:
    """Which teacher's features an objective wants."""

    name: str
    source: str | None = None
    context: float = 0.0
    """Share of the feature frames a world model sees before it predicts the rest; 0 asks for plain features."""

    @property
    def key(self) -> str:
        """Its name in `StepView.features` and in the cache."""
        parts = [self.name, self.source or "default"] + ([f"context {self.context:g}"] if self.context else [])
        return ", ".join(parts)


def seen_of(frames: int, share: float) -> int:
    """Feature frames a world model sees of `frames`: at least one, and at least two left to predict."""
    return max(1, min(frames - 2, round(frames * share)))


def cache_name(need: TeacherNeed) -> str:
    """What a need's features are cached under: the weights' content where they are on this disk, their name otherwise."""
    path = Path(need.source) if need.source else TOY_WEIGHTS / f"{need.name}.safetensors"
    return f"{need.name}, {weights_name(path) or need.source or 'default'}, context {need.context:g}"


def weights_name(path: Path) -> str | None:
    """The content of a weights file, or of the weights and the configuration in a folder; None where there is neither."""
    files = [path] if path.is_file() else [*sorted(path.glob("*.safetensors")), *sorted(path.glob("config.json"))]
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
    digest.update(f"{name}:{size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLED_BYTES))
        if size > SAMPLED_BYTES:
            file.seek(max(size - SAMPLED_BYTES, SAMPLED_BYTES))
            digest.update(file.read())
