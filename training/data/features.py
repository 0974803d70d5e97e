"""Features of frozen encoders for cached clips, made once and kept on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ...encoders import Teacher, VJEPATeacher, load_teacher
from ...encoders.need import ORACLE, TeacherNeed, cache_name
from ...methods.relational import motion_saliency
from ..console import ProgressLine, StopRequest, TrainingError, saving
from .batches import TrainingClips
from .clip import ClipInfo, Entry
from .feature_cache import FeatureCache
from .shards import files_of
from .sources import PREFIX, ContentHashes, identify
from .videos import VideoError, find_clips, windows


def prepare_features(
    clips: TrainingClips,
    needs: Sequence[TeacherNeed],
    cache: FeatureCache,
    *,
    videos: Sequence[str | os.PathLike[str]] = (),
    device: str | torch.device = "cpu",
    progress: ProgressLine | None = None,
    share: tuple[int, int] = (0, 1),
    stop: StopRequest | None = None,
) -> None:
    """Makes the features that are not on disk yet, until `stop` is asked. Pixels come from `videos` (found by
    content) or the cache's own `frames` folder. `share` (number, count): which part of the clips this process
    sees to, of how many.

    Raises TrainingError where a clip's video is not there or too short, and what loading a teacher
    raises.
    """
    for need in needs:
        name = cache_name(need)
        missing = [
            entry for entry in clips.entries[share[0] :: share[1]] if not cache.has(name, entry.identity)
        ]
        if not missing:
            continue
        frames = FrameSource(clips.folder, videos)
        for entry in missing:
            frames.check(entry)
        teacher = teacher_of(need, device)
        if need.context and not isinstance(teacher, VJEPATeacher):
            raise TrainingError(
                f"{need.name} has no predictor; predictive dynamics alignment needs vjepa2 or toy_vjepa2."
            )
        check_length(min(missing, key=lambda entry: entry.info.frames), need, teacher.patch[0])
        for done, entry in enumerate(missing):
            if stop is not None and stop.asked:
                return
            tensors = features_of(teacher, frames.read(entry), need, step_of(entry))
            with saving("a teacher's features", "those made so far are safe"):
                cache.write(name, entry.identity, tensors)
            if done == 0:
                says = progress if share[0] == 0 else None
                room_for(missing, cache.path(name, entry.identity), need.name, share[1], says)
            if progress:
                progress.show(
                    (done + 1) / len(missing), f"{need.name} features, {done + 1}/{len(missing)} clips"
                )


def room_for(
    missing: Sequence[Entry], first: Path, teacher: str, processes: int, progress: ProgressLine | None
) -> None:
    """Says what the features of `missing` take on disk, from those of the first one, in `first`. Raises
    TrainingError where the disk has no room for the rest; a file grows with its clip's pixels and frames."""
    pixels = [entry.info.frames * entry.info.width * entry.info.height for entry in missing]
    made = first.stat().st_size
    wanted, free = made * sum(pixels) / pixels[0] * processes, shutil.disk_usage(first.parent).free
    words = f"{teacher}'s features of {len(missing) * processes} clips take {in_bytes(wanted)}"
    if wanted - made > free:
        raise TrainingError(
            f"{words} in {first.parent}, which has {in_bytes(free)} left; give another folder with "
            f"--features, or --limit the clips."
        )
    if progress:
        progress.say(f"{words} in half precision; {first.parent} has {in_bytes(free)} left.")


