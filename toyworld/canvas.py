"""Drawing and measuring on a 64 x 64 canvas: a palette, soft-edged shapes, and their inverse (how much of
which colour is where).

Coordinates are pixels, y downward, pixel centres at integers. Images are float32 in [0,1].
"""

from __future__ import annotations

import numpy as np

SIZE = 64
FRAMES = 33
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.14, 0.14),
    "green": (0.14, 0.76, 0.24),
    "blue": (0.14, 0.34, 0.96),
    "yellow": (0.98, 0.86, 0.10),
    "purple": (0.66, 0.18, 0.82),
}
COLOURS = tuple(PALETTE)
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)

_NOISE_FLOOR = 0.06
"""Colour differences (0..1 per channel, Euclidean) below this are taken for reconstruction noise."""
_MIN_COSINE = 0.88
"""How well a pixel's difference from the background must point at a palette colour to count as that
colour."""


def fill(colour: tuple[float, float, float]) -> np.ndarray:
    """A uniform picture, (3, H, W)."""
    return np.broadcast_to(np.asarray(colour, np.float32)[:, None, None], (3, SIZE, SIZE)).copy()


def band(
    picture: np.ndarray,
    colour: tuple[float, float, float],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> None:
    """Paints a rectangle of a background in place."""
    picture[:, rows, columns] = np.asarray(colour, np.float32)[:, None, None]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Coverage (H, W) in [0,1] of a disc, edges one pixel soft."""
    return np.clip(radius - np.hypot(COLUMNS - x, ROWS - y) + 0.5, 0, 1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Coverage (H, W) in [0,1] of an axis-aligned box given by its edges."""
    across = np.clip(np.minimum(COLUMNS + 0.5, right) - np.maximum(COLUMNS - 0.5, left), 0, 1)
    down = np.clip(np.minimum(ROWS + 0.5, bottom) - np.maximum(ROWS - 0.5, top), 0, 1)
    return across * down


def gaussian(x: float, y: float, variance: float, peak: float) -> np.ndarray:
    """A Gaussian blob (H, W) of the given variance per axis (px^2) and peak."""
    return peak * np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / (2 * variance))


def blend(picture: np.ndarray, alpha: np.ndarray, colour: str) -> np.ndarray:
    """Lays `colour` over a picture with opacity alpha (H, W)."""
    return picture * (1 - alpha) + np.asarray(PALETTE[colour], np.float32)[:, None, None] * alpha


def unmix(clip: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Opacity of every palette colour over a known background: clip (T,3,H,W) -> (T, colours, H, W).

    Each pixel belongs to the palette colour its difference from the background points at (largest cosine),
    with the least-squares opacity, clipped to [0, 1]; pixels that differ too little, or towards no palette
    colour, count as background.
    """
    difference = clip - background
    directions = np.stack(
        [np.asarray(PALETTE[name], np.float32)[:, None, None] - background for name in COLOURS]
    )
    squared = (directions**2).sum(1)
    projection = np.einsum("tchw,kchw->tkhw", difference, directions)
    length = np.sqrt((difference**2).sum(1, keepdims=True))
    cosine = projection / (length * np.sqrt(squared) + 1e-6)
    best = cosine.max(1, keepdims=True)
    opacity = np.clip(projection / squared, 0, 1)
    return np.where((cosine == best) & (best > _MIN_COSINE) & (length > _NOISE_FLOOR), opacity, 0).astype(
        np.float32
    )


def moments(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass, x and y centroid of opacity fields (..., H, W); NaN centroids where there is no mass."""
    mass = alpha.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (alpha * COLUMNS).sum((-2, -1)) / mass
        y = (alpha * ROWS).sum((-2, -1)) / mass
    return mass, x, y


def resample(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear read of (..., H, W) at positions x, y (H, W); zero outside."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - left, y - top
    out = np.zeros(np.broadcast_shapes(field.shape, x.shape), np.float32)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            row, column = top + dy, left + dx
            inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
            out += np.where(
                inside, field[..., np.clip(row, 0, SIZE - 1), np.clip(column, 0, SIZE - 1)] * wx * wy, 0
            )
    return out
