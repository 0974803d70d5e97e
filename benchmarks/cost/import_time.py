"""Time that ComfyUI waits for this pack when it starts.

    python3 dev.py bench cost/import_time              # median of three fresh processes
    python3 dev.py bench cost/import_time --repeats 9

Each process imports torch, comfy_api and ComfyUI's own `nodes` first, as the server does, and then lets
ComfyUI's own `load_custom_node` load the pack: every module of it, its node list and each node's schema. Only
the latter is timed. The target is held against the processor time; the wall clock, printed beside it, also
holds what other programs took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from latent_physics.devtools import comfyui

ROOT = Path(__file__).resolve().parents[2]
TARGET = 0.3
"""Seconds beyond torch and ComfyUI."""

LOAD = """
import asyncio, json, sys, time
pack, installation, base = sys.argv[1:]
sys.path.insert(0, installation)
import torch
import comfy.cli_args
comfy.cli_args.args.cpu = not torch.cuda.is_available()
comfy.cli_args.args.base_directory = base
import comfy_api.latest
import comfy_config.config_parser  # ComfyUI reads every pack's pyproject.toml with it
import nodes
before = set(sys.modules)
wall, processor = time.perf_counter(), time.process_time()
loaded = asyncio.run(nodes.load_custom_node(pack))
found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
new = set(sys.modules) - before
found["modules"] = sum(name.split(".")[0] == pack.replace(".", "_x_").split(".")[0] for name in new)
found["others"] = sorted({name.split(".")[0] for name in new} - {pack.replace(".", "_x_").split(".")[0]})
found["nodes"] = sum(name.startswith("LatentPhysics") for name in nodes.NODE_CLASS_MAPPINGS)
print(json.dumps(found) if loaded and found["nodes"] else "")
"""


@dataclass(frozen=True, kw_only=True)
class ImportTime:
    """Medians over fresh processes, in seconds."""

    wall: float
    processor: float
    modules: int
    """Modules of the pack that were imported."""
    others: tuple[str, ...]
    """Top-level names of other modules that came along."""
    nodes: int
    """Nodes that were registered."""


def measure(installation: Path, repeats: int = 3) -> ImportTime:
    """Loads the pack into a ComfyUI at `installation`. Raises RuntimeError if it does not load."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as base:  # what ComfyUI or the pack writes at start
            command = [sys.executable, "-c", LOAD, str(ROOT), str(installation), base]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=base,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=False,
            )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode != 0 or not last.startswith("{"):
            raise RuntimeError(
                f"ComfyUI at {installation} did not load the pack: {done.stderr.strip()[-1000:]}"
            )
        runs.append(json.loads(last))
    return ImportTime(
        wall=statistics.median(run["wall"] for run in runs),
        processor=statistics.median(run["processor"] for run in runs),
        modules=runs[0]["modules"],
        others=tuple(runs[0]["others"]),
        nodes=runs[0]["nodes"],
    )


def report(repeats: int) -> str:
    """One line for the reader."""
    found = comfyui.find(ROOT)
    if found is None:
        remedy = "`python3 dev.py bench cost/import_time` installs one, COMFYUI_PATH names yours"
        return f"not measured: there is no ComfyUI here; {remedy}."
    result = measure(found.path, repeats)
    beside = f", besides {', '.join(result.others)}" if result.others else ""
    return (
        f"{result.processor:.3f} s of processor time ({result.wall:.3f} s by the wall clock) "
        f"for {result.nodes} nodes in {result.modules} modules{beside}; "
        f"median of {repeats} processes, ComfyUI {found.version}. "
        f"Target: {TARGET} s ({'met' if result.processor <= TARGET else 'missed'})."
    )


def main() -> int:
    """Prints the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="fresh processes, each of which starts its own ComfyUI"
    )
    print(report(parser.parse_args().repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
