"""The one file format an artist handles: safetensors whose metadata says what the file is and what it
fits.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

Span = tuple[int, int]
"""Offset and size, in bytes, of a file that is a member of a tar."""
METADATA_KEY = "latent_physics"
FORMAT_VERSION = 1
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""safetensors' names of the number formats."""


class WeightsError(ValueError):
    """A weights file is missing, damaged, of another kind, or does not fit.

    The message is one sentence for the user.
    """


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Metadata of a weights file."""

    kind: str
    """"motion_predictor", "pila_adapter", ..."""
    latent_space: str
    """The latent space it was trained on: "wan2.1", "cogvideox", "toy", ..."""
    config: dict[str, Any]
    """Constructor arguments of the module (channels, cond_dim, width, ...), plus what use needs (lag)."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Training of the weights: steps, data, seed, learning rate, final losses."""
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raises ValueError where a field is not of its type: metadata comes from outside."""
        for name, kind in {
            "kind": str,
            "latent_space": str,
            "config": dict,
            "recipe": dict,
            "version": int,
        }.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}, no {kind.__name__}")


def save_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor], info: WeightsInfo) -> None:
    """Writes `state` and `info` to a temporary name beside `path`, then renames: `path` is never
    half-written.

    Raises OSError (disk full, no permission) and leaves an existing file at `path` as it was.
    """
    write_tensors(path, state, info)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    info: WeightsInfo,
    whole: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> None:
    """`save_weights`, with one tensor at a time on the CPU: `whole(tensor)` brings it there when its turn has
    come.

    `tensors` may lie on a GPU, or in shards that `whole` gathers. Raises OSError; an older file at `path` is
    intact then.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", METADATA_KEY: json.dumps(asdict(info), sort_keys=True)}
    }
    end = 0
    # The largest elements first, as safetensors wants it: every tensor then begins at a multiple of its
    # element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[Any]:
        yield struct.pack("<Q", len(text)) + text
        for name in names:
            value = whole(tensors[name].detach()).contiguous()
            yield value.reshape(-1).view(torch.uint8).numpy()

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _replace(Path(path), chunks())


def write_atomically(path: str | os.PathLike[str], payload: bytes | Iterable[bytes]) -> None:
    """Writes bytes, or pieces of them one after the other, to `path` all or nothing. Raises OSError; the
    temporary file is removed then."""
    _replace(Path(path), [payload] if isinstance(payload, bytes) else payload)


def _replace(path: Path, chunks: Iterable[Any]) -> None:
    """Writes to a temporary name, makes sure that the disk has it, and renames."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_info(path: str | os.PathLike[str], span: Span | None = None) -> WeightsInfo:
    """Reads the metadata alone (no tensor is loaded). `span`: of a member of an uncompressed tar, whose
    `path` is the tar's and the member's name.

    Raises WeightsError where the file is missing, is no safetensors file (a pickle is never opened) or not
    written by this pack.
    """
    path = Path(path)
    if not _file_of(path, span).is_file():
        raise WeightsError(f"{_file_of(path, span).name} does not exist.")
    try:
        metadata = _metadata(path, span)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path.name} is not a readable safetensors file ({error}); download or export it again as "
            f".safetensors."
        ) from error
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path.name} carries no latent_physics metadata; it was not written by this pack's training "
            f"scripts."
        )
    try:
        info = WeightsInfo(**json.loads(metadata[METADATA_KEY]))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path.name} has latent_physics metadata that cannot be read ({error})."
        ) from error
    if info.version > FORMAT_VERSION:
        raise WeightsError(
            f"{path.name} has format version {info.version}; this pack reads up to {FORMAT_VERSION}: "
            f"update it."
        )
    return info


def load_weights(
    path: str | os.PathLike[str], kind: str, span: Span | None = None
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Tensors (on the CPU) and metadata of a file of `kind`, or of a member of a tar as for `read_info`.

    Raises WeightsError as `read_info` does, and for another kind.
    """
    info = read_info(path, span)
    if info.kind != kind:
        raise WeightsError(f"{Path(path).name} holds a {info.kind}, not a {kind}.")
    if span is None:
        return safetensors.torch.load_file(path), info
    try:
        return safetensors.torch.load(member_bytes(Path(path), span)), info
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{Path(path).name} of {Path(path).parent.name} is damaged ({error}).") from error


def member_bytes(path: Path, span: Span) -> bytes:
    """All of a member of a tar. Raises OSError."""
    with open(_file_of(path, span), "rb") as file:
        file.seek(span[0])
        return file.read(span[1])


def _file_of(path: Path, span: Span | None) -> Path:
    """The file on disk: a member's path is its tar's and its name."""
    return path if span is None else path.parent


def _metadata(path: Path, span: Span | None) -> Mapping[str, str]:
    """safetensors' own metadata. Raises SafetensorError, OSError or ValueError."""
    if span is None:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    with open(_file_of(path, span), "rb") as file:
        file.seek(span[0])
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > span[1] - 8:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    return header.get("__metadata__", {}) if isinstance(header, dict) else {}
