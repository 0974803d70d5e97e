"""`latent-physics pack`: cached clips into shards."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...methods.weights import member_bytes, write_atomically
from ..console import ProgressLine, StopRequest, TrainingError, remove_leftovers, saving
from ..settings import Count, check
from .clip import Entry
from .folder import ClipFolder
from .shards import END, member_name


@dataclass(kw_only=True)
class PackConfig:
    """Packs a folder of cached clips into webdataset shards: a few large files instead of many small ones."""

    data: Path
    """Folder that `latent-physics cache` made."""
    out: Path
    """Folder for the shards, clips-000000.tar and so on, which every command takes as its `data`."""
    clips: Count = 1000
    """Clips in a shard."""


@dataclass(kw_only=True)
class Packed:
    """Result of `pack`."""

    clips: int
    shards: list[Path] = field(default_factory=list)
    stopped: bool = False


def pack(config: PackConfig, stop: StopRequest | None = None, progress: ProgressLine | None = None) -> Packed:
    """Writes the shards, by the clips' names; the same clips give the same bytes. Raises TrainingError where
    the clips cannot be used, `out` holds something else, or the disk is full."""
    check(config)
    stop, progress = stop or StopRequest(), progress or ProgressLine("pack")
    entries = ClipFolder.scan(config.data).entries
    parts = [entries[start : start + config.clips] for start in range(0, len(entries), config.clips)]
    shards = [config.out / f"clips-{number:06}.tar" for number in range(len(parts))]
    check_room(config, shards)
    config.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(config.out)
    packed = Packed(clips=0)
    for shard, part in zip(shards, parts):
        if stop.asked:
            packed.stopped = True
            break
        with saving(shard.name, "the shards before it are safe"):
            write_atomically(shard, tar_of(part))
        packed.clips += len(part)
        packed.shards.append(shard)
        progress.show(packed.clips / len(entries), f"{packed.clips}/{len(entries)} clips")
    progress.close()
    return packed


def check_room(config: PackConfig, shards: Sequence[Path]) -> None:
    """Raises TrainingError where `out` holds clips or shards that this run does not write."""
    there = sorted([*config.out.glob("*.tar"), *config.out.glob("*.safetensors")])
    other = [path for path in there if path not in shards]
    if config.out.resolve() == config.data.resolve() or other:
        what = other[0].name if other else "the clips themselves"
        raise TrainingError(f"out is {config.out}, which holds {what}; give an empty folder.")


def tar_of(entries: Sequence[Entry]) -> Iterator[bytes]:
    """The bytes of a tar, member after member. Raises OSError."""
    for entry in entries:
        data = entry.path.read_bytes() if entry.span is None else member_bytes(entry.path, entry.span)
        header = tarfile.TarInfo(member_name(entry.path.name))
        header.size = len(data)
        yield header.tobuf()
        yield data
        yield b"\0" * (-len(data) % tarfile.BLOCKSIZE)
    yield b"\0" * END
