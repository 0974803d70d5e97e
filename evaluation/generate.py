"""Carries out a plan: every clip once, by as many sources as there are, through their deaths and this
process's own.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .comfy import ClipFailed, ServerGone
from .errors import EvaluationError
from .manifest import Manifest, Record, digest
from .plan import BASELINES, STATIC, Job, Plan
from .sources import Origin, Source, job_digest
from .video import probe, read_frames, write_video

CLIPS = "clips"
Say = Callable[[float, str], None]
"""Told the share of the plan that is done and a few words."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Policy of generation in trouble."""

    retries: int = 2
    """Further tries of a clip whose graph failed."""
    patience: float = 600.0
    """Seconds that a dead server is waited for."""
    check: Callable[[Record], str | None] = field(default=lambda record: None)
    """The benchmark's objection to a clip, in one sentence; None if it fits."""


@dataclass
class Outcome:
    """Result of `generate`."""

    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by clip, of clips given up."""
    stopped: bool = False


class _Ended(Exception):
    """The run ends while a clip is under way."""


class Work:
    """Jobs that wait, and those in somebody's hands. All methods may be called from any thread."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(jobs)
        self._held = 0
        self._change = threading.Condition()
        self._ended = False
        self.error: BaseException | None = None

    def take(self) -> Job | None:
        """The next job; waits while another worker may give one back; None once all is done or ended."""
        with self._change:
            while not self._waiting and self._held and not self._ended:
                self._change.wait(0.5)
            if self._ended or not self._waiting:
                return None
            self._held += 1
            return self._waiting.popleft()

    def finish(self, job: Job | None = None, *, first: bool = True) -> None:
        """A taken job is over; `job` puts it back, in front unless `first` is False."""
        with self._change:
            self._held -= 1
            if job is not None:
                (self._waiting.appendleft if first else self._waiting.append)(job)
            self._change.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Lets no further job be taken."""
        with self._change:
            self._ended = True
            self.error = self.error or error
            self._change.notify_all()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    @property
    def left(self) -> int:
        """Jobs that wait or are held."""
        with self._change:
            return len(self._waiting) + self._held


class Run:
    """One call of `generate`."""

    def __init__(
        self, plan: Plan, manifest: Manifest, sources: Sequence[Source], options: Options, say: Say
    ) -> None:
        self.plan, self.manifest, self.options, self.say = plan, manifest, options, say
        self.origins: dict[str, Origin] = {arm: sources[0].origin(arm) for arm in plan.arms}
        self.outcome = Outcome()
        self._lock = threading.Lock()
        self._attempts: dict[tuple[str, str, int, int], int] = {}
        jobs = list(plan.jobs())
        self.total = len(jobs)
        self.check_made(jobs)
        self.work = Work([job for job in jobs if not self.adopted(job)])

    def check_made(self, jobs: Sequence[Job]) -> None:
        """Raises EvaluationError if clips in the manifest were made with another graph, prompt or seed."""
        for job in jobs:
            record = self.manifest.records.get(job.key)
            if record is not None and record.job != job_digest(job, self.origins[job.arm]):
                now = self.origins[job.arm].graph
                what = f"{record.file} was made with other settings (graph {record.graph}, now {now})"
                raise EvaluationError(f"{what}: use another folder, or delete this one to start anew.")

    def path(self, job: Job) -> Path:
        """Where the job's clip belongs; the name holds the job's digest."""
        name = job_digest(job, self.origins[job.arm])
        return self.manifest.folder / CLIPS / job.arm / f"run_{job.run:02}" / f"{name}.mp4"

    def adopted(self, job: Job) -> bool:
        """Whether the clip exists; one without a line in the manifest gets it."""
        if job.key in self.manifest.records:
            return True
        path = self.path(job)
        if not path.is_file():
            return False
        try:
            probe(path)
        except EvaluationError:  # the machine lost power before the file was on the disk
            path.unlink()
            return False
        self.record(job)
        return True

    def record(self, job: Job) -> Record:
        """Adds a clip whose file is in its place. Raises EvaluationError if the benchmark objects to it."""
        path, origin = self.path(job), self.origins[job.arm]
        facts = probe(path)
        record = Record(
            benchmark=self.plan.benchmark,
            arm=job.arm,
            prompt_id=job.prompt.id,
            prompt=job.prompt.text,
            prompt_used=job.prompt.words,
            seed=job.seed,
            run=job.run,
            index=job.index,
            file=path.relative_to(self.manifest.folder).as_posix(),
            fps=facts.fps,
            frames=facts.frames,
            width=facts.width,
            height=facts.height,
            seconds=facts.seconds,
            model=origin.model,
            lora=origin.lora,
            corrections=origin.corrections,
            graph=origin.graph,
            job=path.stem,
        )
        objection = self.options.check(record)
        if objection:
            raise EvaluationError(objection)
        self.manifest.add(record)
        return record

    def serve(self, source: Source) -> None:
        """One worker: takes jobs until there are none."""
        while (job := self.work.take()) is not None:
            back: Job | None = job
            first = True
            try:
                self.make(source, job)
                back = None
            except ServerGone as error:
                self.say(self.share(), f"{source.name}: {error}; waiting for it")
            except ClipFailed as error:
                back, first = self.again(job, source, error), False
            except _Ended:
                pass
            except BaseException as error:  # the main thread raises it
                self.work.end(error)
            finally:
                gone = back is job and first
                self.work.finish(back, first=first)
            if gone and not self.await_source(source):
                return

    def make(self, source: Source, job: Job) -> None:
        """Makes one clip and records it."""
        path = self.path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.part.mp4")
        label = f"{source.name}: {job.arm}, prompt {job.prompt.id}, run {job.run}"

        def progress(share: float) -> None:
            if self.work.ended:
                raise _Ended
            self.say(self.share(share), label)

        try:
            source.make(job, path.stem, self._attempts.get(job.key, 0), part, progress)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            size = part.stat().st_size
            with self._lock:
                part.replace(path)
                self.record(job)
                self.outcome.made += 1
                self.check_disk(size)
        finally:
            part.unlink(missing_ok=True)
        self.say(self.share(1.0), label)

    def share(self, of_this: float = 0.0) -> float:
        """Share of all clips that exist."""
        return min((self.total - self.work.left + of_this) / max(self.total, 1), 1.0)

    def again(self, job: Job, source: Source, error: ClipFailed) -> Job | None:
        """The job for another try; None once its tries are used up."""
        with self._lock:
            tries = self._attempts[job.key] = self._attempts.get(job.key, 0) + 1
            if tries <= self.options.retries:
                return job
            name = f"{job.arm}, prompt {job.prompt.id}, run {job.run}, clip {job.index}"
            self.outcome.failed[name] = str(error)
        self.say(self.share(), f"{source.name}: {job.arm}, prompt {job.prompt.id} given up: {error}")
        return None

    def check_disk(self, size: int) -> None:
        """Raises EvaluationError if the clips still to make will not fit on the disk."""
        free = shutil.disk_usage(self.manifest.folder).free
        need = size * self.work.left
        if need > free:
            raise EvaluationError(
                f"{self.work.left} clips of {size / 2**20:.1f} MiB need {need / 2**30:.1f} GiB, and"
                f" {free / 2**30:.1f} GiB"
                f" are free in {self.manifest.folder}; free some space and run the same command to resume."
            )

    def await_source(self, source: Source) -> bool:
        """Waits for a dead source; False if it stays dead for the whole patience or the run ends."""
        deadline, pause = time.monotonic() + self.options.patience, 0.5
        while time.monotonic() < deadline and not self.work.ended and self.work.left:
            if source.ready():
                return True
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(pause * 1.5, 10)
        return False


def generate(
    plan: Plan,
    manifest: Manifest,
    sources: Sequence[Source],
    options: Options | None = None,
    *,
    say: Say = lambda share, text: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Makes every clip of the plan that the manifest does not list, then the baselines'.

    Stops soon after `stopping()` is true; what runs on a server is collected by the next call. Raises
    EvaluationError if no source is left, a clip does not fit the benchmark, or the graph is refused.
    """
    with manifest.locked():
        for leftover in (manifest.folder / CLIPS).glob("**/.*.part*"):
            leftover.unlink()  # of a process that was killed; the lock is ours, so nobody writes it
        gone = manifest.missing_files()
        if gone:
            say(0.0, f"{len(gone)} clips were deleted and are made again")
            manifest.forget(gone)
        run = Run(plan, manifest, sources, options or Options(), say)
        if run.work.left:
            require_source(sources)
            work_through(run, sources, stopping)
        if plan.baselines and not run.outcome.stopped:
            run.outcome.made += make_baselines(plan, manifest, say)
        return run.outcome


