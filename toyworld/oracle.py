"""The world's own knowledge of a clip: where its things are, how they move, and which place the background
is.

A perfect teacher for the toy world: an objective that gains nothing from it is at fault itself, and not its
teacher.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .canvas import COLOURS, area_means, moments
from .worlds import WORLDS, World

PLACES = 49
"""Channels of a place's code."""
CHANNELS = 3 * len(COLOURS) + PLACES
LEAST = 4.0
"""Mass in square pixels below which a colour counts as absent."""
SPEED = 0.5
"""Scale of a velocity (pixels per frame) beside an opacity."""


def world_of(clip: Tensor) -> World:
    """The world whose background is nearest to a clip's median picture; clip `3 T H W`."""
    still = clip.movedim(1, 0).cpu().numpy()
    still = np.median(still, axis=0)
    return min(WORLDS.values(), key=lambda world: float(np.abs(still - world.background).mean()))


def things(clip: Tensor) -> tuple[Tensor, Tensor]:
    """(opacity `T K H W` of every palette colour, velocity `T K 2` of its centroid in units per frame, x and
    y).

    clip: `3 T H W` in [0, 1]. Velocities are central differences; nan where a colour is absent in one of the
    two frames.
    """
    opacity, place = places(clip)
    return torch.from_numpy(opacity), torch.from_numpy(np.gradient(place, axis=0)).float()


def places(clip: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(opacity `T K H W` of every palette colour, centroid `T K 2` as x and y in units, nan where the colour
    is absent)."""
    opacity = world_of(clip).unmix(clip.movedim(1, 0).float().cpu().numpy())
    mass, x, y = moments(opacity)
    return opacity, np.stack([np.where(mass > LEAST, x, np.nan), np.where(mass > LEAST, y, np.nan)], axis=-1)


def thing_flow(clip: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The things' own motion as optical flow, `2 n h w` in pixels of `size`: from frame `step * i` to frame
    `step * (i + 1)` each place moves as the thing does that covers it (by its opacity), and the background
    stands still.

    clip: `3 T H W` in [0, 1]. Exact where things keep their shape, without a network that guesses.
    """
    opacity, place = (found[: len(found) // step * step : step] for found in places(clip))
    moved = torch.from_numpy(np.nan_to_num(place[1:] - place[:-1])).float()
    flow = torch.einsum("nkhw,nkc->nchw", torch.from_numpy(opacity[:-1]), moved)
    scale = flow.new_tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]])[:, None, None]
    flow = (
        functional.interpolate(flow, size=size, mode="bilinear", antialias=True, align_corners=False) * scale
    )
    return flow.movedim(1, 0)


def oracle_features(clip: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """A feature per tubelet, `C F H W` (C = `CHANNELS`): each colour's opacity, its opacity times its
    velocity, and what is left of the background times the code of that place.

    clip: `3 T H W` in [0, 1]; patch: the tubelet in frames and pixels. Codes are fixed random unit vectors.
    """
    opacity, velocity = things(clip)
    moving = opacity[:, :, None] * (SPEED * velocity.nan_to_num())[..., None, None]
    shown = torch.cat([opacity, moving.flatten(1, 2)], dim=1).movedim(0, 1)
    cells = torch.from_numpy(area_means(shown.numpy(), clip.shape[3] // patch[2]))
    shown = functional.avg_pool3d(cells[None], (patch[0], 1, 1))[0]
    background = (1 - shown[: len(COLOURS)].sum(dim=0)).clamp(min=0)
    codes = torch.randn(PLACES, *shown.shape[2:], generator=torch.Generator().manual_seed(0))
    codes = functional.normalize(codes, dim=0)[:, None]
    return torch.cat([shown, background * codes])
