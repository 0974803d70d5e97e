"""Training data of PILA: latents with their prompts, category labels and optical-flow targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ....methods.labels.rules import rule_labels
from ....methods.labels.taxonomy import label_vector
from ...backbones import Backbone
from ...console import ProgressLine
from ...data.clip import ClipInfo, DatasetError, Entry, described
from ...data.features import FrameSource
from ...data.flow import FlowSource, Frames, cached_flow
from ...data.folder import ClipFolder, Epochs
from ...data.toy import make_toy_clips, weights_hash


@dataclass(frozen=True, kw_only=True)
class Example:
    """One clip, ready for training."""

    latent: Tensor
    """`C T H W` float32, in the model's scaling."""
    tokens: Tensor
    """Prompt tokens `L D`."""
    cond: Tensor
    """Their mean, `D`."""
    labels: Tensor
    """Category labels, `8`, 0 or 1."""
    flow: Tensor
    """Optical flow `2 T-1 H W` in latent pixels per latent frame."""
    confidence: Tensor
    """Confidence of the flow, `1 T-1 H W`."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Several clips of one length; fields as in `Example` with a leading batch."""

    latent: Tensor
    tokens: Tensor
    cond: Tensor
    labels: Tensor
    flow: Tensor
    confidence: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class PilaClips:
    """A data set: `load(i)` reads one example."""

    names: list[str]
    keys: Sequence[str]
    """What decides each clip's content, its labels and its flow."""
    latent_space: str
    channels: int
    cond_dim: int
    load: Callable[[int], Example]
    films: Sequence[str] = ()
    """Source video of each clip; left out, each is of its own."""

    def after(self, held: int) -> list[int]:
        """Numbers of the clips to learn from where the first `held` are held out: those of other films."""
        films = set(self.films[:held])
        return [i for i in range(held, len(self)) if not self.films or self.films[i] not in films]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Hash of the clips; that of a resumed run must match."""
        return described(dict(zip(self.names, self.keys)))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Several examples as one batch; shorter prompts are filled up with zeros. Raises DatasetError for
        unequal clip sizes."""
        examples = [self.load(index) for index in indices]
        sizes = {tuple(example.latent.shape) for example in examples}
        if len(sizes) > 1:
            raise DatasetError(
                f"clips of sizes {sorted(sizes)} cannot share a batch: cache one size, or use batch 1."
            )
        longest = max(example.tokens.shape[0] for example in examples)
        tokens = [torch.nn.functional.pad(e.tokens, (0, 0, 0, longest - e.tokens.shape[0])) for e in examples]
        names = ("latent", "cond", "labels", "flow", "confidence")
        rest = {name: torch.stack([getattr(e, name) for e in examples]) for name in names}
        return Batch(tokens=torch.stack(tokens), **rest)


