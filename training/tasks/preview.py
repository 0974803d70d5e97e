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
from ..console import TrainingError
from ..data.format import CacheConfig, format_of


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
    """T H W of the latents, where `sizes` names none."""
    fps: float
    sizes: Sequence[tuple[int, int, int]] = ()
    """Width, height and frames of the clips; each prompt is sampled at each."""
    cfg: float = 5.0
    steps: int = 20
    seed: int = 0

    def write(self, backbone: Backbone, step: int, folder: Path | None) -> None:
        """Samples every prompt at every size; where there is a folder, writes samples/STEP-NUMBER.mp4, and
        with several sizes samples/STEP-NUMBER-SIZE.mp4. Raises OSError."""
        for size in self.sizes or (None,):
            shape = self.shape if size is None else latent_shape(backbone, *size)
            end = f"-{words_of(*size)}" if len(self.sizes) > 1 else ""
            for number in range(len(self.prompts)):
                latent = self._sample(backbone, number, shape)
                if folder is not None:
                    name = f"{step:06}-{number}{end}.mp4"
                    write_video(folder / "samples" / name, self._decode(backbone, latent), self.fps)

    @torch.no_grad()
    def _sample(self, backbone: Backbone, number: int, shape: Sequence[int]) -> Tensor:
        row = slice(number, number + 1)
        tokens, mask = self.tokens[row].to(backbone.device), self.mask[row].to(backbone.device)
        null = (self.null[0].to(backbone.device), self.null[1].to(backbone.device))
        settings = {"steps": self.steps, "cfg": self.cfg, "null": null, "seed": self.seed + number}
        return sample(backbone, tokens, mask, shape, **settings)

    @torch.no_grad()
    def _decode(self, backbone: Backbone, latent: Tensor) -> Tensor:
        backbone.vae = self.vae.to(backbone.device)
        video = backbone.decode_latent(latent)[0]
        backbone.vae = None
        self.vae.cpu()
        return video


def latent_shape(backbone: Backbone, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """T H W of the latent of a clip of that size."""
    stride = backbone.spatial_stride
    return (frames - 1) // backbone.temporal_stride + 1, height // stride, width // stride


def words_of(width: int, height: int, frames: int) -> str:
    """A size as settings and file names have it, 640x368x49."""
    return f"{width}x{height}x{frames}"


def read_sizes(words: Sequence[str], family: str) -> list[tuple[int, int, int]]:
    """Sizes "WIDTHxHEIGHTxFRAMES" for clips of a family. Raises TrainingError for what is none, and for a
    number that does not fit the VAE."""
    found = []
    for text in words:
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise TrainingError(f"sample_sizes has {text!r}; it must be WIDTHxHEIGHTxFRAMES, as 640x368x49.")
        width, height, frames = map(int, parts)
        try:
            format_of(CacheConfig(out=Path(), backbone=family, width=width, height=height, frames=frames))
        except TrainingError as error:
            raise TrainingError(f"sample_sizes has {text!r}: {error}") from error
        found.append((width, height, frames))
    return found


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
