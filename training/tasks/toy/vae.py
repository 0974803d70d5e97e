"""The toy VAE's training."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import numpy as np
import torch
from torch import Tensor, nn

from ....toyworld.canvas import FRAMES, SIZE
from ....toyworld.corruption import corrupted
from ....toyworld.worlds import WORLDS
from ...backbones.present import over_time, present_frame
from ...backbones.wan import LATENTS_MEAN, LATENTS_STD
from ...console import StopRequest
from .base import StageTask, begin_from, run_stage
from .settings import ToyWorldConfig

MOVING = 0.04
"""Difference from the background, in any channel, from which a pixel is part of a moving thing."""


def build_vae(config: ToyWorldConfig) -> nn.Module:
    """An untrained Wan 2.1 VAE of reduced width (diffusers' class), initialised so that signals keep their
    size from end to end.

    torch's own initialisation shrinks them so much that training sits on a plateau (a grey picture) for
    hundreds of steps.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock

    torch.manual_seed(config.seed)
    vae = AutoencoderKLWan(base_dim=config.vae_width, z_dim=16)
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                module.conv2.weight *= 0.1
            elif isinstance(module, WanAttentionBlock):
                module.proj.weight.zero_()
        # a posterior as wide as the latent itself hides it from the decoder, which then learns to do without
        vae.quant_conv.weight[16:] *= 0.1
        vae.quant_conv.bias[16:] -= 5.0
    return vae


def zero_past_taps(vae: nn.Module) -> None:
    """Lets every convolution over three frames see the present frame alone, in place; its other two taps stay
    zero.

    Time is then compressed and restored by the resampling layers only, so what a window of five frames
    teaches holds for clips of any length (with memory, errors grew from frame to frame beyond the trained
    length), and a step costs less than half. The weights keep their shapes: ComfyUI and diffusers load and
    run them as any Wan VAE.
    """
    for module in over_time(vae):
        with torch.no_grad():
            present = module.weight.sum(2)  # what the three taps make of a still picture
            module.weight.zero_()
            module.weight[:, :, -1] = present
        module.forward = MethodType(present_frame, module)


def windows(count: int, length: int, rng: np.random.Generator, crop: int = 0) -> tuple[Tensor, Tensor]:
    """Random windows of random clips, half of them corrupted: frames (B,3,length,H,W) in [0,1] and
    backgrounds (B,3,1,H,W); with `crop`, squares of that side around something that moves."""
    frames, backgrounds = [], []
    for _ in range(count):
        world = WORLDS[list(WORLDS)[rng.integers(len(WORLDS))]]
        scene, start = world.draw(rng), rng.integers(0, FRAMES - length + 1)
        part = slice(start, start + length)
        right = rng.random() < 0.5
        shown = world.render(scene, np.arange(FRAMES)[part]) if right else corrupted(world, scene, rng, part)
        rows, columns = moving_square(shown, world.background, crop, rng) if crop else (slice(None),) * 2
        frames.append(shown[:, :, rows, columns])
        backgrounds.append(world.background[:, rows, columns])
    return torch.from_numpy(np.stack(frames)).movedim(1, 2).contiguous(), torch.from_numpy(
        np.stack(backgrounds)
    )[:, :, None]


def moving_square(
    frames: np.ndarray, background: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a square about a random pixel in which the window (T,3,H,W) differs from its
    background.

    Its corner is a multiple of 8 pixels, the side of a latent place, so that the scenery falls on latent
    places as in whole pictures.
    """
    moving = np.argwhere(np.abs(frames - background).max((0, 1)) > MOVING)
    centre = moving[rng.integers(len(moving))] if len(moving) else rng.integers(0, frames.shape[2:])
    corner = centre - side // 2 + rng.integers(-side // 4, side // 4 + 1, 2)
    row, column = np.clip(corner // 8 * 8, 0, np.array(frames.shape[2:]) - side)
    return slice(row, row + side), slice(column, column + side)


def vae_loss(
    vae: nn.Module, clips: Tensor, backgrounds: Tensor, noise: Tensor, share: Tensor
) -> dict[str, Tensor]:
    """Absolute and squared error, moving things counted five times (they are few pixels), and a small KL that
    keeps the latent smooth; beside that loss the two terms alone. noise: `B 16 t h w`, standard normal.

    The decoder sees the posterior's draw and beside it noise of `share` (`B`) of each channel's deviation
    over the batch: relative, so that no larger latent gets round it. The squared error gets training off the
    ground; the absolute error keeps edges sharp.
    """
    posterior = vae.encode(clips * 2 - 1).latent_dist
    spread = share.view(-1, 1, 1, 1, 1) * posterior.mean.std((0, 2, 3, 4), keepdim=True)
    z = posterior.mean + (posterior.var + spread**2).sqrt() * noise
    error = decode_unclamped(vae, z) / 2 + 0.5 - clips
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return {"picture": weigh(error, clips, backgrounds) + 3e-5 * kl, "error": error.abs().mean(), "kl": kl}


def decoder_loss(
    vae: nn.Module, clips: Tensor, backgrounds: Tensor, noise: Tensor, share: Tensor
) -> dict[str, Tensor]:
    """As `vae_loss` without the KL, of slightly noised latents that the encoder gets no gradient from."""
    with torch.no_grad():
        z = vae.encode(clips * 2 - 1).latent_dist.mean
    spread = (0.02 + share).view(-1, 1, 1, 1, 1) * z.std((0, 2, 3, 4), keepdim=True)
    error = decode_unclamped(vae, z + spread * noise) / 2 + 0.5 - clips
    return {"picture": weigh(error, clips, backgrounds), "error": error.abs().mean()}


def weigh(error: Tensor, clips: Tensor, backgrounds: Tensor) -> Tensor:
    """Mean of |error| + 8 error^2, moving things counted five times."""
    weight = 1 + 4 * ((clips - backgrounds).abs().amax(1, keepdim=True) > MOVING)
    return ((error.abs() + 8 * error**2) * weight).sum() / (weight.sum() * 3)


def decode_unclamped(vae: nn.Module, z: Tensor) -> Tensor:
    """Output of `vae.decode`, without its clamp to [-1, 1]: a clamped pixel would have no gradient to
    come back with."""
    vae.clear_cache()
    hidden, frames = vae.post_quant_conv(z), []
    for index in range(z.shape[2]):
        vae._conv_idx = [0]
        first = {"first_chunk": True} if index == 0 else {}
        frames.append(
            vae.decoder(
                hidden[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first
            )
        )
    vae.clear_cache()
    return torch.cat(frames, 2)


class PictureStudent(nn.Module):
    """The VAE with the loss of a stage."""

    def __init__(self, vae: nn.Module, loss: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.vae, self.loss = vae, loss

    def forward(self, clips: Tensor, backgrounds: Tensor, noise: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Frames `B 3 T H W` in [0, 1], backgrounds `B 3 1 H W`, noise in the latent's shape and its share
        `B`."""
        return self.loss(self.vae, clips, backgrounds, noise, share)


class WindowTask(StageTask):
    """The VAE, or its decoder alone, on windows of clips."""

    def __init__(
        self,
        name: str,
        student: PictureStudent,
        names: tuple[str, ...],
        seeds: tuple[int, int],
        size: tuple[int, int, int],
        noise: float,
    ) -> None:
        """seeds: of the run and of the stage. size: windows per step, frames per window, side of a square or
        0. noise: its largest share."""
        super().__init__(name, student, names)
        self.seeds, self.size, self.noise = seeds, size, noise

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, length, crop = self.size
        clips, backgrounds = windows(count, length, np.random.default_rng((*self.seeds, number)), crop)
        shape = (count, len(LATENTS_STD), 1 + (length - 1) // 4, (crop or SIZE) // 8, (crop or SIZE) // 8)
        noise = torch.randn(shape, generator=generator)
        return clips, backgrounds, noise, self.noise * torch.rand(count, generator=generator)


def train_vae(config: ToyWorldConfig, stop: StopRequest | None = None) -> nn.Module:
    """Windows of five frames: the first latent frame codes one frame, the second four, as every later one
    does."""
    vae = build_vae(config)
    begin_from(vae, config, "vae")
    zero_past_taps(vae)
    student, names = PictureStudent(vae, vae_loss), ("picture", "error", "kl")
    task = WindowTask("vae", student, names, (config.seed, 1), (4, 5, config.vae_crop), config.vae_noise)
    run_stage(task, config, steps=config.vae_steps, learning_rate=config.vae_learning_rate, stop=stop)
    return vae


def train_decoder(config: ToyWorldConfig, vae: nn.Module, stop: StopRequest | None = None) -> None:
    """Sharpens the pictures with the encoder fixed. Windows of nine frames: the third latent frame is coded
    as all later ones."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    student, names = PictureStudent(vae, decoder_loss), ("picture", "error")
    task = WindowTask("decoder", student, names, (config.seed, 2), (2, 9, 0), config.vae_noise)
    run_stage(task, config, steps=config.decoder_steps, learning_rate=config.vae_learning_rate, stop=stop)


@torch.no_grad()
def fit_latent_scale(vae: nn.Module, clips: Tensor) -> None:
    """Moves and scales the latent, in place and without changing a single decoded picture, to the statistics
    of Wan 2.1's latents.

    ComfyUI and diffusers subtract Wan's channel means and divide by its deviations whichever VAE of this
    architecture is loaded; after this, what the transformer sees has mean 0 and deviation 1.
    """
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in clips.split(8)])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    scale = torch.tensor(LATENTS_STD) / std
    shift = torch.tensor(LATENTS_MEAN) - mean * scale
    out, back = vae.quant_conv, vae.post_quant_conv
    channels = len(LATENTS_STD)
    out.weight[:channels] *= scale.view(-1, 1, 1, 1, 1)
    out.bias[:channels] = out.bias[:channels] * scale + shift
    out.bias[channels:] += 2 * scale.log()
    back.bias -= (back.weight.sum((2, 3, 4)) * (shift / scale)).sum(1)
    back.weight /= scale.view(1, -1, 1, 1, 1)
