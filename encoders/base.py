"""The interface of every teacher."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..methods.weights import WeightsError, WeightsInfo, load_weights, save_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TeacherError(ValueError):
    """A teacher cannot be loaded or used. The message is one sentence for the user."""


class Teacher:
    """A frozen video encoder: `B 3 T H W` in [0, 1] -> features `B C F H' W'`, one vector per tubelet."""

    kind: ClassVar[str]
    """Kind of the weights file, if this project wrote it."""

    def __init__(self, model: nn.Module, identity: str, device: str | torch.device = "cpu") -> None:
        """`identity` names the weights; cached features of another identity are never used."""
        self.model = model.requires_grad_(False).eval().to(device)
        self.identity = identity
        self.device = torch.device(device)

    @classmethod
    def from_source(cls, source: str, device: str | torch.device = "cpu") -> Teacher:
        """From a hub id, a transformers folder or a safetensors file. Raises TeacherError."""
        raise NotImplementedError

    @classmethod
    def from_weights(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Teacher:
        """From a file that `save` wrote. Raises TeacherError."""
        try:
            state, info = load_weights(path, cls.kind)
        except WeightsError as error:
            raise TeacherError(str(error)) from error
        model = cls.build(info.config)
        fill(model, state, os.path.basename(path))
        return cls(model.float(), f"{cls.kind} {os.path.basename(path)} {digest_of([path])}", device)

    def save(
        self, path: str | os.PathLike[str], recipe: dict[str, Any], dtype: torch.dtype = torch.float16
    ) -> None:
        """Writes weights and configuration, in half precision. Raises OSError."""
        state = {key: value.to(dtype) for key, value in self.model.state_dict().items()}
        config = {
            key: value
            for key, value in self.model.config.to_diff_dict().items()
            if key != "transformers_version"
        }
        save_weights(
            path, state, WeightsInfo(kind=self.kind, latent_space="pixels", config=config, recipe=recipe)
        )

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        """An untrained model of a configuration."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Width of a feature."""
        return self.model.config.hidden_size

    @property
    def patch(self) -> tuple[int, int, int]:
        """Tubelet in pixels of the resized clip: (P_t, P_h, P_w)."""
        config = self.model.config
        return config.tubelet_size, config.patch_size, config.patch_size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels (height, width) to which a clip is resized before it is encoded."""
        raise NotImplementedError

    def covered(self, height: int, width: int) -> tuple[int, int]:
        """The part of a clip, from its upper left corner, that the features stand for: pixels (height, width)
        of the clip.
        """
        return height, width

    def resized(self, video: Tensor) -> Tensor:
        """The covered part of a clip at the teacher's size, whole tubelets of frames, still in [0, 1].

        Raises TeacherError for a clip shorter than one tubelet.
        """
        tubelet = self.patch[0]
        frames = video.shape[2] // tubelet * tubelet
        if frames == 0:
            raise TeacherError(f"a clip of {video.shape[2]} frames is too short for tubelets of {tubelet}.")
        height, width = self.covered(*video.shape[3:])
        size = self.size(*video.shape[3:])
        flat = (
            video[:, :, :frames, :height, :width].transpose(1, 2).flatten(0, 1).to(self.device, torch.float32)
        )
        if flat.shape[2:] != size:
            flat = functional.interpolate(
                flat, size=size, mode="bilinear", antialias=True, align_corners=False
            )
        return flat.unflatten(0, (video.shape[0], frames)).transpose(1, 2)

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C F H' W'` float32 on the teacher's device."""
        clip = self.resized(video)
        grid = tuple(size // p for size, p in zip(clip.shape[2:], self.patch))
        tokens = self.encode(imagenet(clip))
        return tokens.transpose(1, 2).unflatten(2, grid).float()

    def encode(self, clip: Tensor) -> Tensor:
        """Normalised, resized clip `B 3 T H W` -> tokens `B N C`, frame-major."""
        raise NotImplementedError


def imagenet(clip: Tensor) -> Tensor:
    """[0, 1] -> ImageNet's mean and deviation."""
    mean, std = (
        torch.tensor(x, device=clip.device).view(1, 3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (clip - mean) / std


def pretrained(model_type: type, source: str, what: str, extra: str = "") -> tuple[nn.Module, str]:
    """(a transformers model from a hub id or a folder, its identity: the name, and for a folder what its
    weights hold).

    Safetensors only. `extra`: pattern of the keys that a source may hold besides (a head, a decoder). Raises
    TeacherError where the source holds only pickles, which can run code when opened, or anything but the
    whole model: transformers fills what is missing with random numbers.
    """
    try:
        model, report = model_type.from_pretrained(
            source,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if _only_pickles(source, error):
            raise TeacherError(
                f"{source} holds no safetensors weights; pickles can run code when opened, so convert "
                f"them to safetensors first."
            ) from error
        raise TeacherError(f"{source} could not be loaded as a {what}: {reason_of(error)}") from error
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    require_fit(
        unfit, [key for key in report["unexpected_keys"] if not re.fullmatch(extra, key)], source, what
    )
    weights = sorted(Path(source).glob("*.safetensors"))
    return model, f"{source} {digest_of(weights)}" if weights else source


def fill(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copies the weights of the file `name` into a model.

    Raises TeacherError unless every key and shape fits.
    """
    own = model.state_dict()
    unfit = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    require_fit(unfit, [key for key in state if key not in own], name, type(model).__name__)
    model.load_state_dict(state)


def require_fit(unfit: Iterable[str], unknown: Iterable[str], source: str, what: str) -> None:
    """Raises TeacherError where weights are missing or of another size (`unfit`), or belong to no part of it
    (`unknown`).
    """
    faults = [
        f"{words} {keys[0]!r}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        for words, keys in (("lack", sorted(unfit)), ("hold the unknown", sorted(unknown)))
        if keys
    ]
    if faults:
        raise TeacherError(
            f"the weights of {source} {' and '.join(faults)}: they are not those of a {what}, choose others."
        )


def _only_pickles(source: str, error: Exception) -> bool:
    """Whether safetensors are what is missing: seen in a folder, and told by transformers of a hub id."""
    folder = Path(source)
    if folder.is_dir():
        found = {file.suffix for file in folder.iterdir()}
        return ".safetensors" not in found and bool(found & {".bin", ".pt", ".pth", ".ckpt"})
    return "safetensors" in str(error) and "does not appear to have" in str(error)


def digest_of(files: Iterable[str | os.PathLike[str]]) -> str:
    """16 digits that change with the content of any of the files. Raises OSError."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with open(file, "rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
