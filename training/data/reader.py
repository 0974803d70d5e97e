"""Videos read ahead of their encoding, by threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from ..console import StopRequest
from .extraction import extraction_of
from .format import CacheConfig, Format, Job, frames_rule, sizes_of
from .scenes import scene_starts
from .videos import VideoError, Window, decode, thin, windows

Item = Window | VideoError | None


def read_ahead(
    jobs: Sequence[Job], config: CacheConfig, form: Format, stop: StopRequest
) -> Iterator[tuple[Job, Item]]:
    """Reads clips in `config.workers` threads; yields the windows of each, then None; or a VideoError, then
    None.

    Clips come interleaved. At most two windows per thread wait to be taken. Closing the iterator, or a stop
    request, ends the threads.
    """
    readers = Readers(jobs, config, form)
    threads = [
        threading.Thread(target=readers.work, name=f"reader-{number}", daemon=True)
        for number in range(config.workers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield from readers.taken(len(threads), stop)
    finally:
        readers.over.set()
        for thread in threads:
            thread.join()


class Readers:
    """Jobs that wait for a thread, and windows that wait for the encoder."""

    def __init__(self, jobs: Sequence[Job], config: CacheConfig, form: Format) -> None:
        self.config, self.form, self.over = config, form, threading.Event()
        self.todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.todo.put(job)
        self.ready: queue.Queue[tuple[Job | None, Item | Exception]] = queue.Queue(2 * config.workers)

    def work(self) -> None:
        """The work of one thread: it reads until there is no job left, and says so with a job of None."""
        while not self.over.is_set():
            try:
                job = self.todo.get_nowait()
            except queue.Empty:
                break
            self.read(job)
            self.hand_over(job, None)
        self.hand_over(None, None)

    def read(self, job: Job) -> None:
        """Hands over the windows of one clip, or the error that reading it raised."""
        short = frames_rule(self.config) if self.config.allow_short else None
        form, where = self.form, extraction_of(self.config.extraction, self.config.windows)
        size = {"frames": form.frames, "width": form.width, "height": form.height, "fps": form.fps}
        try:
            cuts = scene_starts(thin(decode(job.path), form.fps)) if self.config.scenes else ()
            also = {"cuts": cuts, "sizes": sizes_of(self.config), "allow_short": short, "mask": job.mask}
            taking = where.taking(job.path, form.frames, form.fps, cuts)
            for window in windows(job.path, **size, **also, **taking):
                self.hand_over(job, window)
                if self.over.is_set():
                    return
        except Exception as error:  # of another kind than VideoError: `taken` raises it where it is seen
            self.hand_over(job, error)

    def hand_over(self, job: Job | None, item: Item | Exception) -> None:
        """Waits for room; gives up once nobody takes any more."""
        while not self.over.is_set():
            try:
                return self.ready.put((job, item), timeout=0.1)
            except queue.Full:
                continue

    def taken(self, working: int, stop: StopRequest) -> Iterator[tuple[Job, Item]]:
        """Everything that `working` threads hand over, as it comes. Raises the error of another kind than
        VideoError that one of them met."""
        while working and not stop.asked:
            try:
                job, item = self.ready.get(timeout=0.2)
            except queue.Empty:
                continue
            if job is None:
                working -= 1
            elif isinstance(item, Exception) and not isinstance(item, VideoError):
                raise item
            else:
                yield job, item