def read_labels(path: Path | None) -> dict[str, Iterable[str]]:
    """Labels by caption from a JSON-lines file of {"prompt": ..., "labels": [...]}; {} without a file.

    Raises DatasetError where a line is not of that form.
    """
    if path is None:
        return {}
    found: dict[str, Iterable[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            label_vector(row["labels"])
            found[row["prompt"]] = row["labels"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"line {number} of {path.name} is not a prompt with labels ({error})."
            ) from error
    return found


def labels_of(caption: str, known: dict[str, Iterable[str]]) -> Tensor:
    """The multi-hot label vector of a caption: from the file where it is there, otherwise by the offline
    rules."""
    return (label_vector(known[caption] if caption in known else rule_labels(caption)) > 0).float()


# --- sources ------------------------------------------------------------------------------------------------


def cached_clips(
    folder: Path, flows: Path, source: FlowSource, backbone: Any, labels: Path | None = None, raft: Any = None
) -> PilaClips:
    """Clips that `latent-physics cache --tokens` left in `folder`; their flow is made as they are read and
    kept in `flows`.

    Raises DatasetError where the folder holds no clip, a clip lacks its tokens, or the latents are another
    backbone's.
    """
    known, found = read_labels(labels), ClipFolder.scan(folder, tokens=True)
    if found.latent_space != backbone.latent_space:
        raise DatasetError(
            f"{folder} holds {found.latent_space} latents; this backbone has {backbone.latent_space} ones."
        )

    lock = Lock()

    def flow(entry: Entry, latent: Tensor) -> tuple[Tensor, Tensor]:
        place, key = flows / entry.path.name, entry.info.key
        with lock:  # a validation and the thread that reads ahead share the VAE, which keeps frames meanwhile
            return cached_flow(place, latent, source, backbone, raft, key=key)

    targets = f"{source} {getattr(raft, 'identity', '')}"

    def key(info: ClipInfo) -> str:
        told = known.get(info.caption)  # the rules' labels follow from the caption, a part of the clip's key
        return described({"clip": info.key, "labels": told and sorted(told), "flow": targets})

    return _examples(found, lambda caption: labels_of(caption, known), flow, key)


def toy_clips(
    count: int,
    seed: int,
    folder: Path,
    backbone: Backbone,
    progress: ProgressLine | None = None,
    worlds: Sequence[str] = (),
) -> PilaClips:
    """`count` clips of the toy worlds (of `worlds`, where some are named) with the right dynamics, cached
    once in a folder of `folder` that the encoders' weights, the seed and the worlds name; a stopped run makes
    those that are missing.

    Flow comes from the rendered frames, labels from the worlds that the prompts name. Raises TrainingError
    where the disk is full.
    """
    place = folder / "-".join([weights_hash(backbone.vae, backbone.text), str(seed), *worlds])
    make_toy_clips(place, backbone, count, seed, progress=progress, worlds=worlds)
    rendered = FrameSource(place, [])

    def flow(entry: Entry, latent: Tensor) -> tuple[Tensor, Tensor]:
        frames: Frames = partial(rendered.read, entry)
        return cached_flow(place / "flow" / entry.path.name, latent, "pixels", backbone, frames=frames)

    def key(info: ClipInfo) -> str:
        return f"{place.name} {info.key}"  # its own is seed and number alone, whatever the world and encoders

    return _examples(ClipFolder.scan(place, tokens=True, limit=count), toy_labels, flow, key)


def toy_labels(prompt: str) -> Tensor:
    """The multi-hot label vector of the toy world that a prompt names."""
    from ....toyworld.prompts import understand

    return label_vector([understand(prompt).world.replace("_", " ").title()])


def _examples(
    found: ClipFolder,
    labels: Callable[[str], Tensor],
    flow: Callable[[Entry, Tensor], tuple[Tensor, Tensor]],
    key: Callable[[ClipInfo], str],
) -> PilaClips:
    """Cached clips with the labels of their captions, the flow of their latents, and what decides both."""

    def load(index: int) -> Example:
        entry = found.entries[index]
        clip = entry.read()
        if clip.tokens is None:
            raise DatasetError(f"{entry.path.name} holds no prompt tokens; cache it again with --tokens.")
        latent = clip.latent.float()
        velocity, confidence = flow(entry, latent)
        return Example(
            latent=latent,
            tokens=clip.tokens.float(),
            cond=clip.cond.float(),
            labels=labels(clip.info.caption),
            flow=velocity,
            confidence=confidence,
        )

    return PilaClips(
        names=[entry.path.name for entry in found.entries],
        keys=[key(entry.info) for entry in found.entries],
        films=[entry.info.source_hash for entry in found.entries],
        latent_space=found.latent_space,
        channels=found.entries[0].shape[0],
        cond_dim=found.cond_dim,
        load=load,
    )


def shuffled_index(number: int, count: int, seed: int, epochs: dict[tuple[int, int], Epochs]) -> int:
    """Place `number` of an endless sequence of shuffled epochs over `count` clips; `epochs` remembers the
    last sequence."""
    if (seed, count) not in epochs:
        epochs.clear()
        epochs[seed, count] = Epochs(count, seed)
    return epochs[seed, count][number]
