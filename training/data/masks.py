"""Masks of clips: a film or a picture of the clip's name in a folder of its own, white where the denoising
loss counts. The cache keeps them at the latent's resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decoding import Frame, decode, still_pixels
from .finding import ANIMATION_SUFFIXES, FRAME_SUFFIXES, is_still
from .left_out import VideoError

ODD = 0.02
"""Share by which the proportions of a clip and its mask may differ: rounding to whole pixels."""


def with_masks(clip: Path, mask: Path | None) -> Iterator[Frame]:
    """The frames of a clip, each with that of its mask. Raises VideoError where either cannot be decoded, or
    the mask has fewer frames."""
    if mask is None:
        yield from decode(clip)
        return
    pictures = _pictures(mask)
    for number, frame in enumerate(decode(clip)):
        picture = next(pictures, None)
        if picture is None:
            raise VideoError(
                f"{mask.name} has {number} frames, fewer than {clip.name}, whose mask it is.", "too short"
            )
        yield frame._replace(mask=picture)


def _pictures(mask: Path) -> Iterator[Frame]:
    """The frames of a mask; of a picture, the same without end."""
    still = mask.is_file() and (
        mask.suffix.lower() in FRAME_SUFFIXES
        or (mask.suffix.lower() in ANIMATION_SUFFIXES and is_still(mask))
    )
    if not still:
        yield from decode(mask)
        return
    pixels = _still(mask)
    while True:
        yield Frame(None, lambda: pixels)


def _still(mask: Path) -> np.ndarray:
    """`H W 3` uint8."""
    from PIL import Image

    try:
        with Image.open(mask) as image:
            return still_pixels(image)
    except Exception as error:  # Pillow raises a dozen types: every one of them means that it is broken
        raise VideoError(f"{mask.name} cannot be decoded ({type(error).__name__}: {error}).") from error


def mask_pixels(
    clip: Path, frame: Frame, size: tuple[int, int], fitted: Callable[..., np.ndarray]
) -> np.ndarray | None:
    """The mask of a frame of `clip`, cut as the frame is, `H W` uint8; None where it has none.

    size: the frame as it is shown, width and height; fitted: what crops and resizes pixels of an `aspect`.
    Raises VideoError where the mask's proportions are others.
    """
    if frame.mask is None:
        return None
    pixels = frame.mask.picture()
    wide, tall = pixels.shape[1] * frame.mask.aspect, pixels.shape[0]
    if abs(wide / tall * size[1] / size[0] - 1) > ODD:
        raise VideoError(
            f"{clip.name} is {size[0]}x{size[1]} and its mask {wide:.0f}x{tall}; their proportions must be "
            f"the same."
        )
    return fitted(pixels, aspect=frame.mask.aspect).mean(axis=2).round().astype(np.uint8)


def latent_mask(mask: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Mask `T H W` uint8 of a clip whose latent is `shape` (C T' H' W') -> means in [0, 1], `T' H' W'`.

    The first latent frame is that of the first frame alone where the VAE is causal (T - 1 a multiple of
    T' - 1), the others of as many each; elsewhere they share the frames evenly.
    """
    frames, high, wide = shape[1:]
    values = torch.from_numpy(mask).float() / 255
    pool = torch.nn.functional.adaptive_avg_pool3d
    if frames > 1 and (len(mask) - 1) % (frames - 1) == 0:
        first = pool(values[None, :1], (1, high, wide))
        return torch.cat([first, pool(values[None, 1:], (frames - 1, high, wide))], dim=1)[0]
    return pool(values[None], (frames, high, wide))[0]