def require_source(sources: Sequence[Source]) -> None:
    """Raises EvaluationError if nothing could work now; sources that are down while others work are waited
    for.
    """
    if not any(source.ready() for source in sources):
        names = ", ".join(source.name for source in sources)
        raise EvaluationError(
            f"no server answers at {names}; start ComfyUI there and run the same command again."
        )


def work_through(run: Run, sources: Sequence[Source], stopping: Callable[[], bool]) -> None:
    """Lets every source work until nothing is left.

    Raises what a worker raised, EvaluationError if all sources died.
    """
    threads = [threading.Thread(target=run.serve, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if stopping() and not run.work.ended:
            run.outcome.stopped = True
            run.work.end()
        next((thread for thread in threads if thread.is_alive()), threads[0]).join(0.2)
    if run.work.error is not None:
        raise run.work.error
    if run.work.left and not run.outcome.stopped:
        names = ", ".join(source.name for source in sources)
        raise EvaluationError(
            f"{run.work.left} clips are left and {names} no longer works; start it and run the same command"
            " to resume."
        )


def make_baselines(plan: Plan, manifest: Manifest, say: Say = lambda share, text: None) -> int:
    """Clips of the static and shuffled arms from the reference arm's; returns how many were made."""
    made = 0
    originals = [record for record in manifest.records.values() if record.arm == plan.reference]
    for number, original in enumerate(originals):
        for arm in BASELINES:
            if (arm, *original.key[1:]) in manifest.records:
                continue
            made += 1
            say(number / len(originals), f"baseline {arm}, prompt {original.prompt_id}")
            _derive(manifest, original, arm)
    return made


def _derive(manifest: Manifest, original: Record, arm: str) -> None:
    """One clip of a baseline."""
    name = digest(original.job, arm)
    path = manifest.folder / CLIPS / arm / f"run_{original.run:02}" / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        frames = read_frames(manifest.file_of(original))
        order = np.zeros(len(frames), int)
        if arm != STATIC:
            order = np.random.default_rng(original.seed).permutation(len(frames))
        part = path.with_name(f".{name}.part.mp4")
        try:
            write_video(part, frames[order], original.fps)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    facts = probe(path)
    values = {**vars(original), "arm": arm, "file": path.relative_to(manifest.folder).as_posix(), "job": name}
    values |= {"fps": facts.fps, "frames": facts.frames, "seconds": facts.seconds}
    values["graph"] = digest(original.graph, arm)
    manifest.add(Record(**values))
