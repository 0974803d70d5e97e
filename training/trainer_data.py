"""What a fine-tune reads: cached clips in buckets of one size, their prompts, and teachers' features made once and kept on
disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..methods.relational import motion_saliency
from ..methods.weights import WeightsError, read_info
from .dataset import KIND, ClipInfo, DatasetError, clip_info, read_clip
from .objectives import TeacherNeed, seen_of
from .run import ProgressLine, StopRequest, saving
from .teachers import TOY_WEIGHTS, FeatureCache, Teacher, VJEPATeacher, load_teacher
from .videos import VideoError, content_hash, find_clips, windows

FRAMES_KIND = "clip_frames"


class TrainingDataError(ValueError):
    """The training data cannot be used. The message is one sentence for the user."""


@dataclass(kw_only=True)
class Batch:
    """One micro-batch, all of one size."""

    names: list[str]
    latent: Tensor
    """`B C T H W` float32."""
    tokens: Tensor
    """Prompt tokens `B L D`, filled up with zeros."""
    mask: Tensor
    """`B L`, True on tokens."""
    features: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Teachers' tensors by `TeacherNeed.key`, each with a batch dimension."""

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        features = {key: {name: value.to(device) for name, value in tensors.items()} for key, tensors in self.features.items()}
        return Batch(
            names=self.names,
            latent=self.latent.to(device),
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            features=features,
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cached clip on disk."""

    path: Path
    shape: tuple[int, int, int, int]
    """Of the latent, `C T H W`."""
    info: ClipInfo

    @property
    def identity(self) -> str:
        """What the clip's pixels are: its content hash and how it was cut."""
        i = self.info
        return f"{i.source_hash} window {i.window} {i.width}x{i.height}x{i.frames} at {i.start:.3f}"


class TrainingClips:
    """Cached clips. Which clips a micro-batch holds is a function of the seed and the micro-batch's number alone."""

    def __init__(
        self, folder: str | os.PathLike[str], *, batch: int, seed: int, held_out: float = 0.0, limit: int | None = None
    ) -> None:
        """Looks through `folder` (from `latent-physics cache --tokens`). Raises TrainingDataError where it cannot be trained on.

        batch: clips in a micro-batch; held_out: share of the films kept for validation; limit: at most so many clips.
        """
        self.folder = Path(folder)
        self.batch, self.seed = batch, seed
        self.entries = self._scan(limit)
        self.latent_space = read_info(self.entries[0].path).latent_space
        self.training, self.validation = self._split(held_out)
        self.buckets = self._buckets()
        self._epoch: tuple[int, list[list[int]]] | None = None

    def _scan(self, limit: int | None) -> list[Entry]:
        if not self.folder.is_dir():
            raise TrainingDataError(
                f"{self.folder} is not a folder; make it with: "
                f"latent-physics cache --tokens --videos YOUR_CLIPS --out {self.folder}"
            )
        entries, spaces = [], set()
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                info = read_info(path)
            except WeightsError as error:
                raise TrainingDataError(f"{error} Run the cache command again: it replaces damaged clips.") from error
            if info.kind == KIND:
                try:
                    origin = clip_info(path, info)
                except DatasetError as error:
                    raise TrainingDataError(str(error)) from error
                entries.append(Entry(path=path, shape=tuple(info.config["shape"]), info=origin))
                spaces.add(info.latent_space)
        if not entries:
            raise TrainingDataError(
                f"{self.folder} holds no cached clip; make some with: "
                f"latent-physics cache --tokens --videos YOUR_CLIPS --out {self.folder}"
            )
        if len(spaces) > 1:
            raise TrainingDataError(
                f"{self.folder} mixes latent spaces {' and '.join(sorted(spaces))}; keep one folder for each backbone."
            )
        return entries[:limit]

    def _split(self, held_out: float) -> tuple[list[int], list[int]]:
        """Clip numbers for training and validation; windows of one film stay together."""
        films = sorted({entry.info.source_hash for entry in self.entries})
        count = max(1, round(held_out * len(films))) if held_out > 0 else 0
        if count >= len(films):
            raise TrainingDataError(
                f"the clips come from {len(films)} film(s); holding {count} out for validation leaves none to train on: cache "
                "more."
            )
        chosen = {films[index] for index in np.random.default_rng(self.seed).permutation(len(films))[:count]}
        held = [index for index, entry in enumerate(self.entries) if entry.info.source_hash in chosen]
        return [index for index in range(len(self.entries)) if index not in set(held)], held

    def _buckets(self) -> dict[tuple[int, ...], list[int]]:
        """Training clips by the shape of their latent."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index in self.training:
            buckets.setdefault(self.entries[index].shape, []).append(index)
        return dict(sorted(buckets.items()))

    def describe(self) -> str:
        """One line for the screen."""
        sizes = ", ".join(f"{len(clips)} of {shape[1]}x{shape[2]}x{shape[3]}" for shape, clips in self.buckets.items())
        return f"{len(self.training)} clips to train on ({sizes} latents), {len(self.validation)} for validation."

    def fingerprint(self) -> str:
        """Which clips these are; a resumed run must go on with the same."""
        from .dataset import described

        return described({entry.path.name: entry.info.key for entry in self.entries})

    def chosen(self, number: int) -> list[int]:
        """Clip numbers of micro-batch `number` of an endless sequence of shuffled epochs.

        Every epoch takes every clip at least once; a bucket whose size is no multiple of the batch repeats a few.
        """
        count = sum(-(-len(clips) // self.batch) for clips in self.buckets.values())
        epoch, place = divmod(number, count)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for clips in self.buckets.values():
            order = [clips[index] for index in rng.permutation(len(clips))]
            while len(order) % self.batch:
                order.append(clips[int(rng.integers(len(clips)))])
            batches += [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def read(self, indices: Sequence[int], needs: Sequence[TeacherNeed] = (), cache: FeatureCache | None = None) -> Batch:
        """The clips with these numbers, all of one shape, with the features that `needs` names. Raises TrainingDataError."""
        latents, tokens, features = [], [], {need.key: [] for need in needs}
        for index in indices:
            entry = self.entries[index]
            try:
                clip = read_clip(entry.path)
                for need in needs:
                    features[need.key].append(cache.read(cache_name(need), entry.identity))
            except (WeightsError, DatasetError, OSError, safetensors.SafetensorError) as error:
                raise TrainingDataError(
                    f"{entry.path.name} or its features cannot be read ({error}); run the command again to mend them."
                ) from error
            if clip.tokens is None:
                raise TrainingDataError(
                    f"{entry.path.name} was cached without its prompt's tokens; run latent-physics cache again with --tokens."
                )
            if not torch.isfinite(clip.latent).all():
                raise TrainingDataError(
                    f"{entry.path.name} holds values that are not finite; delete it and cache it again in float32."
                )
            latents.append(clip.latent.float())
            tokens.append(clip.tokens.float())
        padded, mask = pad_tokens(tokens)
        stacked = {
            key: {name: torch.stack([item[name] for item in items]) for name in items[0]} for key, items in features.items()
        }
        names = [self.entries[index].path.name for index in indices]
        return Batch(names=names, latent=torch.stack(latents), tokens=padded, mask=mask, features=stacked)


def pad_tokens(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens `L_i D` -> `B L D` and mask `B L`. Empty prompts (no token) are allowed."""
    longest = max(1, *(len(item) for item in tokens))
    padded = torch.stack([torch.nn.functional.pad(item, (0, 0, 0, longest - len(item))) for item in tokens])
    mask = torch.stack([torch.arange(longest) < len(item) for item in tokens])
    return padded, mask


# -- teachers' features --------------------------------------------------------------------------------------------------


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
    """Makes the features that are not on disk yet, until `stop` is asked. Pixels come from `videos` (found by content) or the
    cache's own `frames` folder. `share` (number, count): which part of the clips this process sees to, of how many.

    Raises TrainingDataError where a clip's video is not there or too short, and what loading a teacher raises.
    """
    for need in needs:
        name = cache_name(need)
        missing = [entry for entry in clips.entries[share[0] :: share[1]] if not cache.has(name, entry.identity)]
        if not missing:
            continue
        frames = FrameSource(clips.folder, videos)
        for entry in missing:
            frames.check(entry)
        teacher = load_teacher(need.name, need.source, device)
        if need.context and not isinstance(teacher, VJEPATeacher):
            raise TrainingDataError(f"{need.name} has no predictor; predictive dynamics alignment needs vjepa2 or toy_vjepa2.")
        check_length(min(missing, key=lambda entry: entry.info.frames), need, teacher.patch[0])
        for done, entry in enumerate(missing):
            if stop is not None and stop.asked:
                return
            tensors = features_of(teacher, frames.read(entry), need)
            with saving("a teacher's features", "those made so far are safe"):
                cache.write(name, entry.identity, tensors)
            if progress:
                progress.show((done + 1) / len(missing), f"{need.name} features, {done + 1}/{len(missing)} clips")


def check_length(entry: Entry, need: TeacherNeed, tubelet: int) -> None:
    """Raises TrainingDataError where a clip is too short for what is compared: two feature frames, and one seen before them
    where they are predicted."""
    found, least = (entry.info.frames - 1) // tubelet, 3 if need.context else 2
    if found < least:
        raise TrainingDataError(
            f"{entry.info.source} has {entry.info.frames} frames; {need.name} needs clips of at least {1 + least * tubelet} here."
        )


def cache_name(need: TeacherNeed) -> str:
    """What a need's features are cached under: the weights' content where they are on this disk, their name otherwise."""
    path = Path(need.source) if need.source else TOY_WEIGHTS / f"{need.name}.safetensors"
    return f"{need.name}, {weights_name(path) or need.source or 'default'}, context {need.context:g}"


def weights_name(path: Path) -> str | None:
    """The content of a weights file, or of the weights and the configuration in a folder; None where there is neither."""
    files = [path] if path.is_file() else [*sorted(path.glob("*.safetensors")), *sorted(path.glob("config.json"))]
    stats = [(file, file.stat()) for file in files]
    return "+".join(_content_of(file, stat.st_mtime_ns, stat.st_size) for file, stat in stats) or None


@lru_cache(maxsize=64)
def _content_of(path: Path, changed: int, size: int) -> str:
    """`content_hash`, read once for a file that does not change: every batch asks for it."""
    return content_hash(path)


def features_of(teacher: Teacher, video: Tensor, need: TeacherNeed) -> dict[str, Tensor]:
    """What is kept of one clip `3 T H W`: features `C F H W`, and for plain features the motion saliency `F H W`.

    The first video frame is left out, as it has a latent frame of its own, so that latent frame i + 1 stands for tubelets
    2 i, 2 i + 1.
    """
    video = video[None, :, 1:]
    if need.context:
        frames = video.shape[2] // teacher.patch[0]
        seen = seen_of(frames, need.context)
        return {"features": teacher.predicted(video, seen)[0].cpu(), "exact_seen": torch.tensor(seen)}
    saliency = motion_saliency(teacher.resized(video), teacher.patch)[0]
    return {"features": teacher.features(video)[0].cpu(), "exact_saliency": saliency.cpu()}


class FrameSource:
    """Finds the pixels of cached clips again, at the rate they were cached with."""

    def __init__(self, folder: Path, videos: Sequence[str | os.PathLike[str]]) -> None:
        self.folder = folder / "frames"
        self.paths = {content_hash(path): path for path in find_clips(videos)} if videos else {}

    def check(self, entry: Entry) -> None:
        """Raises TrainingDataError where the clip's video is not to be found."""
        if not self._kept(entry).is_file() and entry.info.source_hash not in self.paths:
            raise TrainingDataError(
                f"the video {entry.info.source} is needed for a teacher's features; give its folder with --videos."
            )

    def _kept(self, entry: Entry) -> Path:
        return self.folder / entry.path.name

    def read(self, entry: Entry) -> Tensor:
        """`3 T H W` in [0, 1], exactly the frames that were encoded. Raises TrainingDataError where the cut does not match."""
        kept = self._kept(entry)
        if kept.is_file():
            return safetensors.torch.load_file(kept)["frames"].permute(3, 0, 1, 2).float() / 255
        info = entry.info
        try:
            for window in self._windows(self.paths[info.source_hash], info):
                if window.index == info.window:
                    if abs(window.start - info.start) > 1e-3 or abs(window.fps - info.fps) > 0.01:
                        break
                    return torch.from_numpy(window.frames).permute(3, 0, 1, 2).float() / 255
        except VideoError as error:
            raise TrainingDataError(
                f"{info.source} cannot be cut as it was when it was cached ({error}); cache it again."
            ) from error
        raise TrainingDataError(f"{info.source} cannot be cut as it was when it was cached; cache it again.")

    def _windows(self, path: Path, info: ClipInfo) -> Iterator:
        return windows(path, frames=info.frames, width=info.width, height=info.height, fps=info.fps_limit, limit=0)
