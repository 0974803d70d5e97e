"""Cached clips: the file one clip is kept in, and the frame pairs a motion predictor learns from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..methods.weights import WeightsError, WeightsInfo, load_weights, read_info, save_weights

KIND = "cached_clip"
AGAIN = "run the cache command again: it replaces damaged clips."


class DatasetError(ValueError):
    """A set of cached clips cannot be used. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What a cached clip's metadata says of where it came from."""

    source: str
    """The clip's file name, without its folder."""
    source_hash: str
    """Hash of the clip's content; windows of one clip share it."""
    key: str
    """Hash of everything that decides the content: source, caption, size, frames, rate, backbone. Equal key: nothing to do."""
    caption: str
    caption_from: str
    """"file" (a .txt beside the clip), "name" (the clip's file name) or "none" (no caption wanted)."""
    window: int
    """Which stretch of the clip this is, from 0."""
    last: bool
    """Whether it is the clip's last."""
    start: float
    """Where it starts in the clip, seconds."""
    frames: int
    width: int
    height: int
    fps: float
    """Frames per second that were encoded; 0 where the clip does not say."""
    fps_limit: float = 0.0
    """What the clip was thinned to at most before it was cut; 0 where it was not. Cutting the same window again needs it."""


@dataclass(frozen=True, kw_only=True)
class CachedClip:
    """One cached clip, read."""

    latent: Tensor
    """`C T H W`, in the model's scaling, in the dtype it was stored in."""
    cond: Tensor
    """The prompt's pooled embedding, `D`: the mean of its tokens over the attention mask."""
    tokens: Tensor | None
    """The prompt's tokens, `L D`, those under the mask; None where the cache was made without them."""
    info: ClipInfo
    latent_space: str


def write_clip(
    path: str | os.PathLike[str], latent: Tensor, cond: Tensor, info: ClipInfo, latent_space: str, tokens: Tensor | None = None
) -> None:
    """Writes one clip, all or nothing. Shapes as in `CachedClip`. Raises OSError."""
    tensors = {"latent": latent, "cond": cond} | ({} if tokens is None else {"tokens": tokens})
    config = {"channels": latent.shape[0], "shape": list(latent.shape), "cond_dim": cond.shape[0]}
    save_weights(path, tensors, WeightsInfo(kind=KIND, latent_space=latent_space, config=config, recipe=asdict(info)))


def read_clip(path: str | os.PathLike[str]) -> CachedClip:
    """Reads one clip whole. Raises WeightsError where the file is missing, damaged or something else, and DatasetError where
    its metadata or tensors are not those of this version."""
    tensors, info = load_weights(path, KIND)
    origin = clip_info(path, info)
    if missing := {"latent", "cond"} - tensors.keys():
        raise DatasetError(f"{Path(path).name} holds no {' and no '.join(sorted(missing))}; {AGAIN}")
    return CachedClip(
        latent=tensors["latent"],
        cond=tensors["cond"],
        tokens=tensors.get("tokens"),
        info=origin,
        latent_space=info.latent_space,
    )


def clip_info(path: str | os.PathLike[str], info: WeightsInfo) -> ClipInfo:
    """The metadata of a file of this kind. Raises DatasetError where fields are missing or unknown."""
    known = {field.name for field in fields(ClipInfo)}
    needed = {field.name for field in fields(ClipInfo) if field.default is MISSING}
    missing = sorted(needed - info.recipe.keys()) + sorted({"channels", "shape", "cond_dim"} - info.config.keys())
    unknown = sorted(info.recipe.keys() - known)
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has an unknown {', '.join(unknown)}"] * bool(unknown)
        raise DatasetError(f"{Path(path).name} was cached by another version (its metadata {' and '.join(wrong)}); {AGAIN}")
    return ClipInfo(**info.recipe)


def read_clip_info(path: str | os.PathLike[str]) -> ClipInfo | None:
    """The metadata of a finished clip; None where there is none (no file, or a damaged one, which is then written anew)."""
    try:
        info = read_info(path)
        return clip_info(path, info) if info.kind == KIND else None
    except (WeightsError, DatasetError):
        return None


