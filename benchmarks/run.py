"""All benchmarks: lists them, and runs those that need neither trained files nor much time, one after the other.

    python3 dev.py bench              # the list, then the quick ones
    python3 dev.py bench --list       # the list alone
    python3 dev.py bench NAME ...     # one of them, with its own arguments (--help lists them)

A benchmark that fails does not stop the next. The exit status is 1 where one failed, and the last line names it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One benchmark with a command of its own."""

    name: str
    what: str
    takes: str
    """Roughly, in processor time; a run says at the end of each what it really was."""
    quick: bool = False
    """Whether it runs without being named."""


BENCHMARKS = (
    Entry(name="guidance_cost", what="LaMo: cost of guidance, the drift loss and the import", takes="2 minutes", quick=True),
    Entry(name="pila_cost", what="PILA: operations a correction adds to a sampling step", takes="seconds", quick=True),
    Entry(name="pila_prompts", what="PILA: accuracy of the offline prompt rules", takes="seconds", quick=True),
    Entry(name="import_time", what="seconds ComfyUI waits for the pack (part of guidance_cost)", takes="half a minute"),
    Entry(name="kernels", what="every kernel against the definition, the peers' formula and the machine", takes="many minutes"),
    Entry(name="objectives", what="what each objective adds to a training step of CogVideoX-2B", takes="3 minutes"),
    Entry(name="pila_residuals", what="every PILA residual on fields that obey its law and on broken ones", takes="seconds"),
    Entry(name="pila_toy", what="what PILA does to the toy world's physics; can train the adapters", takes="many minutes"),
    Entry(name="toy_scores", what="calibration and validation of the toy world's scores", takes="2 minutes"),
    Entry(name="toy_guidance", what="LaMo in the toy world over strengths; needs a predictor", takes="many minutes"),
    Entry(name="toy_encoders", what="what the toy video encoders know: places, and which motion is likely", takes="a minute"),
    Entry(name="toy_critics", what="what each critic can tell: AUC by law and by violation", takes="20 minutes"),
    Entry(name="toy_best_of_n", what="best-of-N by critic, pruned and unpruned; needs a folder", takes="20 minutes"),
    Entry(name="toy_vae", what="what the toy VAE keeps of real clips", takes="a minute"),
    Entry(name="toy_gallery", what="draws docs/images/worlds.png; needs a predictor", takes="a minute"),
)


def listing(entries: Sequence[Entry]) -> str:
    """One line per benchmark; those that run unnamed have a star."""
    width = max(len(entry.name) for entry in entries)
    lines = [f"{'*' if entry.quick else ' '} {entry.name:<{width}}  {entry.what} ({entry.takes})" for entry in entries]
    return "\n".join(["Benchmarks (* runs without being named):", *lines])


def run(names: Sequence[str], folder: Path = HERE) -> list[str]:
    """Runs scripts of `folder` in turn, each in a process of its own; returns the names of those that failed."""
    failed = []
    for name in names:
        print(f"\n== {name}", flush=True)
        begin = spent()
        if subprocess.call([sys.executable, str(folder / f"{name}.py")]) != 0:
            failed.append(name)
        print(f"({name} took {spent() - begin:.0f} s)", flush=True)
    return failed


def spent() -> float:
    """Processor time of all processes that have been waited for; the wall clock where the system does not count it (Windows)."""
    if os.name == "nt":
        return time.monotonic()
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    """Lists, then runs the quick ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    args = parser.parse_args()
    print(listing(BENCHMARKS), flush=True)
    if args.list:
        return 0
    failed = run([entry.name for entry in BENCHMARKS if entry.quick])
    if failed:
        print(f"\nfailed: {', '.join(failed)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
