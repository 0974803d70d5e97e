"""Features of single frames: DINOv2 and DINOv3 (transformers), and video encoders shown one frame at a
time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Teacher, TeacherError, pretrained

CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
"""`model_type` in a folder's config.json -> the class of transformers."""
SHORT = 224
"""Pixels of a frame's shorter side, before it is rounded to whole patches."""
CHUNK = 16
"""Frames that pass through the network at once."""


class ImageEncoder(Teacher):
    """A frozen image encoder, frame by frame: a tubelet is one frame."""

    kind = "image_encoder"

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        import transformers

        settings = dict(config)
        name = CLASSES.get(settings.pop("model_type", ""))
        if name is None:
            raise TeacherError(
                "the file's config names no image encoder; its model_type must be one of "
                f"{', '.join(CLASSES)}."
            )
        model = getattr(transformers, name)
        return model(model.config_class(**settings))

    @classmethod
    def from_source(cls, source: str, device: str | torch.device = "cpu") -> ImageEncoder:
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(source, local_files_only=Path(source).is_dir())
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"{source} could not be loaded as an image encoder: it has no config.json that fits."
            ) from error
        if config.model_type not in CLASSES:
            raise TeacherError(
                f"{source} is a {config.model_type} model; image encoders are {', '.join(CLASSES)}."
            )
        model, identity = pretrained(
            getattr(transformers, CLASSES[config.model_type]), source, "image encoder"
        )
        return cls(model, f"{config.model_type} {identity}", device)

    @property
    def patch(self) -> tuple[int, int, int]:
        return 1, self.model.config.patch_size, self.model.config.patch_size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The frame with its shorter side at SHORT, in whole patches; its shape is kept."""
        patch = self.model.config.patch_size
        return tuple(
            max(patch, round(side * SHORT / min(height, width) / patch) * patch) for side in (height, width)
        )

    def encode(self, clip: Tensor) -> Tensor:
        frames = clip.transpose(1, 2).flatten(0, 1)
        extra = 1 + getattr(
            self.model.config, "num_register_tokens", 0
        )  # the class token and the registers stand first
        found = [self.model(pixel_values=part).last_hidden_state[:, extra:] for part in frames.split(CHUNK)]
        return torch.cat(found).unflatten(0, (len(clip), -1)).flatten(1, 2)


class FrameByFrame:
    """A video encoder as an encoder of frames: each frame alone, held for one tubelet.

    In a whole clip its features depend on their moment even where nothing moves, so that a still clip has a
    crooked path.
    """

    patch: tuple[int, int, int]

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.patch = teacher, (1, *teacher.patch[1:])

    def features(self, video: Tensor) -> Tensor:
        """`B 3 T H W` in [0, 1] -> `B C T h w`."""
        frames = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        held = [part.expand(-1, -1, self.teacher.patch[0], -1, -1) for part in frames.split(CHUNK)]
        found = torch.cat([self.teacher.features(part)[:, :, 0] for part in held])
        return found.unflatten(0, (len(video), -1)).transpose(1, 2)