class Clips:
    """Latents of many clips and their prompts' pooled embeddings. Frames are read as they are asked for.

    Made by `from_folder` or `from_tensors`. All clips share the latent space, the channels, the height and width, and the
    width of the prompt embedding; lengths may differ.
    """

    latent_space: str
    channels: int
    size: tuple[int, int]
    """(height, width) of the latent."""
    cond_dim: int
    lengths: list[int]
    """Latent frames per clip."""
    names: list[str]
    groups: list[str]
    """Clips with the same group come from one film, and belong on the same side of a validation split."""

    def __init__(
        self,
        *,
        latents: Sequence[Tensor | Path],
        shapes: Sequence[Sequence[int]],
        conds: Tensor,
        names: Sequence[str],
        groups: Sequence[str],
        latent_space: str,
        keys: Sequence[str] = (),
    ) -> None:
        """`latents`: tensors `C T H W`, or the files they lie in; `conds` `N D`; `keys`: what decided each clip's content, where
        it is known. Raises DatasetError where shapes disagree."""
        for name, shape in zip(names, shapes):
            if shape[0] != shapes[0][0] or tuple(shape[2:]) != tuple(shapes[0][2:]):
                sizes = f"{name} is {_words(shape)} and {names[0]} is {_words(shapes[0])}"
                raise DatasetError(f"{sizes}; one training needs one size: cache the clips again.")
        self.latents = list(latents)
        self.conds = conds
        self.names, self.groups, self.latent_space = list(names), list(groups), latent_space
        self.keys = list(keys)
        self.lengths = [shape[1] for shape in shapes]
        self.channels, self.size, self.cond_dim = shapes[0][0], (shapes[0][2], shapes[0][3]), conds.shape[1]

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], memory_gb: float = 4.0) -> Clips:
        """Every clip the cache command left in `folder`. Latents stay in memory where all of them take at most `memory_gb`.

        Raises DatasetError where the folder is missing or holds no clip, a file is damaged, or clips do not fit together.
        """
        folder = Path(folder)
        hint = f"make it with: latent-physics cache --videos YOUR_CLIPS --out {folder}"
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; {hint}")
        paths, infos = [], []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                info = read_info(path)
            except WeightsError as error:
                raise DatasetError(f"{str(error).rstrip('.')}; {AGAIN}") from error
            if info.kind == KIND:
                clip_info(path, info)
                paths.append(path)
                infos.append(info)
        if not paths:
            raise DatasetError(f"{folder} holds no cached clip; {hint}")
        spaces = sorted({info.latent_space for info in infos})
        widths = sorted({info.config["cond_dim"] for info in infos})
        if len(spaces) > 1 or len(widths) > 1:
            what = f"latent spaces {' and '.join(spaces)}" if len(spaces) > 1 else f"prompt embeddings of widths {widths}"
            raise DatasetError(f"{folder} mixes {what}; keep one folder for each backbone.")
        size = sum(path.stat().st_size for path in paths)
        latents: list[Tensor | Path] = list(paths)
        conds = []
        for index, path in enumerate(paths):
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    conds.append(file.get_tensor("cond").float())
                    if size <= memory_gb * 2**30:
                        latents[index] = file.get_tensor("latent")
            except (safetensors.SafetensorError, OSError) as error:
                raise DatasetError(f"{path.name} is damaged ({error}); {AGAIN}") from error
        clips = cls(
            latents=latents,
            shapes=[info.config["shape"] for info in infos],
            conds=torch.stack(conds),
            names=[path.name for path in paths],
            groups=[info.recipe["source_hash"] for info in infos],
            latent_space=spaces[0],
            keys=[info.recipe["key"] for info in infos],
        )
        clips.check_finite()
        return clips

    @classmethod
    def from_tensors(
        cls,
        latents: Sequence[Tensor],
        conds: Sequence[Tensor] | Tensor | None = None,
        latent_space: str = "toy",
        cond_dim: int = 4096,
    ) -> Clips:
        """Clips already in memory: latents `C T H W` each, pooled prompts `D` each (None: zeros of width `cond_dim`).

        Raises DatasetError where there is no clip, a latent has another rank, or a value is not finite.
        """
        latents = list(latents)
        if not latents:
            raise DatasetError("There is no latent to train on.")
        for index, latent in enumerate(latents):
            if latent.ndim != 4:
                raise DatasetError(f"latent {index} has shape {tuple(latent.shape)}; it must be C T H W.")
        conds = torch.zeros(len(latents), cond_dim) if conds is None else conds
        conds = torch.stack([cond.detach().float().cpu() for cond in conds])
        if len(conds) != len(latents):
            raise DatasetError(f"There are {len(latents)} latents and {len(conds)} prompt embeddings; one for each is needed.")
        clips = cls(
            latents=[latent.detach().cpu() for latent in latents],
            shapes=[latent.shape for latent in latents],
            conds=conds,
            names=[f"latent {index}" for index in range(len(latents))],
            groups=[str(index) for index in range(len(latents))],
            latent_space=latent_space,
        )
        clips.check_finite()
        return clips

    def __len__(self) -> int:
        return len(self.latents)

    def latent(self, clip: int) -> Tensor:
        """One clip's latent, `C T H W` float32."""
        return self.frames(clip, range(self.lengths[clip])).transpose(0, 1)

    def frames(self, clip: int, indices: Sequence[int]) -> Tensor:
        """Some latent frames of one clip, `len(indices) C H W` float32."""
        latent = self.latents[clip]
        if isinstance(latent, Tensor):
            return latent[:, list(indices)].transpose(0, 1).float()
        try:
            with safetensors.safe_open(latent, framework="pt") as file:
                stored = file.get_slice("latent")
                return torch.stack([stored[:, i : i + 1].squeeze(1) for i in indices]).float()
        except (safetensors.SafetensorError, OSError) as error:
            raise DatasetError(f"{latent.name} can no longer be read ({error}); run the cache command again.") from error

    def check_finite(self) -> None:
        """Raises DatasetError where a clip held in memory has a value that is not finite."""
        for name, latent in zip(self.names, self.latents):
            if isinstance(latent, Tensor) and not torch.isfinite(latent).all():
                raise DatasetError(f"{name} holds values that are not finite; cache it again, in float32.")

    def fingerprint(self) -> str:
        """A hash of which clips these are and how they were cached; a resumed run must go on with the same."""
        digest = hashlib.blake2b(digest_size=8)
        for name, length in zip(self.names, self.lengths):
            digest.update(f"{name}:{length}\n".encode())
        digest.update("\n".join([f"{self.latent_space} {self.channels} {self.size} {self.cond_dim}", *self.keys]).encode())
        return digest.hexdigest()

    def split(self, fraction: float, seed: int) -> tuple[list[int], list[int]]:
        """(training, validation) clip indices; a `fraction` of the films, at least one where fraction > 0, is held out.

        All windows of a film go to the same side. Raises DatasetError where nothing would be left to train on.
        """
        films = sorted(set(self.groups))
        held = max(1, round(fraction * len(films))) if fraction > 0 else 0
        if held >= len(films):
            hint = "cache more, or hold none out (validation 0)"
            raise DatasetError(f"Of {len(films)} clips {held} would be held out, none left to train on: {hint}.")
        order = np.random.default_rng(seed).permutation(len(films))
        chosen = {films[index] for index in order[:held]}
        return [i for i, g in enumerate(self.groups) if g not in chosen], [i for i, g in enumerate(self.groups) if g in chosen]


