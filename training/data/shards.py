"""Shards: cached clips in a few uncompressed tars, in webdataset's layout, instead of a file each.

A member is `KEY.safetensors`, the same bytes as the clip's file, and is read where it lies; which clip a
micro-batch takes goes by the clips' names as in a folder of files, so that a run goes on with either. A dot
within a name is written %2E, as webdataset's key ends at the first one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from ...methods.weights import Span
from ..console import TrainingError
from .clip import DatasetError

SUFFIX = ".safetensors"
PACK_AGAIN = "pack the clips again with latent-physics pack."
END = 2 * tarfile.BLOCKSIZE
"""Zeros at the end of every tar: without them it was cut off."""


def member_name(name: str) -> str:
    """Name of a clip's file -> that of its member."""
    return name.removesuffix(SUFFIX).replace(".", "%2E") + SUFFIX


def clip_name(member: str) -> str:
    """The clip's file name of a member's, with or without folders."""
    return Path(member).name.replace("%2E", ".")


def files_of(folder: Path) -> list[tuple[Path, Span | None]]:
    """The safetensors files of a folder and of the shards in it, by name: each with its place within the
    shard, in which case its path is the shard's and its name. Raises DatasetError where a shard cannot be
    read, or a clip is there twice."""
    found: list[tuple[Path, Span | None]] = [(path, None) for path in folder.glob(f"*{SUFFIX}")]
    for shard in sorted(folder.glob("*.tar")):
        found += [(shard / name, span) for name, span in members(shard)]
    found.sort(key=lambda file: file[0].name)
    for (path, _), (following, _) in pairwise(found):
        if path.name == following.name:
            raise DatasetError(
                f"{path.name} is in {path.parent.name} and in {following.parent.name}; keep the files or their "
                f"shards."
            )
    return found


def members(shard: Path) -> Iterator[tuple[str, Span]]:
    """Clips' names in a tar, each with its offset and size. Raises DatasetError where it is no whole,
    uncompressed tar, or holds no clip."""
    count = 0
    try:
        with open(shard, "rb") as file:
            size = shard.stat().st_size
            file.seek(max(0, size - END))
            if size % tarfile.BLOCKSIZE or file.read(END).strip(b"\0"):
                raise tarfile.ReadError("its end is missing")
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and member.name.endswith(SUFFIX):
                    count += 1
                    yield clip_name(member.name), (member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DatasetError(
            f"{shard.name} is no readable tar of cached clips ({error}); {PACK_AGAIN}"
        ) from error
    if not count:
        raise DatasetError(f"{shard.name} holds no cached clip; {PACK_AGAIN}")


def check_no_shards(folder: Path) -> None:
    """Raises TrainingError for a folder of shards: they are packed from another one, into which is cached."""
    if shard := next(iter(sorted(folder.glob("*.tar"))), None):
        raise TrainingError(
            f"{folder} holds shards ({shard.name}); cache into the folder that they were packed from."
        )
