"""`latent-physics bench`: measures the kernels, shows a table and, with --growth, a plot of memory over
tokens."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"


def main(argv: list[str]) -> int:
    """Runs the kernels' benchmark with `argv`; returns its exit status, 1 if this installation has no
    benchmarks."""
    if not FOLDER.exists():
        print(
            f"the benchmarks are part of the source tree, and {FOLDER} is not there; run this from a clone.",
            file=sys.stderr,
        )
        return 1
    # By name: no wheel holds the benchmarks, so nothing of the pack may import them as a matter of course.
    return importlib.import_module("...benchmarks.kernels.__main__", __package__).main(argv)
