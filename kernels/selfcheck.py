"""Comparison of Triton's engine with torch's on a device, made once before the first is used there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .relational import tiled
from .relational.engine_torch import TorchEngine

GRID = (3, 5, 7)
CHANNELS = 40
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
Problem = tuple[str, torch.dtype, Callable[[], list[Tensor]], Callable[[], list[Tensor]]]
"""Name, dtype, Triton's values and gradients, torch's."""


def mismatch(device: torch.device) -> str | None:
    """None where Triton compiles and agrees on small problems, else what went wrong in a few words."""
    try:
        for name, dtype, ours, theirs in _problems(device):
            for a, b in zip(ours(), theirs()):
                error = (a - b).norm() / b.norm().clamp_min(1e-12)
                if not error <= TOLERANCE[dtype]:
                    return f"{name} in {dtype} is off by {float(error):.2g}"
    except Exception as error:  # a missing compiler, driver or instruction shows as any kind of exception
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _problems(device: torch.device) -> list[Problem]:
    """One per loss and dtype."""
    from .relational.engine_triton import TritonEngine

    generator = torch.Generator().manual_seed(0)
    shape = (2, GRID[0] * GRID[1] * GRID[2], CHANNELS)
    wide_s, wide_t = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    queries = [torch.arange(start, shape[1], 3, device=device) for start in range(2)]
    problems = []
    for dtype in TOLERANCE:
        s, t = wide_s.to(dtype), wide_t.to(dtype)
        engines = TritonEngine(s, t, tile=2 * GRID[1] * GRID[2]), TorchEngine(s, torch.float32)
        for name, run in (
            ("relation_l1", lambda s, t, e: tiled.relation_l1(s, t, GRID, 5.0, 0.05, True, e)),
            ("tempered_kl", lambda s, t, e: tiled.tempered_kl(s, t, GRID, 0.1, None, True, e)),
            ("tempered_kl of queries", lambda s, t, e: tiled.tempered_kl(s, t, GRID, 0.1, queries, True, e)),
        ):
            both = [
                lambda s=s, t=t, e=e, run=run: [x for part in run(s, t, e) for x in part] for e in engines
            ]
            problems.append((name, dtype, *both))
    return problems
