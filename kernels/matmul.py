"""Float32 matrix products on the CPU at the speed the processor allows.

torch.mm goes to MKL, which picks its AVX2 code on processors that are not Intel's, half the speed of the
AVX-512 they have; oneDNN, which every x86 build of torch carries, does not. Its operator is not public, so it
is tried once against torch.mm, and torch.mm serves wherever it is missing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x, w -> x w^T through oneDNN, or None."""
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
        x, w = torch.randn(8, 5), torch.randn(7, 5)
        difference = (operator(x, w, None, "none", [], "") - x @ w.t()).abs().max()
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        logger.debug("oneDNN's matrix product is not available (%s); torch.mm is used.", error)
        return None
    if not difference < 1e-5:
        logger.debug("oneDNN's matrix product is off by %g; torch.mm is used.", difference)
        return None
    return lambda x, w: operator(x, w, None, "none", [], "")


def product(x: Tensor, w: Tensor) -> Tensor:
    """x w^T for `M K` and `N K`, either of which may be a transposed view.

    The result is a new contiguous tensor.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] > 0:
        fast = _onednn()
        if fast is not None:
            return fast(x, w)
    return torch.mm(x, w.t())
