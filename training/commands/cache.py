"""`latent-physics cache`: a folder of videos becomes latents and prompt embeddings, one file per clip."""

from __future__ import annotations

from ...methods.weights import WeightsError
from ..console import StopRequest
from ..data.cache import cache_clips
from ..data.check import check_clips, show_check
from ..data.format import CacheConfig, format_of
from ..data.left_out import VideoError
from ..data.loaders import loaders
from ..data.report import summarise
from ..data.sources import gather
from ..loop.processes import own_gpu
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where every clip that could be read is cached, 1 on an error,
    130 where stopped."""

    return cli.run_command(lambda: _command(argv), VideoError, WeightsError)


def _command(argv: list[str]) -> int:
    config = cli.parse(
        CacheConfig, argv, prog="latent-physics cache", description="Videos -> latents and prompt embeddings."
    )
    format_of(config)
    own_gpu()
    found = gather(config)
    with StopRequest() as stop:
        if config.check:
            return show_check(check_clips(found, config, stop=stop), config)
        load_text, load_vae = loaders(config)
        report = cache_clips(found.clips, config, load_text, load_vae, left_out=found.left_out, stop=stop)
    return summarise(report, config)
