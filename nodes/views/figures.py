"""Pictures that nodes show: heat over frames, plots, and which decoded frame belongs to which latent
frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

PREVIEW_FPS = 16.0
"""Wan's frame rate; a LATENT or an IMAGE batch does not know its own."""

_HEAT = [
    (0.00, 0.00, 0.02),
    (0.16, 0.04, 0.33),
    (0.42, 0.07, 0.43),
    (0.66, 0.17, 0.37),
    (0.87, 0.32, 0.23),
    (0.98, 0.55, 0.04),
    (0.96, 0.81, 0.23),
    (0.99, 1.00, 0.64),
]
"""Anchor colours, dark to bright, evenly spaced: readable in grey and by the colour-blind."""


def heat_colours(maps: Tensor) -> Tensor:
    """Values in [0, 1], any shape -> colours of that shape and a last axis of 3."""
    anchors = torch.tensor(_HEAT, device=maps.device, dtype=torch.float32)
    position = maps.float().clamp(0, 1) * (len(_HEAT) - 1)
    low = position.floor().clamp(max=len(_HEAT) - 2)
    part = (position - low)[..., None]
    return anchors[low.long()] * (1 - part) + anchors[low.long() + 1] * part


def unit_range(maps: Tensor) -> Tensor:
    """Scales each clip of maps `(B, T, H, W)` so that its largest value is 1; a clip of zeros stays zero."""
    top = maps.flatten(1).amax(dim=1).clamp(min=1e-12)
    return (maps / top[:, None, None, None]).clamp(0, 1)


def decoded_frame(latent_frame: int, images: int, latents: int) -> int:
    """The decoded frame that shows latent frame `latent_frame` of a clip of `images` frames and `latents`
    latent frames.

    Frame 0 is latent frame 0; every further latent frame stands for (images-1)/(latents-1) frames (4 for Wan
    and CogVideoX, 8 for LTXV), of which this is the last. The rate is read off the two counts.
    """
    if latents < 2:
        return 0
    return round(latent_frame * (images - 1) / (latents - 1))


def latent_frame(decoded: int, images: int, latents: int) -> int:
    """The latent frame that decoded frame `decoded` belongs to: the inverse of `decoded_frame`, rounded
    up."""
    if images < 2:
        return 0
    return -(-decoded * (latents - 1) // (images - 1))


def heat_frames(maps: Tensor, scale: int = 8) -> Tensor:
    """Maps `(N, h, w)` in [0, 1] -> pictures `(N, scale h, scale w, 3)`."""
    big = F.interpolate(maps[:, None].float(), scale_factor=scale, mode="bilinear", align_corners=False)[:, 0]
    return heat_colours(big)


def overlay(images: Tensor, maps: Tensor, latents: int, opacity: float) -> Tensor:
    """Heat over a decoded clip: images `(N, H, W, 3)`, maps `(T', h, w)` in [0, 1] for the first T' of
    `latents` latent frames.

    A pixel is covered by its heat times `opacity`, so that still regions stay visible. Frames of latent
    frames without a map (the last `lag`) stay as they are.
    """
    images = images[..., :3].float().cpu()
    shown = images.clone()
    index = [latent_frame(frame, len(images), latents) for frame in range(len(images))]
    for frame, t in enumerate(index):
        if t >= len(maps):
            continue
        heat = F.interpolate(
            maps[None, None, t].float().cpu(), size=images.shape[1:3], mode="bilinear", align_corners=False
        )[0, 0]
        cover = (heat * opacity)[..., None]
        shown[frame] = images[frame] * (1 - cover) + heat_colours(heat) * cover
    return shown


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot."""

    label: str
    """Name in the legend."""
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes of a plot."""

    title: str
    """Quantity that is shown, with its unit."""
    x_label: str
    curves: Sequence[Curve]
    log: bool = False
    """Logarithmic y axis, for values that fall by orders of magnitude."""
    x_range: tuple[float, float] | None = None
    """The span of x to show; None shows what the curves cover."""
    shaded: tuple[float, float] | None = None
    """A span of x to mark, such as the active window."""
    note: str = ""
    """A line under the axes."""


def plot(panels: Sequence[Panel], title: str = "", width: int = 960, height: int = 360) -> Tensor:
    """Panels one above the other as an IMAGE `(1, H, W, 3)`; `height` is that of one panel, in pixels."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height * len(panels) / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels):
        _draw(axes, panel)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255
    return torch.from_numpy(pixels.copy())[None]


def _draw(axes: Any, panel: Panel) -> None:
    if panel.shaded is not None:
        axes.axvspan(*panel.shaded, color="0.92", zorder=0)
    for curve in panel.curves:
        axes.plot(
            curve.x,
            curve.y,
            marker="o",
            markersize=3,
            linestyle="--" if curve.dashed else "-",
            label=curve.label,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.x_range is not None:
        axes.set_xlim(panel.x_range)
    if panel.log and any(value > 0 for curve in panel.curves for value in curve.y):
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(f"{panel.x_label}\n{panel.note}" if panel.note else panel.x_label)
    axes.grid(alpha=0.3)
    if panel.curves:
        axes.legend(fontsize=8)


def preview_video(images: Tensor, cls: type[io.ComfyNode], fps: float = PREVIEW_FPS) -> Any:
    """An animated preview of `(N, H, W, 3)` under the node, from the temporary folder."""
    saved = ui.ImageSaveHelper.save_animated_webp(
        images,
        filename_prefix="latent_physics_preview",
        folder_type=io.FolderType.temp,
        cls=cls,
        fps=fps,
        lossless=False,
        quality=85,
        method=2,
    )
    return ui.SavedImages([saved], is_animated=len(images) > 1)


def preview_image(image: Tensor, cls: type[io.ComfyNode]) -> Any:
    """A still preview of `(N, H, W, 3)` under the node."""
    return ui.PreviewImage(image, cls=cls)
