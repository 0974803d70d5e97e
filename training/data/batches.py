"""Input of a fine-tune: cached clips in buckets of one size, their prompts, and teachers' features made
once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from ...encoders.need import TeacherNeed, cache_name
from ...methods.weights import WeightsError
from ..backbones.first_frame import FirstFrame
from ..console import TrainingError
from .clip import DatasetError, described
from .feature_cache import FeatureCache
from .folder import ClipFolder


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
    first: FirstFrame | None = None
    """The clips' first frames as they were cached for image-to-video models."""
    loss_mask: Tensor | None = None
    """Masks of the denoising loss, `B 1 T H W` in [0, 1], where all the clips have one."""
    rates: Tensor | None = None
    """Frames per second that were encoded, `B`; 0 where a clip does not say."""

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        return self._mapped(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in pages that a CUDA GPU reads by itself."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        features = {
            key: {name: change(value) for name, value in tensors.items()}
            for key, tensors in self.features.items()
        }
        return Batch(
            names=self.names,
            latent=change(self.latent),
            tokens=change(self.tokens),
            mask=change(self.mask),
            features=features,
            first=self.first and self.first.mapped(change),
            loss_mask=None if self.loss_mask is None else change(self.loss_mask),
            rates=None if self.rates is None else change(self.rates),
        )


class TrainingClips:
    """Cached clips. Which clips a micro-batch holds is a function of the seed and the micro-batch's number
    alone."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch: int,
        seed: int,
        held_out: float = 0.0,
        limit: int | None = None,
    ) -> None:
        """Looks through `folder` (from `latent-physics cache --tokens`). Raises DatasetError where it cannot
        be trained on.

        batch: clips in a micro-batch; held_out: share of the films kept for validation; limit: at most so
        many clips.
        """
        self.folder = Path(folder)
        self.batch, self.seed = batch, seed
        found = ClipFolder.scan(folder, tokens=True, limit=limit)
        self.entries, self.latent_space = found.entries, found.latent_space
        self.training, self.validation = found.split(held_out, seed)
        self.buckets = self._buckets()
        self._epoch: tuple[int, list[list[int]]] | None = None

    def _buckets(self) -> dict[tuple[int, ...], list[int]]:
        """Training clips by the shape of their latent."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index in self.training:
            buckets.setdefault(self.entries[index].shape, []).append(index)
        return dict(sorted(buckets.items()))

    def describe(self) -> str:
        """One line for the screen."""
        sizes = ", ".join(
            f"{len(clips)} of {shape[1]}x{shape[2]}x{shape[3]}" for shape, clips in self.buckets.items()
        )
        found = f"{len(self.training)} clips to train on ({sizes} latents)"
        return f"{found}, {len(self.validation)} for validation."

    def check_first_frames(self, vision: bool) -> None:
        """Raises TrainingError where a clip lacks what an image-to-video model is given; `vision`: CLIP's
        view of the first frame too."""
        wanted = {"latent", "vision"} if vision else {"latent"}
        options = "--first-frame --clip-vision FILE" if vision else "--first-frame"
        for entry in self.entries:
            if lacking := sorted(wanted - entry.first):
                what = "CLIP's view of its first frame" if lacking == ["vision"] else "its first frame"
                raise TrainingError(
                    f"{entry.path.name} was cached without {what}, which this image-to-video model is given; "
                    f"run latent-physics cache again with --tokens {options}."
                )

    def check_masks(self) -> None:
        """Raises TrainingError where a clip has no mask of the denoising loss."""
        lacking = [entry for entry in self.entries if not entry.masked]
        if lacking:
            raise TrainingError(
                f"{lacking[0].path.name} was cached without a mask ({len(lacking)} of {len(self.entries)} "
                f"clips were), which mask_min_value needs; run latent-physics cache again with --masks FOLDER, "
                f"or leave mask_min_value out."
            )

    def fingerprint(self) -> str:
        """Hash of the clips; that of a resumed run must match."""
        return described({entry.path.name: entry.info.key for entry in self.entries})

    def chosen(self, number: int) -> list[int]:
        """Clip numbers of micro-batch `number` of an endless sequence of shuffled epochs.

        Every epoch takes every clip at least once; a bucket whose size is no multiple of the batch repeats a
        few.
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

    def read(
        self, indices: Sequence[int], needs: Sequence[TeacherNeed] = (), cache: FeatureCache | None = None
    ) -> Batch:
        """The clips with these numbers, all of one shape, with the features that `needs` names. Raises
        DatasetError."""
        clips, features = [], {need.key: [] for need in needs}
        for index in indices:
            entry = self.entries[index]
            try:
                clip = entry.read()
                for need in needs:
                    features[need.key].append(cache.read(cache_name(need), entry.identity))
            except (WeightsError, DatasetError, OSError, safetensors.SafetensorError) as error:
                raise DatasetError(
                    f"{entry.path.name} or its features cannot be read ({error}); run the command again to "
                    f"mend them."
                ) from error
            if clip.tokens is None:
                raise DatasetError(
                    f"{entry.path.name} was cached without its prompt's tokens; run latent-physics cache "
                    f"again with --tokens."
                )
            if not torch.isfinite(clip.latent).all():
                raise DatasetError(
                    f"{entry.path.name} holds values that are not finite; delete it and cache it again in "
                    f"float32."
                )
            clips.append(clip)
        padded, mask = pad_tokens([clip.tokens.float() for clip in clips])
        stacked = {
            key: {name: torch.stack([item[name] for item in items]) for name in items[0]}
            for key, items in features.items()
        }
        names = [self.entries[index].path.name for index in indices]
        return Batch(
            names=names,
            latent=torch.stack([clip.latent.float() for clip in clips]),
            tokens=padded,
            mask=mask,
            features=stacked,
            first=stack_first([clip.first for clip in clips]),
            loss_mask=stack_masks([clip.mask for clip in clips]),
            rates=torch.tensor([clip.info.fps for clip in clips], dtype=torch.float32),
        )


def stack_first(firsts: Sequence[Mapping[str, Tensor]]) -> FirstFrame | None:
    """First frames of a batch, as far as all its clips keep them; None where one of them keeps nothing."""
    names = set.intersection(*(set(first) for first in firsts))
    if not names:
        return None
    return FirstFrame(**{name: torch.stack([first[name].float() for first in firsts]) for name in names})


def stack_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks `T H W` of a batch as `B 1 T H W` float32; None where a clip has none."""
    there = [mask.float() for mask in masks if mask is not None]
    return torch.stack(there)[:, None] if len(there) == len(masks) else None


def pad_tokens(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens `L_i D` -> `B L D` and mask `B L`. Empty prompts (no token) are allowed."""
    longest = max(1, *(len(item) for item in tokens))
    padded = torch.stack([torch.nn.functional.pad(item, (0, 0, 0, longest - len(item))) for item in tokens])
    mask = torch.stack([torch.arange(longest) < len(item) for item in tokens])
    return padded, mask
