"""What PILA trains on: latents with their prompts, category labels and optical-flow targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..methods.lamo import pool_tokens
from ..methods.pila.categories import label_vector
from ..methods.pila.flow import latent_flow, video_flow
from ..methods.pila.labels import rule_labels
from ..methods.weights import WeightsError, WeightsInfo, load_weights, read_info, save_weights
from .dataset import KIND, DatasetError, read_clip

FLOW_KIND = "pila_flow"
TOY_KIND = "pila_toy_clips"
TOY_PART = 32
FlowSource = Literal["latent", "pixels", "raft"]


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
        """Several examples as one batch; shorter prompts are filled up with zeros. Raises DatasetError for unequal clip sizes."""
        examples = [self.load(index) for index in indices]
        sizes = {tuple(example.latent.shape) for example in examples}
        if len(sizes) > 1:
            raise DatasetError(f"clips of sizes {sorted(sizes)} cannot share a batch: cache one size, or use batch 1.")
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
            raise DatasetError(f"line {number} of {path.name} is not a prompt with labels ({error}).") from error
    return found


def labels_of(caption: str, known: dict[str, Iterable[str]]) -> Tensor:
    """The multi-hot label vector of a caption: from the file where it is there, otherwise by the offline rules."""
    return (label_vector(known[caption] if caption in known else rule_labels(caption)) > 0).float()


# --- optical flow, cached per clip ----------------------------------------------------------------------------------------


def flow_of(latent: Tensor, source: FlowSource, backbone: Any, raft: Any = None) -> tuple[Tensor, Tensor]:
    """Flow `2 T-1 H W` and confidence `1 T-1 H W` of a clip's latent `C T H W`.

    "latent": Lucas-Kanade on the latent itself. "pixels": on the decoded frames. "raft": RAFT on decoded frames a latent frame
    apart, with a forward-backward check. The last two need the backbone's VAE.
    """
    if source == "latent":
        return latent_flow(latent)
    video = backbone.decode_latent(latent[None])[0].cpu()
    size = (latent.shape[2], latent.shape[3])
    if source == "pixels":
        return video_flow(video, latent.shape[1], size)
    return raft_flow(video, latent.shape[1], size, backbone.temporal_stride, raft)


def raft_flow(video: Tensor, frames: int, size: tuple[int, int], stride: int, raft: Any) -> tuple[Tensor, Tensor]:
    """RAFT between frames `stride` apart; confidence falls where forward and backward flow disagree by more than a pixel."""
    from ..methods.pila.flow import warp

    height, width = (max(128, side // 8 * 8) for side in video.shape[2:])
    ahead = raft.flow(video[None], stride, (height, width))[0].transpose(0, 1).cpu()
    back = raft.flow(video[None].flip(2), stride, (height, width))[0].flip(1).transpose(0, 1).cpu()
    disagreement = (ahead + warp(back, ahead)).square().sum(dim=1, keepdim=True)
    confidence = 1.0 / (1.0 + disagreement)
    pool = torch.nn.functional.adaptive_avg_pool2d
    pooled = pool(confidence, size)
    flow = pool(ahead * confidence, size) / pooled.clamp(min=1e-6)
    flow = flow * flow.new_tensor([size[1] / width, size[0] / height])[None, :, None, None]
    return flow.transpose(0, 1), pooled.transpose(0, 1)


def cached_flow(path: Path, latent: Tensor, source: FlowSource, backbone: Any, raft: Any = None) -> tuple[Tensor, Tensor]:
    """The flow at `path`, computed and written there first where it is missing or of another source. Raises OSError."""
    try:
        state, info = load_weights(path, FLOW_KIND)
        if info.config.get("source") == source:
            return state["flow"].float(), state["confidence"].float()
    except WeightsError:
        pass  # missing or cut off: made anew
    flow, confidence = flow_of(latent, source, backbone, raft)
    info = WeightsInfo(kind=FLOW_KIND, latent_space=backbone.latent_space, config={"source": source})
    save_weights(path, {"flow": flow.half(), "confidence": confidence.half()}, info)
    return flow, confidence


# --- sources --------------------------------------------------------------------------------------------------------------


def cached_clips(
    folder: Path, flows: Path, source: FlowSource, backbone: Any, labels: Path | None = None, raft: Any = None
) -> PilaClips:
    """Clips that `latent-physics cache --tokens` left in `folder`; their flow is made as they are read and kept in `flows`.

    Raises DatasetError where the folder holds no clip, a clip lacks its tokens, or the latents are another backbone's.
    """
    known, paths, first = read_labels(labels), [], None
    for path in sorted(folder.glob("*.safetensors")):
        try:
            info = read_info(path)
        except WeightsError as error:
            raise DatasetError(f"{error} Run the cache command again.") from error
        if info.kind != KIND:
            continue
        if info.latent_space != backbone.latent_space:
            raise DatasetError(f"{path.name} holds {info.latent_space} latents; this backbone has {backbone.latent_space} ones.")
        first = first or info
        paths.append(path)
    if first is None:
        raise DatasetError(f"{folder} holds no cached clip; make them with: latent-physics cache --tokens --out {folder}")

    def load(index: int) -> Example:
        clip = read_clip(paths[index])
        if clip.tokens is None:
            raise DatasetError(f"{paths[index].name} holds no prompt tokens; cache it again with --tokens.")
        latent = clip.latent.float()
        flow, confidence = cached_flow(flows / paths[index].name, latent, source, backbone, raft)
        tokens, cond = clip.tokens.float(), clip.cond.float()
        labels = labels_of(clip.info.caption, known)
        return Example(latent=latent, tokens=tokens, cond=cond, labels=labels, flow=flow, confidence=confidence)

    config = first.config
    return PilaClips(
        names=[path.name for path in paths],
        latent_space=backbone.latent_space,
        channels=config["channels"],
        cond_dim=config["cond_dim"],
        load=load,
    )


def toy_clips(count: int, seed: int, folder: Path, backbone: Any, on_part: Callable[[int], None] | None = None) -> PilaClips:
    """`count` clips of the toy worlds with the right dynamics, encoded once into `folder` (in parts: a stopped run goes on).

    Flow comes from the rendered frames, labels from the worlds' names. Raises OSError.
    """
    from ..toyworld.data import mixture

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
            save_weights(path, state, WeightsInfo(kind=TOY_KIND, latent_space="toy", config={"prompts": prompts}))
        stored.append(state)
        if on_part is not None:
            on_part(start + size)
    columns = {name: torch.cat([state[name] for state in stored]).float() for name in stored[0]}

    def load(index: int) -> Example:
        return Example(**{name: values[index] for name, values in columns.items()})

    shape = columns["latent"].shape
    names = [f"toy clip {seed}/{index}" for index in range(count)]
    return PilaClips(names=names, latent_space="toy", channels=shape[1], cond_dim=columns["cond"].shape[1], load=load)


def weights_hash(*modules: torch.nn.Module | None) -> str:
    """A short hash of weights: clips encoded by other weights are encoded again."""
    digest = hashlib.blake2b(digest_size=4)
    for module in modules:
        for value in module.state_dict().values() if isinstance(module, torch.nn.Module) else ():
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _encode_toys(clips: Tensor, prompts: list[str], worlds: list[str], backbone: Any) -> dict[str, Tensor]:
    latents = torch.cat([backbone.encode_video(part).cpu() for part in clips.split(8)])
    tokens, mask = backbone.embed_prompts(prompts)
    flows = [video_flow(clip, latents.shape[2], tuple(latents.shape[3:])) for clip in clips]
    names = [world.replace("_", " ").title() for world in worlds]
    return {
        "latent": latents,
        "tokens": (tokens * mask.to(tokens).unsqueeze(-1)).cpu().half(),
        "cond": pool_tokens(tokens, mask).cpu(),
        "labels": torch.stack([label_vector([name]) for name in names]),
        "flow": torch.stack([flow for flow, _ in flows]),
        "confidence": torch.stack([confidence for _, confidence in flows]),
    }


def shuffled_index(number: int, count: int, seed: int, epochs: dict[tuple[int, int], np.ndarray]) -> int:
    """Place `number` of an endless sequence of shuffled epochs over `count` clips; `epochs` remembers the last permutation."""
    epoch, place = divmod(number, count)
    if (seed, epoch) not in epochs:
        epochs.clear()
        epochs[seed, epoch] = np.random.default_rng((seed, epoch)).permutation(count)
    return int(epochs[seed, epoch][place])


