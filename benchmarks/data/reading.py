"""Seconds of a training step by how its clips are read: on the training thread, ahead in a thread (as every
run here does), or by a torch DataLoader's processes; from a file a clip and from shards.

    python3 dev.py bench data/reading
    python3 dev.py bench data/reading --clips 16 --steps 8 --computing 0.1

Clips are Wan 2.1 1.3B's of 49 frames of 640x368 with 512 tokens and a teacher's features, random and in a
temporary folder; what a GPU computes meanwhile is a pause of --computing seconds, left out: as long as
reading takes. Everything is in the system's cache: the figures are of reading and copying, not of a disk.
The second table is how long a folder takes to be looked through, at --many clips of a few bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latent_physics.encoders.need import TeacherNeed, cache_name
from latent_physics.training.console import ProgressLine
from latent_physics.training.data.batches import Batch, TrainingClips
from latent_physics.training.data.clip import ClipInfo, write_clip
from latent_physics.training.data.feature_cache import FeatureCache
from latent_physics.training.data.folder import ClipFolder
from latent_physics.training.data.packing import PackConfig, pack
from latent_physics.training.loop.ahead import drawn_ahead
from torch.utils.data import DataLoader, Dataset

LATENT, TOKENS, FEATURES = (16, 13, 46, 80), (512, 4096), (768, 24, 15, 26)
NEED = TeacherNeed(name="videomae")
BATCH, AHEAD = 4, 2


def make_clips(folder: Path, count: int, latent: tuple[int, ...], tokens: tuple[int, ...]) -> Path:
    """Writes random clips in half precision."""
    folder.mkdir()
    values, words = torch.randn(latent).half(), torch.randn(tokens).half()
    for number in range(count):
        info = ClipInfo(
            source=f"{number}.mp4", source_hash=f"{number:032x}", key=f"{number}", caption="", window=0,
            caption_from="none", last=True, start=0.0, frames=49, width=640, height=368, fps=16.0,
        )  # fmt: skip
        write_clip(folder / f"clip-{number:06}.safetensors", values, words[0], info, "wan2.1", tokens=words)
    return folder


class Batches(Dataset):
    """Micro-batches by their number, for a DataLoader."""

    def __init__(self, read: Callable[[int], Batch], steps: int) -> None:
        self.read, self.steps = read, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> Batch:
        return self.read(number)


@contextmanager
def loaded(read: Callable[[int], Batch], steps: int, workers: int) -> Iterator[Callable[[], Batch]]:
    """The next micro-batch of a DataLoader with `workers` processes."""
    batches = iter(
        DataLoader(Batches(read, steps), batch_size=None, num_workers=workers, prefetch_factor=AHEAD)
    )
    yield partial(next, batches)


def seconds(following: Callable[[], Any], steps: int, computing: float) -> float:
    """Of a step: the next micro-batch, then `computing` seconds. The first is left out: it starts threads or
    processes."""
    following()
    begin = time.perf_counter()
    for _ in range(steps - 1):
        following()
        time.sleep(computing)
    return (time.perf_counter() - begin) / (steps - 1)


def compare(place: Path, count: int, steps: int, computing: float | None) -> None:
    """Prints the first table."""
    files = make_clips(place / "files", count, LATENT, TOKENS)
    shards = packed(files, place / "shards", 16)
    features = FeatureCache(place / "features")
    for entry in ClipFolder.scan(files).entries:
        features.write(cache_name(NEED), entry.identity, {"features": torch.randn(FEATURES)})
    print(f"{count} clips of {file_mib(files):.1f} MiB and {file_mib(features.folder):.1f} MiB of features, "
          f"{BATCH} a step, {steps} steps")  # fmt: skip
    print(f"{'clips from':12}{'read':34}{'s/step':>8}{'of which not hidden':>21}{'ratio':>7}")
    for name, folder in (("files", files), ("shards", shards)):
        clips = TrainingClips(folder, batch=BATCH, seed=0)

        def read(number: int, clips: TrainingClips = clips) -> Batch:
            return clips.read(clips.chosen(number), [NEED], features)

        with drawn_ahead(read, 0, steps, 0) as following:
            alone = seconds(following, steps, 0.0)
        pause = alone if computing is None else computing
        ways = {
            "on the training thread": drawn_ahead(read, 0, steps, 0),
            f"ahead, a thread ({AHEAD} wait)": drawn_ahead(read, 0, steps, AHEAD),
            "torch DataLoader, 1 process": loaded(read, steps, 1),
            "torch DataLoader, 2 processes": loaded(read, steps, 2),
        }
        first = None
        for way, opened in ways.items():
            with opened as following:
                took = seconds(following, steps, pause)
            first = first or took
            print(f"{name:12}{way:34}{took:8.3f}{took - pause:21.3f}{first / took:7.2f}", flush=True)


def packed(data: Path, out: Path, clips: int) -> Path:
    """Packs a folder; returns the shards' folder."""
    with closing(ProgressLine("pack")) as line:
        pack(PackConfig(data=data, out=out, clips=clips), progress=line)
    return out


def file_mib(folder: Path) -> float:
    """MiB of the first file."""
    return next(folder.glob("*.safetensors")).stat().st_size / 2**20


def look_through(place: Path, count: int) -> None:
    """Prints the second table."""
    files = make_clips(place / "many", count, (4, 2, 2, 2), (1, 8))
    shards = packed(files, place / "few", 1000)
    for name, folder in (("files", files), ("shards", shards)):
        begin = time.perf_counter()
        ClipFolder.scan(folder)
        took, there = time.perf_counter() - begin, len(list(folder.iterdir()))
        print(f"{count} clips in {there} {name}: looked through in {took:.1f} s")


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--computing", type=float, default=None)
    parser.add_argument("--many", type=int, default=1000)
    args = parser.parse_args(argv)
    if min(args.clips, args.many) < 1 or args.steps < 2:
        parser.error("--clips and --many must be at least 1, --steps at least 2.")
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), args.clips, args.steps, args.computing)
        look_through(Path(place), args.many)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
