"""Videos read ahead of their encoding, by threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..console import StopRequest
from .format import CacheConfig, Format, Job, frames_rule
from .videos import VideoError, Window, windows


def read_ahead(
    jobs: Sequence[Job], config: CacheConfig, form: Format, stop: StopRequest
) -> Iterator[tuple[Job, Window | VideoError | None]]:
    """Reads clips in `config.workers` threads; yields the windows of each, then None; or a VideoError, then
    None.

    Clips come interleaved. At most two windows per thread wait to be taken. Closing the iterator, or a stop
    request, ends the threads.
    """
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    ready: queue.Queue[tuple[Job | None, Any]] = queue.Queue(maxsize=2 * config.workers)
    over = threading.Event()

    def hand_over(job: Job | None, item: Any) -> None:
        while not over.is_set():
            try:
                return ready.put((job, item), timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        while not over.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                break
            try:
                for window in windows(
                    job.path,
                    frames=form.frames,
                    width=form.width,
                    height=form.height,
                    fps=form.fps,
                    limit=config.windows,
                    allow_short=frames_rule(config) if config.allow_short else None,
                ):
                    hand_over(job, window)
                    if over.is_set():
                        return
            except Exception as error:
                hand_over(job, error)
            hand_over(job, None)
        hand_over(None, None)

    threads = [
        threading.Thread(target=read, name=f"reader-{number}", daemon=True)
        for number in range(config.workers)
    ]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working and not stop.asked:
            try:
                job, item = ready.get(timeout=0.2)
            except queue.Empty:
                continue
            if job is None:
                working -= 1
            elif isinstance(item, Exception) and not isinstance(item, VideoError):
                raise item
            else:
                yield job, item
    finally:
        over.set()
        for thread in threads:
            thread.join()
