"""The toy world's clips, encoded once for the base model's training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....methods.weights import WeightsError, WeightsInfo, load_weights, save_weights
from ....toyworld.data import mixture
from ....toyworld.worlds import WORLDS
from ...backbones.wan import WanBackbone
from ...console import ProgressLine, TrainingError, saving
from ...loop.checkpoint import differing
from .settings import SHAPED_BY, ToyWorldConfig

DIFFICULT = ("rigid_body", "elastic", "fluid", "collision")
"""Worlds whose things cross the picture: the base model draws the other four well long before these."""
TURN = (*DIFFICULT, *DIFFICULT, *WORLDS)
"""Worlds by how often the base model is shown them: the difficult ones three times as often."""


class KeptLatents:
    """Clips that were encoded once, the worlds in turn, and are drawn again and again, as often as `TURN`
    says."""

    def __init__(self, latents: Tensor, prompts: list[str]) -> None:
        self.latents, self.prompts = latents, prompts
        often = torch.tensor([float(TURN.count(name)) for name in WORLDS])
        self.often = often.repeat(-(-len(latents) // len(WORLDS)))[: len(latents)]

    def draw(self, number: int, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """As `base.LatentSource`."""
        chosen = torch.multinomial(self.often, count, replacement=True, generator=generator)
        return self.latents[chosen], [self.prompts[index] for index in chosen.tolist()]


class DrawnLatents:
    """New clips in each step, rendered and encoded when they are needed: no clip is seen twice.

    Encoding a clip takes a CPU longer than learning from it; this is for a GPU.
    """

    def __init__(self, config: ToyWorldConfig, vae: nn.Module) -> None:
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        vae = vae.to(device)
        self.config, self.backbone = config, WanBackbone(latent_space="toy", vae=vae)

    @torch.no_grad()
    def draw(self, number: int, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """As `base.LatentSource`; every world gets its turns over the steps, whatever `count` is."""
        seed = self.config.seed * 1_000_003 + 1_000_000_007 + number
        clips, prompts, _ = mixture(count, seed, self.config.wrong, number * count, TURN)
        return self.backbone.encode_video(clips).cpu(), prompts


def encode_mixture(config: ToyWorldConfig, vae: nn.Module) -> tuple[Tensor, list[str]]:
    """Latents `N C T H W` in model scaling and prompts of the training mixture; kept in the run folder, in
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
