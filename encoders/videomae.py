"""VideoMAE (transformers), with VideoMAE v2's weights by key map where the user has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Teacher, TeacherError, digest_of, pretrained, reason_of

SHRINK = 3
"""Clips are encoded at a third of their size: 480 x 720 becomes 160 x 240 (VideoREPA, TSA, MoAlign)."""

V2_KEYS = (
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(.*)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.attn\.q_bias", r"encoder.layer.\1.attention.attention.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"encoder.layer.\1.attention.attention.value.bias"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"encoder.layer.\1.output.dense.\2"),
    (r"(?:fc_)?norm\.(.*)", r"layernorm.\1"),
)
"""VideoMAE v2's names -> transformers'. The joint qkv weight is split; the classification head is left out."""


class VideoMAETeacher(Teacher):
    """VideoMAE v1 or v2. Position tables are interpolated to the clip's grid."""

    kind = "videomae"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config
        side = config.image_size // config.patch_size
        table = self.model.embeddings.position_embeddings.detach().clone()
        self._table = table[0].T.reshape(1, -1, config.num_frames // config.tubelet_size, side, side).float()

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        from transformers import VideoMAEConfig, VideoMAEModel

        return VideoMAEModel(VideoMAEConfig(**config))

    @classmethod
    def from_source(cls, source: str, device: str | torch.device = "cpu") -> VideoMAETeacher:
        from transformers import VideoMAEModel

        if source.endswith((".safetensors", ".pth", ".pt", ".bin")):
            return cls(from_v2_file(Path(source)), f"videomae_v2 {Path(source).name} {digest_of([source])}", device)
        model, identity = pretrained(VideoMAEModel, source, "VideoMAE encoder")
        return cls(model, f"videomae {identity}", device)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """A third of the clip's, in whole patches; clips no larger than the encoder's own input keep their size."""
        patch = self.model.config.patch_size
        shrink = SHRINK if min(height, width) > self.model.config.image_size else 1
        return tuple(max(patch, round(side / shrink / patch) * patch) for side in (height, width))

    def encode(self, clip: Tensor) -> Tensor:
        grid = tuple(size // p for size, p in zip(clip.shape[2:], self.patch))
        table = functional.interpolate(self._table, size=grid, mode="trilinear", align_corners=False)
        embeddings = self.model.embeddings
        embeddings.position_embeddings = table.flatten(2).transpose(1, 2)
        embeddings.patch_embeddings.image_size = tuple(clip.shape[3:])
        return self.model(clip.transpose(1, 2)).last_hidden_state


def from_v2_file(path: Path) -> nn.Module:
    """A VideoMAE v2 encoder from its authors' safetensors file; sizes are read off the tensors. Raises TeacherError."""
    import safetensors
    import safetensors.torch
    from transformers import VideoMAEConfig, VideoMAEModel

    if path.suffix != ".safetensors":
        raise TeacherError(f"{path.name} is a pickle, which can run code when opened; convert it to safetensors first.")
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{path.name} is not a readable safetensors file ({reason_of(error)}).") from error
    state = from_v2_keys({re.sub(r"^(model|module|encoder)\.", "", key): value for key, value in state.items()})
    patch = state.get("embeddings.patch_embeddings.projection.weight")
    if patch is None:
        raise TeacherError(f"{path.name} is not a VideoMAE v2 encoder: it has no patch_embed.proj.weight.")
    width, layers = patch.shape[0], 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer."))
    model = VideoMAEModel(
        VideoMAEConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // (88 if width == 1408 else 64),
            intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
            patch_size=patch.shape[3],
            tubelet_size=patch.shape[2],
            use_mean_pooling="layernorm.weight" not in state,
        )
    )
    if "encoder.layer.0.attention.attention.q_bias" in model.state_dict():  # transformers before version 5
        state = {key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise TeacherError(f"{path.name} does not fit VideoMAE v2: missing {missing[:2]}, unexpected {unexpected[:2]}.")
    return model


def from_v2_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAE v2's state dict under transformers' names. Keys of the head and of the decoder are left out."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        joint = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", key)
        if joint:
            for name, part in zip(("query", "key", "value"), value.chunk(3)):
                found[f"encoder.layer.{joint[1]}.attention.attention.{name}.weight"] = part
            continue
        for pattern, template in V2_KEYS:
            match = re.fullmatch(pattern, key)
            if match:
                found[match.expand(template)] = value
                break
    return found
