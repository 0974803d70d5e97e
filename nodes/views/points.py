"""Saliency and points laid over frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.relational import motion_mask
from . import figures

MARK = (0.2, 1.0, 0.4)
"""Colour of the cross at the chosen point."""


def saliency_mask(images: Tensor, keep: float, patch: int, frames: int) -> Tensor:
    """IMAGE `T H W 3` -> MASK `T H W`: ceil(keep * patches) whole patches per frame are 1 (TSA eqs 11-12).

    Frames left over after the last whole patch share its mask. Raises ValueError where the video holds fewer
    than two patches in time.
    """
    video = images[..., :3].movedim(-1, 0)[None].cpu()
    found = motion_mask(video, (frames, patch, patch), keep)[0].float()
    count, height, width = images.shape[:3]
    large = found.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)
    index = torch.arange(count).div(frames, rounding_mode="floor").clamp(max=len(found) - 1)
    return F.pad(large, (0, width - large.shape[2], 0, height - large.shape[1]))[index]


def check_point(images: Tensor, x: int, y: int, frame: int) -> None:
    """Raises ValueError where a point lies outside a clip `T H W C`."""
    count, height, width = images.shape[:3]
    if frame >= count or y >= height or x >= width:
        raise ValueError(
            f"the point x {x}, y {y}, frame {frame} lies outside a video of {count} frames, {width}x{height}."
        )


def laid_over(
    images: Tensor, maps: Tensor, index: list[int], opacity: float, covered: tuple[int, int]
) -> Tensor:
    """The clip under its maps `F h w`; image n shows map index[n], whose largest value is the brightest.

    covered: height and width, from the upper left corner, of the part of an image that the maps stand for.
    """
    heat = maps / maps.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    return under_heat(images, heat, index, opacity, covered)


def under_heat(
    images: Tensor, heat: Tensor, index: list[int], opacity: float, covered: tuple[int, int]
) -> Tensor:
    """The clip under heat `F h w` in [0, 1] as `laid_over` places it: a pixel is covered by its heat times
    `opacity`."""
    images = images[..., :3].float().cpu()
    heat = F.interpolate(heat[:, None], size=covered, mode="bilinear", align_corners=False)[index, 0]
    heat = F.pad(heat, (0, images.shape[2] - covered[1], 0, images.shape[1] - covered[0]))
    cover = (heat * opacity)[..., None]
    return images * (1 - cover) + figures.heat_colours(heat) * cover


def mark(image: Tensor, x: int, y: int) -> None:
    """Draws a cross into an image `H W 3`."""
    arm = max(1, min(image.shape[:2]) // 24)
    colour = torch.tensor(MARK)
    image[y, max(0, x - arm) : x + arm + 1] = colour
    image[max(0, y - arm) : y + arm + 1, x] = colour
