"""Several processes at one study: what one of them is making, the others leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..console import StopRequest

LOOK = 2.0
"""Seconds between looks at a stop request while another process is waited for."""


class StopStudy(Exception):
    """The user asked for a stop; what is done is kept."""


@contextmanager
def alone(folder: Path, stop: StopRequest, waits: bool = True) -> Iterator[bool]:
    """Keeps other processes out of a folder; gives whether this one may work in it, which is always so where
    it `waits` for them.

    The system releases the lock of a process that was killed. Raises StopStudy where it was asked for while
    waiting.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, free = FileLock(folder.with_name(f"{folder.name}.lock")), False
    while not free:
        try:
            lock.acquire(timeout=LOOK if waits else 0)
            free = True
        except Timeout:
            if not waits:
                break
            if stop.asked:
                raise StopStudy from None
    try:
        yield free
    finally:
        if free:
            lock.release()
