"""Runs the Triton twins in Triton's interpreter against float64 and prints the errors as JSON.

A program of its own, because the interpreter has to be asked for before Triton is imported. `test_triton.py`
starts it.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
os.environ["LATENT_PHYSICS_KERNELS"] = "triton"

import torch
from latent_physics.kernels.relational import tiled
from latent_physics.kernels.relational.engine_torch import TorchEngine
from latent_physics.kernels.relational.engine_triton import TritonEngine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# (batch, grid, student channels, teacher channels, tokens in a tile)
SHAPES = {
    "odd": (2, (3, 3, 5), 21, 10, 32),
    "one frame": (1, (1, 6, 7), 40, 40, 4096),
    "one token a frame": (2, (5, 1, 1), 8, 8, 4096),
    "parts of frames": (1, (2, 6, 8), 33, 7, 20),
}


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Error relative to the exact norm, or to 1e-4 where that is smaller."""
    return float((ours.double() - exact).norm() / exact.norm().clamp_min(1e-4))


def together(parts: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    """Several results as one vector."""
    return torch.cat([part.double().flatten() for part in parts if part is not None])


def relational_errors(shape: tuple, dtype: torch.dtype) -> dict[str, float]:
    """Worst error of value and gradient, for each loss."""
    batch, grid, channels, other, tile = shape
    tokens = grid[0] * grid[1] * grid[2]
    student, teacher = (
        torch.randn(batch, tokens, channels).to(dtype),
        torch.randn(batch, tokens, other).to(dtype),
    )
    queries = [torch.randperm(tokens)[: tokens // 3 + 1] for _ in range(batch)]
    runs = {
        "kl": lambda s, t, e: tiled.tempered_kl(s, t, grid, 0.1, None, True, e),
        "kl of queries": lambda s, t, e: tiled.tempered_kl(s, t, grid, 0.1, queries, True, e),
        "l1": lambda s, t, e: tiled.relation_l1(s, t, grid, None, 0.0, True, e),
        "soft l1 with margin": lambda s, t, e: tiled.relation_l1(s, t, grid, 3.0, 0.1, True, e),
    }
    errors = {}
    for name, run in runs.items():
        ours = run(student, teacher, TritonEngine(student, teacher, tile, side=32))
        exact = run(student.double(), teacher.double(), TorchEngine(student, torch.float64))
        # Values together and gradients together: with one token a frame, the spatial part is a rounding error
        # against zero.
        errors[name] = max(relative(together(a), together(b)) for a, b in zip(ours, exact))
    return errors


def main() -> None:
    torch.manual_seed(0)
    errors = {}
    for dtype_name, dtype in DTYPES.items():
        for shape_name, shape in SHAPES.items():
            if dtype_name != "float16" or shape_name == "odd":
                found = relational_errors(shape, dtype)
                errors.update({f"{name}, {shape_name}, {dtype_name}": error for name, error in found.items()})
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
