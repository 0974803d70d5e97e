"""Places in a film from which its clips are taken: `--extraction "uniform count=4"`, by musubi-tuner's
words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..console import TrainingError
from ..settings import Count, kind_and_settings
from .decoding import decode
from .left_out import VideoError
from .videos import thin


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Choice of a film's clips."""

    consecutive: ClassVar[bool] = False
    """Whether every clip begins where the one before ends: its number says where it is."""

    def taking(self, clip: Path, frames: int, fps: float, cuts: Collection[int]) -> dict[str, Any]:
        """Arguments of `windows` for clips of `frames` frames of one film, thinned to `fps`, none of which
        spans one of `cuts`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Head(Extraction):
    """Consecutive clips from the film's start."""

    consecutive = True
    count: Count = 1
    """Maximum number of clips."""

    def taking(self, clip: Path, frames: int, fps: float, cuts: Collection[int]) -> dict[str, Any]:
        return {"limit": self.count}


@dataclass(frozen=True, kw_only=True)
class All(Extraction):
    """Consecutive clips to the film's end."""

    consecutive = True

    def taking(self, clip: Path, frames: int, fps: float, cuts: Collection[int]) -> dict[str, Any]:
        return {"limit": 0}


@dataclass(frozen=True, kw_only=True)
class Slide(Extraction):
    """Clips that begin at equal distances from one another, to the film's (or scene's) end."""

    stride: Count | None = None
    """Frames from the start of one clip to that of the next; left out, half of a clip."""

    def taking(self, clip: Path, frames: int, fps: float, cuts: Collection[int]) -> dict[str, Any]:
        return {"limit": 0, "stride": self.stride or max(1, frames // 2)}


@dataclass(frozen=True, kw_only=True)
class Uniform(Extraction):
    """Clips at even distances over the film, the first at its start and the last at its end; they overlap
    where it is short."""

    count: Count = 4
    """Number of clips; fewer where the film has not that many places."""

    def taking(self, clip: Path, frames: int, fps: float, cuts: Collection[int]) -> dict[str, Any]:
        places = whole_places(clip, frames, fps, cuts)
        steps = max(1, self.count - 1)
        starts = sorted({places[step * (len(places) - 1) // steps] for step in range(self.count) if places})
        return {"limit": 0, "starts": starts} if starts else {"limit": 1}  # which says why there is no clip


KINDS: dict[str, type[Extraction]] = {"head": Head, "all": All, "uniform": Uniform, "slide": Slide}


def extraction_of(text: str | None, limit: int) -> Extraction:
    """The choice that `text` says ("uniform count=4"); without it `limit` consecutive clips from the start, 0
    for all. Raises TrainingError for an unknown kind or setting, and where both are given."""
    if text is None:
        return Head(count=limit) if limit else All()
    if limit != 1:
        raise TrainingError(
            f"windows is {limit} and extraction {text!r}; give one of them (windows {limit} is extraction "
            f"{f'head count={limit}' if limit else 'all'!r})."
        )
    return kind_and_settings(text, KINDS, "extraction")[1]


def whole_places(clip: Path, frames: int, fps: float, cuts: Collection[int]) -> list[int]:
    """Numbers of the frames, after thinning, with which `frames` whole ones of one scene begin. No picture is
    converted; where decoding breaks off, the places before (`windows` raises the error)."""
    places, run = [], 0
    try:
        for number, frame in enumerate(thin(decode(clip), fps)):
            run = 0 if frame.damaged else 1 if frame.jump or number in cuts else run + 1
            if run >= frames:
                places.append(number + 1 - frames)
    except VideoError:
        pass
    return places
