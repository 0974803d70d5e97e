"""Drawing and measuring: a palette, soft-edged shapes, and their inverse (how much of which colour is where).

A world is `UNITS` units wide and high whatever the clips' size: laws, scenes and scores are in units ("px" in
their texts), y downward, cell centres at integers. Clips have `SIZE` x `SIZE` pixels and `FRAMES` frames;
this is the only place where those are chosen. Images are float32 in [0,1].
"""

from __future__ import annotations

import numpy as np

UNITS = 64
"""Side of a world, and of the grid on which opacities are measured."""
SIZE = 64
"""Side of a clip in pixels, a multiple of 16."""
FRAMES = 33
"""Frames of a clip, a multiple of 4 plus 1."""
LATENT = (1 + (FRAMES - 1) // 4, SIZE // 8, SIZE // 8)
"""T H W of a clip's latent: Wan's VAE makes one frame of four (of the first alone) and one place of 8 x 8
pixels."""
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.14, 0.14),
    "green": (0.14, 0.76, 0.24),
    "blue": (0.14, 0.34, 0.96),
    "yellow": (0.98, 0.86, 0.10),
    "purple": (0.66, 0.18, 0.82),
}
COLOURS = tuple(PALETTE)
ROWS, COLUMNS = np.mgrid[0:UNITS, 0:UNITS].astype(np.float32)
"""Places of the measuring grid, units."""
PIXEL_ROWS, PIXEL_COLUMNS = ((np.mgrid[0:SIZE, 0:SIZE] + 0.5) * UNITS / SIZE - 0.5).astype(np.float32)
"""Centres of a clip's pixels, units."""
EDGE = 2.0
"""Width of a thing's soft edge, units: a sharper one is lost by a small VAE, and the law with it."""

_NOISE_FLOOR = 0.06
"""Colour differences (0..1 per channel, Euclidean) below this are taken for reconstruction noise."""
_MIN_COSINE = 0.88
"""Least cosine of a pixel's difference from the background with a palette colour to count as that
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
    """Paints a rectangle of a background, given in units, in place."""
    picture[:, in_pixels(rows), in_pixels(columns)] = np.asarray(colour, np.float32)[:, None, None]


def in_pixels(part: slice) -> slice:
    """A stretch of whole units as pixels, at least one."""
    start, end = ((0 if part.start is None else part.start), (UNITS if part.stop is None else part.stop))
    first = round(start * SIZE / UNITS)
    return slice(first, max(first + 1, round(end * SIZE / UNITS)))


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """Coverage (H, W) in [0,1] of a disc with soft edges."""
    return inside(radius - np.hypot(PIXEL_COLUMNS - x, PIXEL_ROWS - y))


def inside(depth: np.ndarray) -> np.ndarray:
    """Coverage in [0,1] at a depth under a thing's border (units, negative outside)."""
    return np.clip(depth / EDGE + 0.5, 0, 1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Coverage (H, W) in [0,1] of an axis-aligned box given by its edges, which are soft."""
    return stretch(PIXEL_COLUMNS, left, right) * stretch(PIXEL_ROWS, top, bottom)


def stretch(places: np.ndarray, start: float, end: float) -> np.ndarray:
    """Coverage in [0,1] of a stretch from `start` to `end` with soft edges; its integral is its length."""
    return np.clip((places - start) / EDGE + 0.5, 0, 1) - np.clip((places - end) / EDGE + 0.5, 0, 1)


def gaussian(x: float, y: float, variance: float, peak: float) -> np.ndarray:
    """A Gaussian blob (H, W) of the given variance per axis (px^2) and peak."""
    return peak * np.exp(-((PIXEL_COLUMNS - x) ** 2 + (PIXEL_ROWS - y) ** 2) / (2 * variance))


def blend(picture: np.ndarray, alpha: np.ndarray, colour: str) -> np.ndarray:
    """Lays `colour` over a picture with opacity alpha (H, W)."""
    return picture * (1 - alpha) + np.asarray(PALETTE[colour], np.float32)[:, None, None] * alpha


def unmix(clip: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Opacity of every palette colour over a known background: clip (T,3,H,W) -> (T, colours, `UNITS`,
    `UNITS`).

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
    known = (cosine == best) & (best > _MIN_COSINE) & (length > _NOISE_FLOOR)
    return area_means(np.where(known, opacity, 0).astype(np.float32), UNITS)


def area_means(field: np.ndarray, side: int) -> np.ndarray:
    """Means of (..., old, old) over the cells of a grid of another side: (..., side, side). Mass per area
    and place stay."""
    old = field.shape[-1]
    if old == side:
        return field
    cells, edges = np.arange(side)[:, None], np.arange(old)[None] * side / old
    shared = np.minimum(cells + 1, edges + side / old) - np.maximum(cells, edges)
    share = np.clip(shared, 0, None).astype(np.float32)
    share /= share.sum(1, keepdims=True)
    return share @ field @ share.T


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
            inside = (row >= 0) & (row < UNITS) & (column >= 0) & (column < UNITS)
            out += np.where(
                inside, field[..., np.clip(row, 0, UNITS - 1), np.clip(column, 0, UNITS - 1)] * wx * wy, 0
            )
    return out
