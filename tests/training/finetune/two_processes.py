"""Starts a script as two processes on the CPU, as torchrun does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port for the processes to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finished(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a launcher to its end; once more where a process aborted in gloo's own threads as it ended, which
    has nothing to do with what it ran."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and "terminate called without an active exception" in done.stderr:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done


def run_two(script: Path, code: str, *arguments: object) -> str:
    """Writes `code` to `script`, runs it as two processes and returns what they print. Fails with their
    errors."""
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = finished([*command, str(script), *map(str, arguments)], environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
