"""`latent-physics bench`: measures the kernels, shows a table and, with --growth, a plot of memory over tokens."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels.py"


def main(argv: list[str]) -> int:
    """Runs benchmarks/kernels.py with `argv`; returns its exit status, 1 where this installation has no benchmarks."""
    if not SCRIPT.exists():
        print(f"the benchmarks are part of the source tree, and {SCRIPT} is not there; run this from a clone.", file=sys.stderr)
        return 1
    spec = importlib.util.spec_from_file_location("latent_physics_benchmarks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(argv)
