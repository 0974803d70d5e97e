"""`latent-physics toyworld`: trains the toy world's models (VAE, DiT, text encoder)."""

from __future__ import annotations

import os

import torch

from ...methods.weights import WeightsError
from ...toyworld.data import mixture
from ..console import RunError
from ..tasks.toy.base import train_base
from ..tasks.toy.mixture import encode_mixture
from ..tasks.toy.settings import ToyWorldConfig
from ..tasks.toy.ship import cache_real_clips, export
from ..tasks.toy.text import train_text
from ..tasks.toy.vae import fit_latent_scale, train_decoder, train_vae
from .cli import parse, run_command


def train(config: ToyWorldConfig) -> None:
    """Runs the asked stages."""
    config.out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.stage == "clips":
        cache_real_clips(config)
        return
    text = train_text(config)
    if config.stage == "text":
        return
    vae = train_vae(config)
    if config.stage == "vae":
        return
    if config.stage not in ("latents", "base"):
        train_decoder(config, vae)
    if config.stage == "decoder":
        return
    fit_latent_scale(vae, mixture(config.fit_clips, config.seed + 99, 0.0)[0])
    latents, prompts = encode_mixture(config, vae)
    if config.stage == "latents":
        return
    dit = train_base(config, text, latents, prompts)
    if config.stage == "base":
        return
    export(config, text, vae, dit)
    if config.stage == "all":
        cache_real_clips(config)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = parse(ToyWorldConfig, argv, prog="latent-physics toyworld", description=ToyWorldConfig.__doc__ or "")
        train(config)
        return 0

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
    return run_command(command, RunError, WeightsError)
