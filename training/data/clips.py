"""A folder of cached clips."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from statistics import median

import safetensors
import torch
from torch import Tensor

from ...methods.weights import WeightsError
from .clip import RECACHE_HINT, DatasetError, Entry
from .folder import ClipFolder, split_films


class Clips:
    """Latents of many clips and their prompts' pooled embeddings. Frames are read as they are asked for.

    Made by `from_folder` or `from_tensors`. All clips share the latent space, the channels, the height and
    width, and the width of the prompt embedding; lengths may differ.
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
    fps: float | None
    """Median frames per second of the clips that were encoded; None where none says it."""
    prompted: bool
    """Whether the clips have prompts: neither made without a text encoder nor without any caption."""

    def __init__(
        self,
        *,
        latents: Sequence[Tensor | Entry],
        shapes: Sequence[Sequence[int]],
        conds: Tensor,
        names: Sequence[str],
        groups: Sequence[str],
        latent_space: str,
        keys: Sequence[str] = (),
        rates: Sequence[float] = (),
        prompted: bool = True,
    ) -> None:
        """`latents`: tensors `C T H W`, or the clips on disk they lie in; `conds` `N D`; `keys`: what decided
        each clip's content, where it is known; `rates`: their frames per second, 0 where a clip does not say.
        Raises DatasetError where shapes disagree."""
        for name, shape in zip(names, shapes):
            if shape[0] != shapes[0][0] or tuple(shape[2:]) != tuple(shapes[0][2:]):
                sizes = f"{name} is {_words(shape)} and {names[0]} is {_words(shapes[0])}"
                raise DatasetError(f"{sizes}; one training needs one size: cache the clips again.")
        self.latents = list(latents)
        self.conds = conds
        self.names, self.groups, self.latent_space = list(names), list(groups), latent_space
        self.keys = list(keys)
        known = [rate for rate in rates if rate > 0]
        self.fps, self.prompted = median(known) if known else None, prompted
        self.lengths = [shape[1] for shape in shapes]
        self.channels, self.size, self.cond_dim = shapes[0][0], (shapes[0][2], shapes[0][3]), conds.shape[1]

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], memory_gb: float = 4.0) -> Clips:
        """Every clip the cache command left in `folder`. Latents stay in memory where all of them take at
        most `memory_gb`.

        Raises DatasetError where the folder is missing or holds no clip, a file is damaged, or clips do not
        fit together.
        """
        found = ClipFolder.scan(folder)
        size = sum(entry.span[1] if entry.span else entry.path.stat().st_size for entry in found.entries)
        latents: list[Tensor | Entry] = list(found.entries)
        conds = []
        for index, entry in enumerate(found.entries):
            try:
                with entry.opened() as file:
                    conds.append(file.get_tensor("cond").float())
                    if size <= memory_gb * 2**30:
                        latents[index] = file.get_tensor("latent")
            except (safetensors.SafetensorError, WeightsError, OSError) as error:
                raise DatasetError(f"{entry.path.name} is damaged ({error}); {RECACHE_HINT}") from error
        prompted = any(cond.any() for cond in conds) and any(entry.info.caption for entry in found.entries)
        clips = cls(
            latents=latents,
            shapes=[entry.shape for entry in found.entries],
            conds=torch.stack(conds) if prompted else torch.zeros(len(conds), found.cond_dim),
            names=[entry.path.name for entry in found.entries],
            groups=[entry.info.source_hash for entry in found.entries],
            latent_space=found.latent_space,
            keys=[entry.info.key for entry in found.entries],
            rates=[entry.info.fps for entry in found.entries],
            prompted=prompted,
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
        """Clips already in memory: latents `C T H W` each, pooled prompts `D` each (None: zeros of width
        `cond_dim`).

        Raises DatasetError where there is no clip, a latent has another rank, or a value is not finite.
        """
        latents = list(latents)
        if not latents:
            raise DatasetError("There is no latent to train on.")
        for index, latent in enumerate(latents):
            if latent.ndim != 4:
                raise DatasetError(f"latent {index} has shape {tuple(latent.shape)}; it must be C T H W.")
        prompted = conds is not None
        conds = torch.zeros(len(latents), cond_dim) if conds is None else conds
        conds = torch.stack([cond.detach().float().cpu() for cond in conds])
        if len(conds) != len(latents):
            raise DatasetError(
                f"There are {len(latents)} latents and {len(conds)} prompt embeddings; one for each is "
                f"needed."
            )
        clips = cls(
            latents=[latent.detach().cpu() for latent in latents],
            shapes=[latent.shape for latent in latents],
            conds=conds,
            names=[f"latent {index}" for index in range(len(latents))],
            groups=[str(index) for index in range(len(latents))],
            latent_space=latent_space,
            prompted=prompted,
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
            with latent.opened() as file:
                stored = file.get_slice("latent")
                return torch.stack([stored[:, i : i + 1].squeeze(1) for i in indices]).float()
        except (safetensors.SafetensorError, WeightsError, OSError) as error:
            raise DatasetError(
                f"{latent.path.name} can no longer be read ({error}); run the cache command again."
            ) from error

    def check_finite(self) -> None:
        """Raises DatasetError where a clip held in memory has a value that is not finite."""
        for name, latent in zip(self.names, self.latents):
            if isinstance(latent, Tensor) and not torch.isfinite(latent).all():
                raise DatasetError(f"{name} holds values that are not finite; cache it again, in float32.")

    def fingerprint(self) -> str:
        """A hash of which clips these are and how they were cached; a resumed run must go on with the
        same."""
        digest = hashlib.blake2b(digest_size=8)
        for name, length in zip(self.names, self.lengths):
            digest.update(f"{name}:{length}\n".encode())
        digest.update(
            "\n".join(
                [f"{self.latent_space} {self.channels} {self.size} {self.cond_dim}", *self.keys]
            ).encode()
        )
        return digest.hexdigest()

    def split(self, fraction: float, seed: int) -> tuple[list[int], list[int]]:
        """(training, validation) clip indices; a `fraction` of the films, at least one where fraction > 0, is
        held out.

        All windows of a film go to the same side. Raises DatasetError where nothing would be left to train
        on.
        """
        return split_films(self.groups, fraction, seed)


def _words(shape: Sequence[int]) -> str:
    """A latent's shape for a message."""
    channels, _, height, width = shape
    return f"{channels} channels at {height}x{width}"
