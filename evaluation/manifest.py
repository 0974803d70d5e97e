"""The manifest: one JSON line per clip, appended after the clip's file is in its place.

A line is the only proof that a clip is done. Killing the process between a file and its line leaves a file
whose name holds the digest of its job; the next run recognises it and writes the line. Killing it inside a
line leaves a torn last line, which is cut.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..methods.weights import write_atomically
from .errors import EvaluationError
from .files import append_lines, whole_lines

FILE = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip that exists."""

    benchmark: str
    """Name of the benchmark."""
    arm: str
    """Name of the arm: plain, lamo, ..."""
    prompt_id: str
    """The benchmark's own number or name of the prompt."""
    prompt: str
    """The benchmark's prompt."""
    prompt_used: str
    """The prompt given to the model, upsampled perhaps."""
    seed: int
    """Seed of the noise; equal in all arms."""
    run: int
    """Repetition of the whole benchmark, from 1."""
    index: int
    """Number of the clip among those of one prompt in one run, from 0."""
    file: str
    """Path of the video, relative to the evaluation's folder."""
    fps: float
    """Frames per second."""
    frames: int
    """Number of frames."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seconds: float
    """Duration of the container."""
    model: str
    """Model files or repository."""
    lora: tuple[str, ...]
    """LoRA files and strengths."""
    corrections: tuple[str, ...]
    """Nodes that correct the sampling, with their settings."""
    graph: str
    """Hash of the arm's graph, prompt and seed left out."""
    job: str
    """Digest of everything the clip depends on."""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Identity of the clip within its benchmark."""
        return self.arm, self.prompt_id, self.run, self.index


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of JSON values, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Manifest:
    """The clips of one evaluation folder."""

    def __init__(self, folder: str | os.PathLike[str], benchmark: str) -> None:
        """Reads `folder`/manifest.jsonl, cutting a torn last line.

        Raises EvaluationError for another benchmark's manifest, a clip listed twice, and lines that are no
        records.
        """
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self.benchmark = benchmark
        self.records: dict[tuple[str, str, int, int], Record] = {}
        for number, line in enumerate(whole_lines(self.path), 1):
            self._take(self._parse(line, number))

    def _parse(self, line: str, number: int) -> Record:
        try:
            values = json.loads(line)
            values = {field.name: values[field.name] for field in fields(Record)}
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"line {number} of {self.path} is no record of a clip ({error!r:.80})."
            ) from error
        return Record(
            **{**values, "lora": tuple(values["lora"]), "corrections": tuple(values["corrections"])}
        )

    def _take(self, record: Record) -> None:
        if record.benchmark != self.benchmark:
            raise EvaluationError(
                f"{self.path} holds clips of {record.benchmark}, not of {self.benchmark}: use a folder for"
                " each benchmark."
            )
        if record.key in self.records:
            arm, prompt, run, index = record.key
            raise EvaluationError(
                f"{self.path} lists clip {index} of prompt {prompt}, arm {arm}, run {run} twice."
            )
        self.records[record.key] = record

    def add(self, record: Record) -> None:
        """Appends a clip and waits until it is on the disk.

        Raises EvaluationError for one that is listed already, OSError.
        """
        self._take(record)
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        append_lines(self.path, line)

    def file_of(self, record: Record) -> Path:
        """Where the record's video lies."""
        return self.folder / record.file

    def missing_files(self) -> list[Record]:
        """Records whose video is gone."""
        return [record for record in self.records.values() if not self.file_of(record).is_file()]

    def forget(self, gone: list[Record]) -> None:
        """Takes records out of the manifest, so that their clips are made again."""
        for record in gone:
            del self.records[record.key]
        text = "".join(
            json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in self.records.values()
        )
        write_atomically(self.path, text.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from writing to the same folder. Raises EvaluationError if one does already.

        The system releases the lock of a killed process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise EvaluationError(
                f"another process generates into {self.folder}; wait for it or stop it."
            ) from error
        with lock:
            yield
