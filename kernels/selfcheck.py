"""Whether the Triton twins reproduce the tiled torch kernels on a device. Asked once, before they are first used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import balance, drift, relational_tiled
from .relational_engine import TorchEngine

GRID = (3, 5, 7)
CHANNELS = 40
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def mismatch(device: torch.device) -> str | None:
    """None where Triton compiles and agrees on small problems, else what went wrong in a few words."""
    try:
        for name, dtype, ours, theirs in _problems(device):
            for a, b in zip(ours(), theirs()):
                error = (a - b).norm() / b.norm().clamp_min(1e-12)
                if not error <= TOLERANCE[dtype]:
                    return f"{name} in {dtype} is off by {float(error):.2g}"
    except Exception as error:  # a missing compiler, driver or instruction shows as any exception whatever
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _problems(device: torch.device) -> list[tuple[str, torch.dtype, Callable[[], list[Tensor]], Callable[[], list[Tensor]]]]:
    """(name, dtype, Triton's result, torch's result) for every twin."""
    from . import balance_triton, drift_triton, relational_triton

    generator = torch.Generator().manual_seed(0)
    shape = (2, GRID[0] * GRID[1] * GRID[2], CHANNELS)
    wide_s, wide_t = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    latents = [torch.randn((2, 3, 4, 5, 6), generator=generator).to(device) for _ in range(3)]
    numbers = [torch.tensor([0.6, 1.0], device=device), torch.tensor([0.8, 0.3], device=device)]
    queries = [torch.arange(start, shape[1], 3, device=device) for start in range(2)]
    problems = []
    for dtype in TOLERANCE:
        s, t = wide_s.to(dtype), wide_t.to(dtype)
        engines = relational_triton.TritonEngine(s, t, tile=2 * GRID[1] * GRID[2]), TorchEngine(s, torch.float32)
        for name, run in (
            ("relation_l1", lambda s, t, e: relational_tiled.relation_l1(s, t, GRID, 5.0, 0.05, True, e)),
            ("tempered_kl", lambda s, t, e: relational_tiled.tempered_kl(s, t, GRID, 0.1, None, True, e)),
            ("tempered_kl of queries", lambda s, t, e: relational_tiled.tempered_kl(s, t, GRID, 0.1, queries, True, e)),
        ):
            both = [lambda s=s, t=t, e=e, run=run: [x for part in run(s, t, e) for x in part] for e in engines]
            problems.append((name, dtype, *both))
        pair = [
            lambda s=s, t=t, module=module: [x for part in module.cosine_alignment(s, t, True) for x in part]
            for module in (relational_triton, relational_tiled)
        ]
        problems.append(("cosine_alignment", dtype, *pair))
    means = [
        lambda run=run: list(run(*latents, *numbers)) for run in (drift_triton.means_of_output, drift.tiled_means_of_output)
    ]
    problems.append(("drift", torch.float32, *means))
    field, velocity, weight = latents[0][:, :1].contiguous(), latents[1][:, :2].contiguous(), latents[2][:, :1].abs()
    for law in ("wave", "continuity", "transport"):
        flow = None if law == "wave" else velocity
        both = [
            lambda run=run, law=law, flow=flow: list(filter(torch.is_tensor, run(field, flow, weight, *numbers, law, True)))
            for run in (balance_triton.balance, balance.tiled_balance)
        ]
        problems.append((f"balance of {law}", torch.float32, *both))
    return problems
