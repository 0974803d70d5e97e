"""All benchmarks: lists them, and runs those that need neither trained files nor much time, one after the
other.

    python3 dev.py bench              # the list, then the quick ones
    python3 dev.py bench --list       # the list alone
    python3 dev.py bench NAME ...     # one of them, with its own arguments (--help lists them)

A benchmark that fails does not stop the next. The exit status is 1 if one failed, and the last line names it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

PACKAGE = "latent_physics.benchmarks"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One benchmark with a command of its own."""

    name: str
    """Its file in benchmarks/, without the ending."""
    what: str
    takes: str
    """Rough processor time; a run ends by printing the exact one."""
    quick: bool = False
    """Whether it runs without being named."""
    old: str = ""
    """Earlier name, which still works."""

    @property
    def module(self) -> str:
        """Dotted name for `python -m`."""
        return f"{PACKAGE}.{self.name.replace('/', '.')}"


BENCHMARKS = (
    Entry(
        name="cost/guidance", old="guidance_cost", takes="2 minutes", quick=True,
        what="LaMo: cost of guidance, the drift loss and the import",
    ),
    Entry(
        name="cost/pila", old="pila_cost", takes="seconds", quick=True,
        what="PILA: operations a correction adds to a sampling step",
    ),
    Entry(
        name="cost/first_predictor", takes="seconds", quick=True,
        what="LaMo: operations and calculated minutes of a first motion predictor, per model",
    ),
    Entry(
        name="cost/grpo", takes="3 minutes",
        what="seconds and peak memory of an iteration of `latent-physics grpo`, by memory measure",
    ),
    Entry(
        name="cost/objectives", old="objectives", takes="3 minutes",
        what="what each objective adds to a training step of CogVideoX-2B",
    ),
    Entry(
        name="cost/plan", takes="2 minutes",
        what="what `latent-physics plan` says against small real runs: peak memory and seconds",
    ),
    Entry(
        name="cost/import_time", old="import_time", takes="half a minute",
        what="seconds ComfyUI waits for the pack (part of cost/guidance)",
    ),
    Entry(
        name="data/reading", takes="2 to 6 minutes",
        what="seconds of a step by how its clips are read: ahead, DataLoader, files, shards",
    ),
    Entry(
        name="data/fuzz", takes="2 minutes",
        what="2,000 mutated films, lists, captions and answers: tracebacks, lost clips, wrong captions",
    ),
    Entry(
        name="kernels", takes="many minutes",
        what="every kernel against the definition, the peers' formula and the machine",
    ),
    Entry(
        name="pila/prompts", old="pila_prompts", takes="seconds", quick=True,
        what="PILA: accuracy of the offline prompt rules",
    ),
    Entry(
        name="pila/residuals", old="pila_residuals", takes="seconds",
        what="every PILA residual on fields that obey its law and on broken ones",
    ),
    Entry(
        name="pila/learned_fields", takes="4 minutes",
        what="which residuals tell right clips from broken ones on fields that an adapter estimates",
    ),
    Entry(
        name="pila/errors", takes="a minute",
        what="error that PILA adapters remove from the frozen toy model, by noise level",
    ),
    Entry(
        name="pila/toyworld", old="pila_toy", takes="many minutes",
        what="what PILA does to the toy world's physics; can train the adapters",
    ),
    Entry(
        name="toyworld/scores", old="toy_scores", takes="2 minutes",
        what="calibration and validation of the toy world's scores",
    ),
    Entry(
        name="toyworld/guidance", old="toy_guidance", takes="many minutes",
        what="LaMo in the toy world over strengths; needs a predictor",
    ),
    Entry(
        name="toyworld/shipped_settings", takes="many minutes",
        what="LaMo at the settings of every shipped graph, against unguided",
    ),
    Entry(
        name="toyworld/encoders", old="toy_encoders", takes="a minute",
        what="what the toy video encoders know: places, and which motion is likely",
    ),
    Entry(
        name="toyworld/critics", old="toy_critics", takes="20 minutes",
        what="what each critic can tell: AUC by law and by violation",
    ),
    Entry(
        name="toyworld/best_of_n", old="toy_best_of_n", takes="20 minutes",
        what="best-of-N by critic, pruned and unpruned; needs a folder",
    ),
    Entry(
        name="toyworld/vae", old="toy_vae", takes="a minute",
        what="what the toy VAE keeps of real clips",
    ),
    Entry(
        name="toyworld/gallery", old="toy_gallery", takes="a minute",
        what="draws docs/images/worlds.png; needs a predictor",
    ),
    Entry(
        name="toyworld/ranking", takes="2 minutes",
        what="whether the toy world's scores prefer what eyes preferred in 40 pairs, judged beforehand",
    ),
    Entry(
        name="evaluation/kills", takes="10 minutes",
        what="evaluate under kills: processes and a server die, every clip must be there once",
    ),
)  # fmt: skip


def find(name: str) -> Entry | None:
    """The benchmark of a name, be it the earlier one; None for an unknown name."""
    return next((entry for entry in BENCHMARKS if name and name in (entry.name, entry.old)), None)


def listing(entries: Sequence[Entry]) -> str:
    """One line per benchmark; those that run unnamed have a star."""
    width = max(len(entry.name) for entry in entries)
    lines = [
        f"{'*' if entry.quick else ' '} {entry.name:<{width}}  {entry.what} ({entry.takes})"
        for entry in entries
    ]
    return "\n".join(["Benchmarks (* runs without being named):", *lines])


def run(modules: dict[str, str]) -> list[str]:
    """Runs modules in turn, each in a process of its own; name -> module.

    Returns the names of those that failed.
    """
    failed = []
    for name, module in modules.items():
        print(f"\n== {name}", flush=True)
        begin = spent()
        if subprocess.call([sys.executable, "-m", module]) != 0:
            failed.append(name)
        print(f"({name} took {spent() - begin:.0f} s)", flush=True)
    return failed


def spent() -> float:
    """Processor time of all finished child processes; the wall clock if the system does not count it
    (Windows).
    """
    if os.name == "nt":
        return time.monotonic()
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    """Lists, then runs the quick ones."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__, formatter_class=style)
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    args = parser.parse_args()
    print(listing(BENCHMARKS), flush=True)
    if args.list:
        return 0
    failed = run({entry.name: entry.module for entry in BENCHMARKS if entry.quick})
    if failed:
        print(f"\nfailed: {', '.join(failed)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
