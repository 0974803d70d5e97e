"""Features of teachers on disk, one safetensors file per clip and teacher, found by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...methods.weights import WeightsError, WeightsInfo, load_weights, save_weights

KIND = "teacher_features"


class FeatureCache:
    """A folder of features. A file is found by a hash of the teacher's identity and the clip's own key (its
    content hash and cut)."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, teacher: str, clip: str) -> Path:
        """Path of the features of `clip` by `teacher` (an identity string)."""
        digest = hashlib.blake2b(f"{teacher}\n{clip}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.safetensors"

    def has(self, teacher: str, clip: str) -> bool:
        """Whether they are there."""
        return self.path(teacher, clip).is_file()

    def write(self, teacher: str, clip: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors in half precision, except those whose name starts with "exact_". Raises OSError."""
        stored = {
            key: value if key.startswith("exact_") else value.to(torch.float16)
            for key, value in tensors.items()
        }
        info = WeightsInfo(kind=KIND, latent_space="pixels", config={"teacher": teacher, "clip": clip})
        save_weights(self.path(teacher, clip), stored, info)

    def read(self, teacher: str, clip: str) -> dict[str, Tensor]:
        """Tensors in float32. Raises WeightsError where they are missing or damaged (a damaged file is
        removed, to be made again)."""
        path = self.path(teacher, clip)
        try:
            tensors, _ = load_weights(path, KIND)
        except WeightsError:
            path.unlink(missing_ok=True)
            raise
        return {key: value.float() for key, value in tensors.items()}
