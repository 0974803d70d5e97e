"""Tensors of a safetensors file that are read one by one, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of number formats."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that still lies in its file: shape and number format are known, values are not read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for a format that torch's safetensors reader alone knows."""
    ranges: tuple[tuple[int, int], ...] | None = None
    """Ranges of the stored tensor's rows that this one has, one under the other; None for all."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values, in memory of their own; `dtype` left out, as stored."""
        import safetensors

        # Opened per tensor: pages of a file that stays mapped count as memory of this process.
        with safetensors.safe_open(self.path, framework="pt") as file:
            if self.ranges is None:
                value = file.get_tensor(self.name)
            else:
                stored = file.get_slice(self.name)
                value = torch.cat([stored[start:stop] for start, stop in self.ranges])
            return value.to(value.dtype if dtype is None else dtype, copy=True)

    def rows(self, ranges: tuple[tuple[int, int], ...]) -> StoredTensor:
        """Ranges of its rows one under the other, unread."""
        high = sum(stop - start for start, stop in ranges)
        return replace(self, ranges=ranges, shape=(high, *self.shape[1:]))

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.read().tolist()


def stored_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; only the header is read. Raises
    TrainingError where it is not readable."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            found = {
                name: StoredTensor(
                    path=path, name=name, shape=tuple(part.get_shape()), dtype=DTYPES.get(part.get_dtype())
                )
                for name, part in slices.items()
            }
            return found, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise TrainingError(f"{path.name} is not a readable safetensors file ({error}).") from error


def fill(
    model: nn.Module, state: Mapping[str, StoredTensor], path: Path, dtype: torch.dtype, keep: set[str]
) -> None:
    """Gives a model on the meta device its weights, tensor by tensor, in `dtype`; modules named in `keep` get
    float32.

    Peak memory is that of the filled model and one tensor. Raises TrainingError where names or shapes differ.
    """
    shapes = {name: torch.empty(value.shape, device="meta") for name, value in state.items()}
    try:  # before anything is read
        model.load_state_dict(shapes, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path.name} does not fit {type(model).__name__}: {reason}") from error
    for name, value in state.items():
        wanted = torch.float32 if keep & set(name.split(".")) else dtype
        floating = value.dtype is None or value.dtype.is_floating_point
        model.load_state_dict({name: value.read(wanted if floating else None)}, strict=False, assign=True)
