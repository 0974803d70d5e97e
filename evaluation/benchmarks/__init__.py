"""The benchmarks, a module each: layout, checks, the scorer's commands, a reader of its results."""

from __future__ import annotations

from ..errors import EvaluationError
from .base import Benchmark, ClipScore, Column, Reading
from .own import Own, ToyWorld
from .phygenbench import PhyGenBench
from .physics_iq import PhysicsIQ
from .vbench import VBench
from .vbench2 import VBench2
from .videophy import VideoPhy
from .videophy2 import VideoPhy2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        PhysicsIQ(),
        VideoPhy(),
        VideoPhy2(),
        PhyGenBench(),
        VBench(),
        VBench2(),
        ToyWorld(),
        Own(),
    )
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name. Raises EvaluationError for others."""
    if name not in BENCHMARKS:
        raise EvaluationError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


__all__ = ["BENCHMARKS", "Benchmark", "ClipScore", "Column", "Reading", "find_benchmark"]
