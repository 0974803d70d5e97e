"""Cached clips: the file one clip is kept in, and the frame pairs a motion predictor learns from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ...methods.weights import Span, WeightsError, WeightsInfo, load_weights, read_info, save_weights
from ..console import TrainingError

KIND = "cached_clip"
FIRST = "first."
"""Prefix of the names of the first frame's tensors."""
MASK = "mask"
RECACHE_HINT = "run the cache command again: it replaces damaged clips."


class DatasetError(TrainingError):
    """Cached clips cannot be used: a clip that raises it is encoded again, where any other TrainingError ends
    the run."""


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """Origin of a cached clip, kept in its metadata."""

    source: str
    """The clip's file name, without its folder."""
    source_hash: str
    """Hash of the clip's content; windows of one clip share it."""
    key: str
    """Hash of everything that decides the content: source, caption, size, frames, rate, backbone. Equal key:
    nothing to do."""
    caption: str
    caption_from: str
    """"file" (a .txt beside the clip), "name" (the clip's file name) or "none" (no caption wanted)."""
    window: int
    """Number of the window within the clip, from 0."""
    last: bool
    """Whether it is the clip's last."""
    start: float
    """Start of the window within the clip, in seconds."""
    frames: int
    width: int
    height: int
    fps: float
    """Frames per second that were encoded; 0 where the clip does not say."""
    fps_limit: float = 0.0
    """Maximum rate to which the clip was thinned before it was cut; 0 where it was not. Cutting the same
    window again needs it."""
    cuts: Sequence[int] = ()
    """Numbers of the clip's frames, after thinning, with which scenes begin, where they were looked for.
    Cutting the same window again needs them."""
    start_frame: int | None = None
    """Number of the window's first frame, after thinning, where windows are not consecutive."""


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
    first: dict[str, Tensor] = field(default_factory=dict)
    """The first frame for image-to-video models: "latent" `C T H W` and "vision" `N D`, as in
    `FirstFrame`; empty where the cache was made without."""
    mask: Tensor | None = None
    """Weight of the denoising error, `T H W` in [0, 1]; None where the cache was made without masks."""


def write_clip(
    path: str | os.PathLike[str],
    latent: Tensor,
    cond: Tensor,
    info: ClipInfo,
    latent_space: str,
    tokens: Tensor | None = None,
    first: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
) -> None:
    """Writes one clip, all or nothing. Shapes as in `CachedClip`. Raises OSError."""
    tensors = {"latent": latent, "cond": cond} | ({} if tokens is None else {"tokens": tokens})
    tensors |= {FIRST + name: value for name, value in (first or {}).items()}
    tensors |= {} if mask is None else {MASK: mask}
    config = {"channels": latent.shape[0], "shape": list(latent.shape), "cond_dim": cond.shape[0]}
    config |= {"first": sorted(first)} if first else {}
    config |= {} if mask is None else {MASK: True}
    save_weights(
        path, tensors, WeightsInfo(kind=KIND, latent_space=latent_space, config=config, recipe=asdict(info))
    )


def read_clip(path: str | os.PathLike[str], span: Span | None = None) -> CachedClip:
    """Reads one clip whole; `span`: of one in a shard, as in `Entry`. Raises WeightsError where the file is
    missing, damaged or something else, and DatasetError where its metadata or tensors are not those of this
    version."""
    tensors, info = load_weights(path, KIND, span)
    origin = clip_info(path, info)
    if missing := {"latent", "cond"} - tensors.keys():
        raise DatasetError(f"{Path(path).name} holds no {' and no '.join(sorted(missing))}; {RECACHE_HINT}")
    latent, mask = tensors["latent"], tensors.get(MASK)
    if mask is not None and mask.shape != latent.shape[1:]:
        raise DatasetError(
            f"{Path(path).name} holds a mask {tuple(mask.shape)} of a latent {tuple(latent.shape)}; "
            f"{RECACHE_HINT}"
        )
    return CachedClip(
        latent=latent,
        cond=tensors["cond"],
        tokens=tensors.get("tokens"),
        info=origin,
        latent_space=info.latent_space,
        mask=mask,
        first={name.removeprefix(FIRST): value for name, value in tensors.items() if name.startswith(FIRST)},
    )


def clip_info(path: str | os.PathLike[str], info: WeightsInfo) -> ClipInfo:
    """The metadata of a file of this kind. Raises DatasetError where fields are missing or unknown."""
    known = {field.name for field in fields(ClipInfo)}
    needed = {field.name for field in fields(ClipInfo) if field.default is MISSING}
    missing = sorted(needed - info.recipe.keys()) + sorted(
        {"channels", "shape", "cond_dim"} - info.config.keys()
    )
    unknown = sorted(info.recipe.keys() - known)
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [
            f"has an unknown {', '.join(unknown)}"
        ] * bool(unknown)
        raise DatasetError(
            f"{Path(path).name} was cached by another version (its metadata {' and '.join(wrong)}); "
            f"{RECACHE_HINT}"
        )
    return ClipInfo(**info.recipe)


def read_clip_info(path: str | os.PathLike[str]) -> ClipInfo | None:
    """The metadata of a finished clip; None where there is none (no file, or a damaged one, which is then
    written anew)."""
    try:
        info = read_info(path)
        return clip_info(path, info) if info.kind == KIND else None
    except (WeightsError, DatasetError):
        return None


def described(settings: Mapping[str, object]) -> str:
    """A hash of settings, for a clip's `key`."""
    text = "\n".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class _Whole:
    """Tensors in memory, read as an open file's are."""

    tensors: Mapping[str, Tensor]

    def get_tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    get_slice = get_tensor


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cached clip on disk."""

    path: Path
    """Its file; of a clip in a shard the shard's path and the clip's name."""
    shape: tuple[int, int, int, int]
    """Shape of the latent, `C T H W`."""
    info: ClipInfo
    first: frozenset[str] = frozenset()
    """Names of its first frame's tensors, as in `CachedClip`."""
    masked: bool = False
    """Whether it has a mask."""
    span: Span | None = None
    """Place within the shard; None for a file of its own."""

    def read(self) -> CachedClip:
        """The clip. Raises as `read_clip` does."""
        return read_clip(self.path, self.span)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """safetensors' open file, of which single tensors and slices are read; a clip in a shard is read
        whole. Raises WeightsError, OSError or SafetensorError."""
        if self.span is not None:
            yield _Whole(load_weights(self.path, KIND, self.span)[0])
            return
        with safetensors.safe_open(self.path, framework="pt") as file:
            yield file

    @property
    def identity(self) -> str:
        """Identity of the clip's pixels: content hash, cut, and the rate that it was thinned to."""
        i = self.info
        cut = f"{i.source_hash} window {i.window} {i.width}x{i.height}x{i.frames} at {i.start:.3f}"
        cut += f" {i.fps:g} fps" if i.fps_limit else ""
        return cut if i.start_frame is None else f"{cut} from frame {i.start_frame}"
