"""The adapter's fields and expert maps as frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ...methods.pila.bank import SLOTS
from . import figures


def over_frames(maps: Tensor, images: Tensor | None, opacity: float) -> Tensor:
    """Maps `(B, T, h, w)` in [0, 1] over decoded clips, or alone. Raises ValueError where the pictures are
    not of that many clips."""
    if images is None:
        return figures.heat_frames(maps.flatten(0, 1))
    if len(images) % len(maps) or len(images) < len(maps):
        raise ValueError(
            f"{len(images)} images do not belong to a latent of {len(maps)} clips: wire this run's decoded "
            f"video."
        )
    clips = images.reshape(len(maps), -1, *images.shape[1:])
    return torch.cat([figures.overlay(clip, maps[b], maps.shape[1], opacity) for b, clip in enumerate(clips)])


FIELD_NAMES = {
    "u": "velocity (colour: direction, brightness: speed)",
    "d": "displacement from the middle frame",
    "p": "pressure",
    "rho": "density",
    "T": "temperature",
    "alpha": "phase or support",
    "eps": "strain",
    "sigma": "stress",
    "j": "impulse",
    "psi": "wave",
}
FIELD_MENU = {
    f"{slot}: {FIELD_NAMES[slot]}": slot for slot in ("u", *(name for name in SLOTS if name != "u"))
}


def paint(field: Tensor) -> tuple[Tensor, Tensor]:
    """Colours `(B, T, h, w, 3)` and size `(B, T, h, w)` in [0, 1] of a field `(B, C, T, h, w)`.

    Two channels are a direction: hue says where to, brightness how much. One channel runs from its clip's
    smallest to its largest value. Four channels (a tensor) are shown by their size.
    """
    if field.shape[1] == 2:
        size = field.norm(dim=1)
        top = torch.quantile(size.flatten(1), 0.99, dim=1).clamp(min=1e-12)  # a few outliers may saturate
        size = (size / top[:, None, None, None]).clamp(0.0, 1.0)
        hue = torch.atan2(field[:, 1], field[:, 0]) / (2 * torch.pi) % 1.0
        return hue_colours(hue, size), size
    value = field.norm(dim=1) if field.shape[1] == 4 else field[:, 0]
    low = value.flatten(1).amin(dim=1)[:, None, None, None]
    high = value.flatten(1).amax(dim=1)[:, None, None, None]
    value = (value - low) / (high - low).clamp(min=1e-12)
    return figures.heat_colours(value), value


def hue_colours(hue: Tensor, value: Tensor) -> Tensor:
    """Fully saturated colours from hue and brightness in [0, 1], any shape -> that shape and 3."""
    offsets = torch.tensor([0.0, 2.0, 4.0])
    wheel = ((hue[..., None] * 6.0 - offsets + 3.0) % 6.0 - 3.0).abs()
    return (2.0 - wheel).clamp(0.0, 1.0) * value[..., None]


def under_frames(colours: Tensor, images: Tensor | None, opacity: float) -> Tensor:
    """Field colours `(B, T, h, w, 3)` alone, enlarged 8 times, or over dimmed decoded frames."""
    flat = colours.flatten(0, 1).movedim(-1, 1)
    if images is None:
        return torch.nn.functional.interpolate(flat, scale_factor=8, mode="nearest").movedim(1, -1)
    clips, frames = colours.shape[:2]
    if len(images) % clips or len(images) < clips:
        raise ValueError(
            f"{len(images)} images do not belong to a latent of {clips} clips: wire its decoded video."
        )
    count = len(images) // clips
    pictures = images[..., :3].float().cpu()
    size = pictures.shape[1:3]
    index = [
        clip * frames + min(frames - 1, figures.latent_frame(n, count, frames))
        for clip in range(clips)
        for n in range(count)
    ]
    cover = torch.nn.functional.interpolate(flat, size=size, mode="bilinear", align_corners=False).movedim(
        1, -1
    )
    return pictures * (1.0 - opacity) + cover[index] * opacity
