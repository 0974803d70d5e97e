"""How much time a latent frame stands for: what a lag in latent frames means in seconds."""

from __future__ import annotations

RATES: dict[str, tuple[float, int]] = {
    "wan2.1": (16.0, 4),
    "wan2.2": (24.0, 4),
    "cogvideox": (8.0, 4),
    "cogvideox1.5": (16.0, 4),
    "hunyuan_video": (24.0, 4),
    "hunyuan_video1.5": (24.0, 4),
    "ltxv": (24.0, 8),
    "ltxav": (25.0, 8),
    "mochi": (30.0, 6),
    "cosmos1": (24.0, 8),
}
"""Latent space -> frames per second that its models were made for, and frames per latent frame. Wan 2.1's
serve Wan 2.2 14B too; "wan2.2" is its 5B model."""


def native_fps(latent_space: str) -> float | None:
    """Frames per second of the models of a latent space; None where it is not known."""
    rate = RATES.get(latent_space)
    return None if rate is None else rate[0]


def seconds_per_latent_frame(latent_space: str, fps: float | None) -> float | None:
    """Time from one latent frame to the next in clips of `fps` frames per second; None where either is not
    known."""
    rate = RATES.get(latent_space)
    return None if rate is None or not fps else rate[1] / fps
