"""`latent-physics toyworld`: trains the toy world's models from nothing and writes the files that ship.

    python training toyworld --stage all --out runs/toyworld

Stages, each resumable: text (the text encoder), vae (a Wan 2.1 VAE of reduced width), decoder (its decoder
again, alone), latents (encodes the mixture), base (a Wan transformer, flow matching, on a mixture of right
and wrong dynamics), export (native names, half precision), clips (a folder of cached clips of the right
dynamics, from which `predictor`, `pila` and `finetune` learn; needs the exported files).

Two processes share the base stage's batches, which is faster than one process with two threads:

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 training/__main__.py toyworld --stage base --threads 1
    --compiled
"""

from __future__ import annotations

import os

import torch

from ...methods.weights import WeightsError
from ...toyworld.data import mixture
from ..console import StopRequest
from ..tasks.toy.base import StageStoppedError, begin_from, build_dit, train_base
from ..tasks.toy.mixture import DrawnLatents, KeptLatents, encode_mixture
from ..tasks.toy.settings import ToyWorldConfig
from ..tasks.toy.ship import cache_real_clips, export
from ..tasks.toy.text import train_text
from ..tasks.toy.vae import fit_latent_scale, train_decoder, train_vae
from .cli import parse, run_command


def train(config: ToyWorldConfig, stop: StopRequest | None = None) -> None:
    """Runs the asked stages. Raises StageStoppedError, and TrainingError as `loop.train` does."""
    config.out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.stage == "clips":
        cache_real_clips(config)
        return
    if config.begin and config.stage in ("base", "export", "all"):
        # what cannot be gone on from is said now, and not after the VAE's hours
        begin_from(build_dit(config), config, "dit")
    if config.stage not in ("vae", "decoder", "latents"):
        text = train_text(config, stop)
    if config.stage == "text":
        return
    vae = train_vae(config, stop)
    if config.stage == "vae":
        return
    if config.stage not in ("latents", "base"):
        train_decoder(config, vae, stop)
    if config.stage == "decoder":
        return
    fit_latent_scale(vae, mixture(config.fit_clips, config.seed + 99, 0.0)[0])
    clips = DrawnLatents(config, vae) if config.clips == 0 else KeptLatents(*encode_mixture(config, vae))
    if config.stage == "latents":
        return
    dit = train_base(config, text, clips, stop)
    if config.stage == "base":
        return
    export(config, text, vae, dit)
    if config.stage == "all":
        cache_real_clips(config)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = parse(
            ToyWorldConfig, argv, prog="latent-physics toyworld", description=ToyWorldConfig.__doc__ or ""
        )
        with StopRequest() as stop:
            try:
                train(config, stop)
            except StageStoppedError as stopped:
                print(f"{stopped}; run the same command to resume.")
                return 130
        return 0

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
    return run_command(command, WeightsError)
