"""`latent-physics cache`: a folder of videos becomes latents and prompt embeddings, one file per clip."""

from __future__ import annotations

from ...methods.weights import WeightsError
from ..console import RunError, StopRequest
from ..data.cache import cache_clips, listed_captions, loaders, summarise
from ..data.format import CacheConfig, CacheError, format_of
from ..data.videos import VideoError, find_clips, template_clips
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where every clip that could be read is cached, 1 on an error, 130 where stopped."""
    from ..backbones import BackboneError

    return cli.run_command(lambda: _command(argv), CacheError, RunError, VideoError, WeightsError, BackboneError)


def _command(argv: list[str]) -> int:
    config = cli.parse(CacheConfig, argv, prog="latent-physics cache", description="Videos -> latents and prompt embeddings.")
    format_of(config)
    if config.captions is not None:
        clips = sorted(listed_captions(config))
    else:
        clips = find_clips(config.videos) if config.videos or config.templates is None else []
    if config.templates is not None:
        extra = template_clips(config.templates)
        if not extra:
            raise CacheError(
                f"no clip of ComfyUI's template packages matches {config.templates!r}; pip install comfyui-workflow-templates."
            )
        clips += extra
    clips = clips[: config.limit]
    load_text, load_vae = loaders(config)
    with StopRequest() as stop:
        report = cache_clips(clips, config, load_text, load_vae, stop=stop)
    return summarise(report, config)
