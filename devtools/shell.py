"""Running commands with their output in a log, and turning what went wrong into one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# What a failed command says about its cause, in the order it is looked for: pip reports "no matching
# distribution" after every network failure, so the network comes before it.
CAUSES = (
    (
        r"No space left on device|Errno 28|not enough space on the disk|Disk quota exceeded",
        "the disk is full",
    ),
    (r"DO NOT MATCH THE HASHES", "the downloaded file does not have the pinned hash, so it was not used"),
    (
        r"name resolution|Name or service not known|getaddrinfo failed|nodename nor servname"
        r"|Failed to establish a new connection|Max retries exceeded|ConnectTimeout|ReadTimeoutError"
        r"|Network is unreachable|ProxyError|Connection refused|SSLError",
        "the package index cannot be reached: check the network and pip's proxy settings",
    ),
    (
        r"Could not find a version|No matching distribution found",
        "the package index has no version that fits this Python",
    ),
    (r"ResolutionImpossible|conflicting dependencies", "the pinned versions contradict one another"),
    (r"Permission denied|Access is denied", "a file or folder may not be written"),
    (
        r"ensurepip is not available|No module named '?ensurepip",
        "Python's venv is incomplete (Debian: apt install python3-venv)",
    ),
)
GIGABYTE = 1024**3


class BenchError(Exception):
    """Something the user has to know, in one sentence."""


def explain(text: str) -> str | None:
    """The known cause that a command's output names, or None."""
    for pattern, cause in CAUSES:
        if re.search(pattern, text):
            return cause
    return None


def last_line(text: str) -> str:
    """The last line that says something, which is where most programs name their error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def read_tail(path: Path, size: int = 20_000) -> str:
    """The end of a log without the terminal's colours; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode("utf-8", "replace"))
    except OSError:
        return ""


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def run_logged(
    command: Sequence[str | os.PathLike[str]], *, what: str, log: Path, env: Mapping[str, str] | None = None
) -> None:
    """Runs a command with its output in `log`, showing the latest line if the screen is a terminal.

    Raises BenchError ("`what` failed: cause. Log: path") where it cannot be started or exits with another
    status than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with open(log, "w", encoding="utf-8", errors="replace") as file:
            with subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=None if env is None else dict(env),
            ) as process:
                for line in process.stdout:
                    file.write(line)
                    show_latest(line, started)
            status = process.returncode
    except OSError as error:
        raise BenchError(f"{what} failed: {explain(str(error)) or error}. Log: {log}") from error
    finally:
        clear_latest()
    if status != 0:
        output = read_tail(log)
        raise BenchError(f"{what} failed: {explain(output) or last_line(output)}. Log: {log}")


def show_latest(line: str, started: float) -> None:
    """Overwrites the screen's last line; a file or a pipe gets nothing, the log has it all."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = f"  {time.monotonic() - started:4.0f} s  {line.strip()}"
        print("\r" + text[:width].ljust(width), end="", flush=True)


def clear_latest() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


def require_space(folder: Path, gigabytes: float, what: str) -> None:
    """Raises BenchError if the disk under `folder` has less free than `what` takes."""
    free = shutil.disk_usage(folder).free / GIGABYTE
    if free < gigabytes:
        has = f"{folder} has {free:.1f} GB free"
        raise BenchError(f"{what} needs about {gigabytes:.1f} GB, and {has}: make room, run it again.")
