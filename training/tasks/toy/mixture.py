"""The toy world's clips, encoded once for the base model's training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....methods.weights import WeightsError, WeightsInfo, load_weights, save_weights
from ....toyworld.data import mixture
from ...backbones.wan import WanBackbone
from ...console import ProgressLine, TrainingError, saving
from ...loop.checkpoint import differing
from .settings import SHAPED_BY, ToyWorldConfig


def encode_mixture(config: ToyWorldConfig, vae: nn.Module) -> tuple[Tensor, list[str]]:
    """Latents (N,16,9,8,8) in model scaling and prompts of the training mixture; kept in the run folder, in
    parts, so that it can be resumed. Raises TrainingError where the folder holds parts of another mixture."""
    backbone, latents, prompts = WanBackbone(latent_space="toy", vae=vae), [], []
    part, progress = 256, ProgressLine("toy world: latents")
    for start in range(0, config.clips, part):
        count = min(part, config.clips - start)
        encoded, texts = mixture_part(config, backbone, start, count)
        latents.append(encoded)
        prompts += texts
        progress.show((start + count) / config.clips, f"{start + count} clips")
    progress.close()
    return torch.cat(latents), prompts


@torch.no_grad()
def mixture_part(
    config: ToyWorldConfig, backbone: WanBackbone, start: int, count: int
) -> tuple[Tensor, list[str]]:
    """`count` clips of the mixture from `start` on: their latents and prompts, from the run folder where they
    are kept there."""
    path = config.out / "latents" / f"{start:06}.safetensors"
    settings = {key: getattr(config, key) for key in SHAPED_BY["latents"]}
    try:
        state, info = load_weights(path, "toy_latents")
    except WeightsError:  # not there, or cut short
        state = None
    if state is not None and len(state["latents"]) == count:
        stored = {key: info.config[key] for key in settings if key in info.config}
        if changed := differing({"fit_clips": 64} | stored, settings) if stored else "":
            raise TrainingError(
                f"{path.parent} holds latents of another mixture ({changed}): give those, or another --out."
            )
        return state["latents"], info.config["prompts"]
    clips, prompts, _ = mixture(count, config.seed * 1_000_003 + 7 + start, config.wrong)
    state = {"latents": torch.cat([backbone.encode_video(chunk) for chunk in clips.split(8)])}
    with saving(str(path), "the parts before are intact"):
        save_weights(
            path,
            state,
            WeightsInfo(kind="toy_latents", latent_space="toy", config={"prompts": prompts, **settings}),
        )
    return state["latents"], prompts
