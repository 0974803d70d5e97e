"""Clips from a model in training: the plain sampler of its family, with corrections where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...methods.weights import write_atomically
from ..backbones import Backbone
from ..backbones.sample import sample


@dataclass(kw_only=True)
class Samples:
    """Clips that show how a run is doing: the same prompts and noise at every validation."""

    prompts: Sequence[str]
    tokens: Tensor
    """`B L D`."""
    mask: Tensor
    """`B L`."""
    null: tuple[Tensor, Tensor]
    """Tokens `1 L D` and mask of the empty prompt."""
    vae: nn.Module | None
    """Decodes; kept on the CPU between uses. None in a process that writes no clip."""
    shape: tuple[int, int, int]
    """T H W of the latents."""
    fps: float
    cfg: float = 5.0
    steps: int = 20
    seed: int = 0

    @torch.no_grad()
    def write(self, backbone: Backbone, step: int, folder: Path | None) -> None:
        """Samples every prompt; where there is a folder, writes samples/STEP-NUMBER.mp4. Raises OSError."""
        for number in range(len(self.prompts)):
            row = slice(number, number + 1)
            tokens, mask = self.tokens[row].to(backbone.device), self.mask[row].to(backbone.device)
            null = (self.null[0].to(backbone.device), self.null[1].to(backbone.device))
            settings = {"steps": self.steps, "cfg": self.cfg, "null": null, "seed": self.seed + number}
            latent = sample(backbone, tokens, mask, self.shape, **settings)
            if folder is not None:
                backbone.vae = self.vae.to(backbone.device)
                video = backbone.decode_latent(latent)[0]
                backbone.vae = None
                self.vae.cpu()
                write_video(folder / "samples" / f"{step:06}-{number}.mp4", video, self.fps)


def write_video(path: Path, video: Tensor, fps: float) -> None:
    """`3 T H W` in [0, 1] as an mp4, all or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode_video(video, fps))


def encode_video(video: Tensor, fps: float) -> bytes:
    """The same as an mp4 in memory."""
    import imageio.v3 as imageio

    frames = (video.permute(1, 2, 3, 0).cpu() * 255).round().to(torch.uint8).numpy()
    return imageio.imwrite(
        "<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=round(fps) or 8
    )