def in_bytes(size: float) -> str:
    """A size in GiB, or in MiB below one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def teacher_of(need: TeacherNeed, device: str | torch.device = "cpu") -> Teacher:
    """The teacher that a need names. Raises TeacherError where it cannot be loaded."""
    if need.name == ORACLE:
        from .oracle import OracleTeacher

        return OracleTeacher(device)
    return load_teacher(need.name, need.source, device)


def check_length(entry: Entry, need: TeacherNeed, tubelet: int) -> None:
    """Raises TrainingError where a clip is too short for what is compared: two feature frames, or a whole
    window where a world model forecasts."""
    least = 1 + (need.window if need.context else 2 * tubelet)
    if entry.info.frames < least:
        raise TrainingError(
            f"{entry.info.source} has {entry.info.frames} frames; {need.name} needs clips of at least "
            f"{least} here."
        )


def step_of(entry: Entry) -> int:
    """Video frames that one latent frame of a clip stands for, the first one aside."""
    return max(1, (entry.info.frames - 1) // max(1, entry.shape[1] - 1))


def features_of(teacher: Teacher, video: Tensor, need: TeacherNeed, step: int) -> dict[str, Tensor]:
    """Cached tensors of one clip `3 T H W`: features `C F H W`, and for plain features the motion saliency `F
    H W`.

    The first video frame is left out, as it has a latent frame of its own, so that latent frame i + 1 stands
    for tubelets 2 i, 2 i + 1. A forecast is kept as its changes from latent frame to latent frame (`step`
    video frames), with the number of the latent frame from which the first one leads, after the one left out.
    """
    video = video[None, :, 1:]
    if need.context:
        changes, first = teacher.expected_changes(video, step, need.window, need.context)
        return {"features": changes[0].cpu(), "exact_first": torch.tensor(first)}
    saliency = motion_saliency(teacher.resized(video), teacher.patch)[0]
    return {"features": teacher.features(video)[0].cpu(), "exact_saliency": saliency.cpu()}


class FrameSource:
    """Finds the pixels of cached clips again, at the rate they were cached with."""

    def __init__(self, folder: Path, videos: Sequence[str | os.PathLike[str]]) -> None:
        """`folder`: of the cached clips; `videos`: folders of films, looked up by content. Raises VideoError
        where they hold no clip; films that cannot be read are passed over, and missed where they are
        needed."""
        self.folder = folder / "frames"
        known = {path.name.rpartition("-w")[0][-PREFIX:] for path, _ in files_of(folder)}
        contents = identify(find_clips(videos), ContentHashes(folder), known) if videos else {}
        self.paths = {content: path for path, content in contents.items() if isinstance(content, str)}

    def check(self, entry: Entry) -> None:
        """Raises TrainingError where the clip's video is not to be found."""
        if not self._kept(entry).is_file() and entry.info.source_hash not in self.paths:
            raise TrainingError(
                f"the video {entry.info.source} is needed for a teacher's features; give its folder with "
                f"--videos."
            )

    def _kept(self, entry: Entry) -> Path:
        return self.folder / entry.path.name

    def read(self, entry: Entry) -> Tensor:
        """`3 T H W` in [0, 1], exactly the frames that were encoded. Raises TrainingError where the cut
        does not match."""
        kept = self._kept(entry)
        if kept.is_file():
            return safetensors.torch.load_file(kept)["frames"].permute(3, 0, 1, 2).float() / 255
        info = entry.info
        try:
            for window in self._windows(self.paths[info.source_hash], info):
                if window.index == (info.window if info.start_frame is None else 0):
                    if abs(window.start - info.start) > 1e-3 or abs(window.fps - info.fps) > 0.01:
                        break
                    return torch.from_numpy(window.frames).permute(3, 0, 1, 2).float() / 255
        except VideoError as error:
            raise TrainingError(
                f"{info.source} cannot be cut as it was when it was cached ({error}); cache it again."
            ) from error
        raise TrainingError(f"{info.source} cannot be cut as it was when it was cached; cache it again.")

    def _windows(self, path: Path, info: ClipInfo) -> Iterator:
        return windows(
            path,
            frames=info.frames,
            width=info.width,
            height=info.height,
            fps=info.fps_limit,
            **({"limit": 0} if info.start_frame is None else {"limit": 1, "starts": [info.start_frame]}),
            cuts=info.cuts,
        )
