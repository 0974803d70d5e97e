"""`latent-physics pack`: cached clips into a few large files, in webdataset's layout."""

from __future__ import annotations

from ..console import StopRequest
from ..data.packing import PackConfig, pack
from .cli import parse, run_command


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 130 where it was stopped."""

    def command() -> int:
        config = parse(PackConfig, argv, prog="latent-physics pack", description=PackConfig.__doc__ or "")
        with StopRequest() as stop:
            packed = pack(config, stop)
        if packed.stopped:
            print(f"Stopped after {len(packed.shards)} shards; the same command writes all of them.")
            return 130
        size = sum(shard.stat().st_size for shard in packed.shards) / 2**30
        what = f"{packed.clips} clips in {len(packed.shards)} shards, {size:.2f} GiB"
        print(f"Packed: {what}, in {config.out}.")
        return 0

    return run_command(command)
