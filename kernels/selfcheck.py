"""Whether the Triton twins reproduce the tiled torch kernels on a device. Asked once, before they are first used."""

from __future__ import annotations

import torch


def mismatch(device: torch.device) -> str | None:
    """None where Triton compiles and agrees on a small problem, else what went wrong in a few words."""
    return "not written yet"
