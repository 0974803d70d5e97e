#!/usr/bin/env python3
"""One command from a clone to a running pack: makes an environment, puts a real ComfyUI beside it, and then

    python3 dev.py demo     generates toy clips with and without guidance and prints what it did to physics
    python3 dev.py test     runs the linter and every test; further arguments go to pytest
    python3 dev.py ui       starts ComfyUI with this pack and prints the address
    python3 dev.py bench    runs a benchmark by its name, or the quick ones; further arguments go to it

Needs Python 3.10 or newer and nothing else. Everything it makes lies in .venv, .comfyui, .bench and output; a
second run resumes where the first one stopped. COMFYUI_PATH, or --comfyui FOLDER, names an installation to
use instead of downloading one.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python gets this sentence
    sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

import argparse
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.run import BENCHMARKS, PACKAGE, find
from devtools import comfyui, environment
from devtools.server import ComfyServer, claim_port
from devtools.shell import BenchError, explain, say

ROOT = Path(__file__).resolve().parent
OLDER_RELEASE = "0.24.1"  # the tests run some workflows on it too


@dataclass(frozen=True)
class Bench:
    """State that every command works with."""

    python: Path
    """Interpreter of the environment."""
    comfyui: comfyui.Installation
    """The ComfyUI to run."""
    options: argparse.Namespace
    """The command line."""
    rest: list[str]
    """Arguments that dev.py does not know, for what the command runs."""

    def base(self) -> Path:
        """The base directory of servers that stay, one per ComfyUI: models and workflows put there are
        kept.
        """
        name = f"base-{'own' if self.comfyui.own else self.comfyui.version}"
        return comfyui.base_folder(ROOT, self.comfyui, ROOT / ".bench" / name)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment variables that what we start finds its ComfyUI by."""
        return {**os.environ, "COMFYUI_PATH": str(self.comfyui.path), **more}


def check(options: argparse.Namespace, rest: list[str]) -> None:
    """Raises BenchError for a command line that cannot work, before minutes are spent on preparing."""
    comfyui.named(options.comfyui)
    if options.command == "ui":
        if rest:
            raise BenchError(f"ui does not know {' '.join(rest)}: see dev.py --help.")
        claim_port(options.port)
    if options.command == "bench" and rest and not rest[0].startswith("-") and find(rest[0]) is None:
        names = ", ".join(entry.name for entry in BENCHMARKS)
        raise BenchError(f"bench needs the name of a benchmark, one of {names}; its arguments follow.")


def prepare(options: argparse.Namespace, rest: list[str]) -> Bench:
    """Makes all that is missing: environment, ComfyUI, packages. Raises BenchError."""
    python = environment.make(ROOT)
    environment.install_builder(ROOT, python)
    installation = comfyui.ensure(ROOT, options.comfyui, python)
    environment.install(ROOT, python, installation)
    return Bench(python, installation, options, rest)


def run_demo(bench: Bench) -> int:
    demo = [
        bench.python,
        ROOT / "devtools" / "demo.py",
        "--comfyui",
        bench.comfyui.path,
        "--base",
        bench.base(),
    ]
    command = [str(part) for part in (*demo, *bench.rest)]
    # A session of its own: Ctrl-C in a terminal reaches this process alone, so the demo gets it once, from
    # here.
    child = subprocess.Popen(command, cwd=ROOT, env=bench.environment(), start_new_session=True)
    with child, handed_on(child) as received:
        status = child.wait()
    return 128 + signal.SIGTERM if signal.SIGTERM in received else status


@contextlib.contextmanager
def handed_on(child: subprocess.Popen) -> Iterator[list[int]]:
    """Hands every signal that asks this process to end on to a child, which has a server to stop; lists
    them.
    """
    received: list[int] = []

    def hand_on(number: int, _: object) -> None:
        received.append(number)
        if (
            os.name != "nt" or number == signal.SIGTERM
        ):  # Windows tells every process of the console of Ctrl-C
            child.send_signal(number)

    ends = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, hand_on) for number in ends}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_test(bench: Bench) -> int:
    comfyui.ensure(ROOT, OLDER_RELEASE, bench.python)
    scripts = bench.python.parent
    status = subprocess.call([str(scripts / "ruff"), "check"], cwd=ROOT)
    if status != 0:
        return status
    # One thread per worker: the models are tiny, and two workers with a thread each beat one with two. Tests
    # of one file stay on one worker, and so do all tests of the server (see tests/conftest.py).
    workers = (
        []
        if any(part.startswith(("-n", "--numprocesses")) for part in bench.rest)
        else ["-n", str(os.cpu_count() or 1)]
    )
    # The script, not `python -m pytest`: that puts this folder on sys.path, where our nodes/ hides ComfyUI's
    # nodes.py.
    command = [str(scripts / "pytest"), *workers, "--dist", "loadgroup", "-rs", *bench.rest]
    return subprocess.call(command, cwd=ROOT, env=bench.environment(OMP_NUM_THREADS="1"))


def has_accelerator(python: Path) -> bool:
    """Whether the environment's torch can use a GPU; ComfyUI has to be told if it cannot."""
    question = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    return (
        subprocess.run([str(python), "-c", question], capture_output=True, text=True).stdout.strip() == "True"
    )


def run_ui(bench: Bench) -> int:
    server = ComfyServer(
        python=bench.python,
        comfyui=bench.comfyui.path,
        base=bench.base(),
        log=ROOT / ".bench" / "logs" / "ui.log",
        port=bench.options.port,
        arguments=() if has_accelerator(bench.python) else ("--cpu",),
    )
    say(f"starting ComfyUI {bench.comfyui.version}")
    with server:
        say(f"ComfyUI runs at {server.url} (Ctrl-C ends it; log: {server.log})")
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()
            server.require_alive()
    return 0


def run_bench(bench: Bench) -> int:
    """`bench NAME ...` runs one benchmark; without a name, benchmarks/run.py."""
    name, *rest = bench.rest or [""]
    entry = find(name)
    if entry is not None and name != entry.name:
        say(f"{name} is called {entry.name} now")
    module, arguments = (f"{PACKAGE}.run", bench.rest) if entry is None else (entry.module, rest)
    return subprocess.call([str(bench.python), "-m", module, *arguments], cwd=ROOT, env=bench.environment())


COMMANDS = {"demo": run_demo, "test": run_test, "ui": run_ui, "bench": run_bench}


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style, allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS)
    releases = ", ".join(comfyui.RELEASES)
    known = f"a release ({releases}; default: {comfyui.DEFAULT_VERSION}) or the folder of your installation"
    parser.add_argument("--comfyui", metavar="VERSION|FOLDER", help=f"which ComfyUI to use: {known}")
    parser.add_argument("--port", type=int, default=8188, help="port of `ui` (default: 8188)")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options, rest = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server is stopped then, too
    try:
        check(options, rest)
        return COMMANDS[options.command](prepare(options, rest))
    except BenchError as error:
        print(f"dev.py: {error}", file=sys.stderr)
    except OSError as error:
        print(f"dev.py: {explain(str(error)) or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("dev.py: stopped; run the same command to resume.", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
