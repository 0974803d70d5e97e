"""Choice of a kernel's implementation: the Triton twin if it is known to work, tiled torch elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SWITCH = "LATENT_PHYSICS_KERNELS"
"""Environment variable: "torch" turns Triton off, "triton" forces it (on a CPU: Triton's interpreter)."""


def choose(tensor: Tensor) -> Literal["triton", "tiled"]:
    """The implementation for a tensor's device and dtype.

    Raises ValueError if the switch has any other value.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "torch", "triton"):
        raise ValueError(f"{SWITCH} is {wanted!r}; it must be 'torch', 'triton' or unset.")
    if wanted == "triton":
        return "triton"
    if wanted == "torch" or tensor.dtype == torch.float64:
        return "tiled"
    return "triton" if _works_on(tensor.device.type, tensor.device.index) else "tiled"


@functools.lru_cache
def _works_on(kind: str, index: int | None) -> bool:
    """Cached per device; logs the reason at debug level."""
    reason = _reason_against(kind, index)
    device = kind if index is None else f"{kind}:{index}"
    logger.debug("%s: %s", device, reason or "the Triton kernels are used.")
    return reason is None


def _reason_against(kind: str, index: int | None) -> str | None:
    if kind != "cuda" or torch.version.hip is not None:
        return "not an NVIDIA GPU, the tiled torch kernels are used."
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, the tiled torch kernels are used."
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "compute capability below 8.0, the tiled torch kernels are used."
    from .selfcheck import mismatch

    # Triton needs a C compiler and a matching driver at run time: only trying tells whether it works here.
    found = mismatch(torch.device(kind, index))
    return None if found is None else f"Triton failed its check ({found}), the tiled torch kernels are used."