def _words(shape: Sequence[int]) -> str:
    """A latent's shape for a message."""
    channels, _, height, width = shape
    return f"{channels} channels at {height}x{width}"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A batch of frame pairs."""

    frame: Tensor
    """z[i], `N C H W` float32."""
    before: Tensor | None
    """z[i-1], `N C H W`; None for a predictor of order 1."""
    after: Tensor
    """z[i+lag], `N C H W`."""
    cond: Tensor
    """Pooled prompt embedding, `N D`."""

    def to(self, device: str | torch.device) -> Pairs:
        """The same batch on another device."""
        before = None if self.before is None else self.before.to(device)
        return Pairs(frame=self.frame.to(device), before=before, after=self.after.to(device), cond=self.cond.to(device))


class PairSet:
    """Every (clip, i) of some clips for which z[i+lag], and z[i-1] where order is 2, exist (LaMo eq 1)."""

    def __init__(self, clips: Clips, chosen: Sequence[int], lag: int, order: int = 1) -> None:
        """Raises DatasetError where no clip is long enough."""
        self.clips, self.chosen, self.lag, self.order = clips, list(chosen), lag, order
        counts = [max(0, clips.lengths[clip] - lag - (order - 1)) for clip in self.chosen]
        self.ends = np.cumsum(counts)
        self._epoch: tuple[tuple[int, int], np.ndarray] | None = None
        if not len(self.ends) or self.ends[-1] == 0:
            longest = max((clips.lengths[clip] for clip in self.chosen), default=0)
            need = f"lag {lag} and order {order} need at least {lag + order}"
            raise DatasetError(f"The longest clip has {longest} latent frames; {need}: cache longer clips.")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def batch(self, indices: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs with these numbers, 0 .. len - 1."""
        frames, before, after, cond = [], [], [], []
        for index in np.asarray(indices):
            place = int(np.searchsorted(self.ends, index, side="right"))
            first = int(index - (self.ends[place - 1] if place else 0)) + self.order - 1
            clip = self.chosen[place]
            wanted = [first, first + self.lag] + ([first - 1] if self.order == 2 else [])
            read = self.clips.frames(clip, wanted)
            frames.append(read[0])
            after.append(read[1])
            cond.append(self.clips.conds[clip])
            if self.order == 2:
                before.append(read[2])
        return Pairs(
            frame=torch.stack(frames),
            before=torch.stack(before) if before else None,
            after=torch.stack(after),
            cond=torch.stack(cond),
        )

    def at_step(self, step: int, size: int, seed: int) -> Pairs:
        """The batch of one training step: consecutive pairs of an endless sequence of shuffled epochs.

        A function of its arguments alone, so a resumed run sees what an uninterrupted one would have seen.
        """
        return self.batch([self._shuffled(number, seed) for number in range(step * size, (step + 1) * size)])

    def _shuffled(self, number: int, seed: int) -> int:
        epoch, place = divmod(number, len(self))
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            self._epoch = ((seed, epoch), np.random.default_rng((seed, epoch)).permutation(len(self)))
        return int(self._epoch[1][place])

    def spread(self, count: int) -> Pairs:
        """At most `count` pairs, evenly spread over all of them: a fixed validation batch."""
        count = min(count, len(self))
        return self.batch(np.linspace(0, len(self) - 1, count).round().astype(int))


def described(settings: Mapping[str, object]) -> str:
    """A hash of settings, for a clip's `key`."""
    text = "\n".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
