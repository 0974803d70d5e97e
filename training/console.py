"""Files and words of every training run: log, curves, checkpoints, progress, a
clean stop."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO


class TrainingError(ValueError):
    """A run cannot start or continue. The message is one sentence for the user: value, rule, remedy."""


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag the loop looks at between steps; a second Ctrl-C stops at once.

    Use as a context manager. Outside the main thread, where Python delivers no signals, it does nothing but
    hold the flag.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._old[name] = signal.signal(name, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for name, handler in self._old.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class ProgressLine:
    """One line that says how far a run is: redrawn in place on a terminal, printed every `every` seconds
    elsewhere."""

    def __init__(self, label: str, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.label = label
        self.stream = stream or sys.stderr
        self.every = every
        self.tty = self.stream.isatty()
        self.start = self.shown = time.monotonic()
        self.width = 0

    def show(self, fraction: float, text: str, left: float | None = None) -> None:
        """`fraction` of the work done, in [0, 1]; `left`: seconds to go, where the caller knows better than
        the pace so far."""
        now = time.monotonic()
        if fraction < 1 and now - self.shown < (0.2 if self.tty else self.every):
            return
        self.shown = now
        if left is None:
            left = (now - self.start) * (1 - fraction) / fraction if fraction > 0 else math.inf
        line = f"{self.label} {fraction:4.0%}  {text}" + (f"  {clock(left)} left" if fraction < 1 else "")
        if self.tty:
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Prints a line of its own without tearing the progress line."""
        if self.tty and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0
        self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Ends the line."""
        if self.tty and self.width:
            self.stream.write("\n")
            self.width = 0


def clock(seconds: float) -> str:
    """Seconds as 7s, 3:05 or 2:03:05; "?" where unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest}s"


@contextmanager
def saving(what: str, kept: str) -> Iterator[None]:
    """Turns an OSError while `what` is written into a TrainingError that says what is safe: `kept`."""
    try:
        yield
    except OSError as error:
        hint = "free some space and run the same command again"
        raise TrainingError(f"Could not write {what}: {error.strerror or error}; {kept}, {hint}.") from error


def remove_leftovers(folder: str | os.PathLike[str], age: float = 60) -> None:
    """Deletes the temporary files of a process that was killed while it wrote; younger than `age` seconds
    they may be in use."""
    for path in Path(folder).glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()
