"""HDR frames -> 8-bit SDR: PQ and HLG of BT.2100 down to BT.709, as a display with 203 cd/m2 white would show
them.

The reference white of HDR (203 cd/m2, BT.2408) becomes the white of SDR; what is brighter is rolled off by
the curve of BT.2390, what is darker than about 90 cd/m2 keeps its brightness.
"""

from __future__ import annotations

from functools import cache

import numpy as np

WHITE = 203.0
"""cd/m2 of a diffuse white, which becomes the largest SDR value (BT.2408)."""
PEAK = 1000.0
"""cd/m2 of the brightest light that is kept apart from brighter ones, and the peak of the display that HLG is
shown on."""
SDR_GAMMA = 2.4
"""Gamma of the display that SDR is watched on (BT.1886)."""
HLG_GAMMA = 1.2
"""System gamma of a 1000 cd/m2 display (BT.2100, Table 5)."""
LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
"""Luminance of BT.2020 primaries."""
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear BT.2020 -> linear BT.709 (BT.2087)."""
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
"""Constants of the PQ curve (SMPTE ST 2084)."""
TRANSFERS = {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers of the transfer functions that mean HDR."""


def to_sdr(frame: np.ndarray, transfer: str) -> np.ndarray:
    """`H W 3` uint16, full range, BT.2020 primaries -> `H W 3` uint8, BT.709. `transfer`: "PQ" or "HLG"."""
    light = _table(transfer)[frame]
    if (
        transfer == "HLG"
    ):  # the table gives the scene's light; a display adds its gamma to the luminance (BT.2100, Note 5e)
        light *= PEAK * np.maximum(light @ LUMA, 1e-6)[..., None] ** (HLG_GAMMA - 1)
    brightest = light.max(axis=-1, keepdims=True)
    light *= roll_off(brightest) / np.maximum(brightest, 1e-6)
    signal = np.clip(light @ TO_BT709.T / WHITE, 0, 1) ** (1 / SDR_GAMMA)
    return np.rint(signal * 255).astype(np.uint8)


@cache
def _table(transfer: str) -> np.ndarray:
    """Every 16-bit signal's light: cd/m2 for PQ, the scene's light in 0..1 for HLG."""
    signal = np.arange(65536) / 65535
    return (pq_to_light(signal) if transfer == "PQ" else hlg_to_scene(signal)).astype(np.float32)


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """The EOTF of ST 2084: signal in 0..1 -> cd/m2."""
    power = np.power(signal, 1 / M2)
    return 10000 * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """The inverse: cd/m2 -> signal in 0..1."""
    power = np.power(np.maximum(light, 0) / 10000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """The inverse OETF of HLG: signal in 0..1 -> the scene's light in 0..1 (BT.2100, Table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, np.square(signal) / 3, (np.exp((signal - c) / a) + b) / 12)


def roll_off(light: np.ndarray) -> np.ndarray:
    """Light up to PEAK -> light up to WHITE, both cd/m2; dark and middle tones are kept (the EETF of BT.2390,
    section 5.4.1)."""
    lights, rolled = _roll_off_table()
    return np.interp(light, lights, rolled).astype(np.float32)


@cache
def _roll_off_table() -> tuple[np.ndarray, np.ndarray]:
    peak, white = light_to_pq(np.array([PEAK, WHITE]))
    signal = np.linspace(0, 1, 4096)
    most = white / peak
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    )
    return pq_to_light(signal * peak), pq_to_light(np.where(signal < knee, signal, spline) * peak)
