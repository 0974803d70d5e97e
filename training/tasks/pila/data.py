"""What PILA trains on: latents with their prompts, category labels and optical-flow targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....methods.labels.rules import rule_labels
from ....methods.labels.taxonomy import label_vector
from ....methods.weights import WeightsError, WeightsInfo, load_weights, save_weights
from ...data.clip import DatasetError, read_clip
from ...data.flow import FlowSource, cached_flow
from ...data.folder import ClipFolder, Epochs
from ...data.toy import _encode_toys, weights_hash

TOY_KIND = "pila_toy_clips"
TOY_PART = 32


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
    """How far to trust it, `1 T-1 H W`."""


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
    latent_space: str
    channels: int
    cond_dim: int
    load: Callable[[int], Example]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """A hash of which clips these are; a resumed run must go on with the same."""
        return hashlib.blake2b("\n".join(self.names).encode(), digest_size=8).hexdigest()

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


# --- optical flow, cached per clip --------------------------------------------------------------------------


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
    paths = [entry.path for entry in found.entries]

    def load(index: int) -> Example:
        clip = read_clip(paths[index])
        if clip.tokens is None:
            raise DatasetError(f"{paths[index].name} holds no prompt tokens; cache it again with --tokens.")
        latent = clip.latent.float()
        flow, confidence = cached_flow(flows / paths[index].name, latent, source, backbone, raft)
        tokens, cond = clip.tokens.float(), clip.cond.float()
        labels = labels_of(clip.info.caption, known)
        return Example(
            latent=latent, tokens=tokens, cond=cond, labels=labels, flow=flow, confidence=confidence
        )

    return PilaClips(
        names=[path.name for path in paths],
        latent_space=backbone.latent_space,
        channels=found.entries[0].shape[0],
        cond_dim=found.cond_dim,
        load=load,
    )


def toy_clips(
    count: int, seed: int, folder: Path, backbone: Any, on_part: Callable[[int], None] | None = None
) -> PilaClips:
    """`count` clips of the toy worlds with the right dynamics, encoded once into `folder` (in parts: a
    stopped run goes on).

    Flow comes from the rendered frames, labels from the worlds' names. Raises OSError.
    """
    from ....toyworld.data import mixture

    stored: list[dict[str, Tensor]] = []
    encoders = weights_hash(getattr(backbone, "vae", None), getattr(backbone, "text", None))
    for start in range(0, count, TOY_PART):
        size = min(TOY_PART, count - start)
        path = folder / f"{encoders}-{seed}-{start:06}-{size}.safetensors"
        try:
            state, _ = load_weights(path, TOY_KIND)
        except WeightsError:
            clips, prompts, worlds = mixture(size, seed * 1_000_003 + start, 0.0)
            state = _encode_toys(clips, prompts, worlds, backbone)
            save_weights(
                path, state, WeightsInfo(kind=TOY_KIND, latent_space="toy", config={"prompts": prompts})
            )
        stored.append(state)
        if on_part is not None:
            on_part(start + size)
    columns = {name: torch.cat([state[name] for state in stored]).float() for name in stored[0]}

    def load(index: int) -> Example:
        return Example(**{name: values[index] for name, values in columns.items()})

    shape = columns["latent"].shape
    names = [f"toy clip {seed}/{index}" for index in range(count)]
    return PilaClips(
        names=names, latent_space="toy", channels=shape[1], cond_dim=columns["cond"].shape[1], load=load
    )


def shuffled_index(number: int, count: int, seed: int, epochs: dict[tuple[int, int], Epochs]) -> int:
    """Place `number` of an endless sequence of shuffled epochs over `count` clips; `epochs` remembers the
    last sequence."""
    if (seed, count) not in epochs:
        epochs.clear()
        epochs[seed, count] = Epochs(count, seed)
    return epochs[seed, count][number]
