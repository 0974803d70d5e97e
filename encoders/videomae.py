"""VideoMAE (transformers), and VideoMAE v2 by key map: from its authors' hub repositories or files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Teacher, TeacherError, digest_of, fill, pretrained, reason_of

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
)
"""VideoMAE v2's names -> transformers'. The joint qkv weight is split."""

V2_BESIDE = r"(fc_norm|norm|head|decoder)\..*|encoder_to_decoder\.weight|mask_token|pos_embed"
"""Tensors that a VideoMAE v2 file may hold besides the blocks. The norms belong to the pooled head (or to the
decoder's input): tokens are taken before them, as VideoREPA takes them. The positions are a fixed table."""
V1_BESIDE = (
    r"(videomae\.)?((decoder|classifier|fc_norm)\..*|encoder_to_decoder\.weight|mask_token"
    r"|position_embeddings)"
)
"""The same for VideoMAE v1, in transformers' names."""


class VideoMAETeacher(Teacher):
    """VideoMAE v1 or v2.

    Positions are resized to the clip's grid: cubic in space, linear in time (VideoREPA).
    """

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
            return cls(
                from_v2_file(Path(source)), f"videomae_v2 {Path(source).name} {digest_of([source])}", device
            )
        config = hub_config(source)
        if is_v2(config):
            path = hub_file(source, "model.safetensors")
            return cls(
                from_v2_file(path, config["model_config"]),
                f"videomae_v2 {source} {digest_of([path])}",
                device,
            )
        model, identity = pretrained(VideoMAEModel, source, "VideoMAE encoder", V1_BESIDE)
        return cls(model, f"videomae {identity}", device)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """A third of the covered part: whole patches.

        Clips no larger than the encoder's own input keep their size.
        """
        patch, shrink = self.model.config.patch_size, self._shrink(height, width)
        return tuple(max(patch, side // (shrink * patch) * patch) for side in (height, width))

    def covered(self, height: int, width: int) -> tuple[int, int]:
        """Whole patches of the clip; what is left at the right and at the bottom is no part of a patch.

        A patch is then exactly 48 x 48 pixels of a large clip: 3 x 3 tokens of a transformer with patches of
        16 pixels.
        """
        shrink = self._shrink(height, width)
        return tuple(
            min(side, shrink * small) for side, small in zip((height, width), self.size(height, width))
        )

    def _shrink(self, height: int, width: int) -> int:
        return SHRINK if min(height, width) > self.model.config.image_size else 1

    def encode(self, clip: Tensor) -> Tensor:
        grid = tuple(size // p for size, p in zip(clip.shape[2:], self.patch))
        embeddings = self.model.embeddings
        embeddings.position_embeddings = positions(self._table, grid).flatten(2).transpose(1, 2)
        embeddings.patch_embeddings.image_size = tuple(clip.shape[3:])
        return self.model(clip.transpose(1, 2)).last_hidden_state


def positions(table: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Position table `1 C F H W` on another grid: cubic in space, then linear in time, each only where the
    size differs.
    """
    frames, *space = grid
    if tuple(table.shape[3:]) != tuple(space):
        flat = table.transpose(1, 2).flatten(0, 1)
        flat = functional.interpolate(flat, size=tuple(space), mode="bicubic", align_corners=False)
        table = flat[None].transpose(1, 2)
    if table.shape[2] != frames:
        table = functional.interpolate(table, size=(frames, *space), mode="trilinear", align_corners=False)
    return table


def hub_config(source: str) -> dict[str, Any]:
    """config.json of a hub repository or folder, as it stands there.

    Raises TeacherError where there is none.
    """
    try:
        return json.loads(hub_file(source, "config.json").read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise TeacherError(f"config.json of {source} is not readable JSON ({reason_of(error)}).") from error


def hub_file(source: str, name: str) -> Path:
    """Path of a file of a hub repository or folder. Raises TeacherError where it is not to be had."""
    from transformers.utils import cached_file

    try:
        return Path(cached_file(source, name))
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{source} could not be loaded as a VideoMAE encoder: {reason_of(error)}"
        ) from error


def is_v2(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of VideoMAE v2's hub repositories (OpenGVLab/VideoMAEv2-Base and its
    sisters).

    Transformers has no class for them; their own code is never run.
    """
    kind = re.sub(r"[^a-z0-9]", "", str(config.get("model_type")).lower())
    return kind.startswith("videomaev2") and isinstance(config.get("model_config"), dict)


def from_v2_file(path: Path, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A VideoMAE v2 encoder from a safetensors file in its authors' key names; sizes are read off the
    tensors.

    config: the `model_config` of its hub repository, for what tensors do not tell (heads, frames, side).
    Raises TeacherError for a pickle, and for a file that holds less than the encoder or something else.
    """
    import safetensors
    import safetensors.torch
    from transformers import VideoMAEModel

    if path.suffix != ".safetensors":
        raise TeacherError(
            f"{path.name} is a pickle, which can run code when opened; convert it to safetensors first."
        )
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{path.name} is not a readable safetensors file ({reason_of(error)}).") from error
    state = from_v2_keys(
        {re.sub(r"^(model|module|encoder)\.", "", key): value for key, value in state.items()}
    )
    model = VideoMAEModel(v2_config(state, config or {}, path.name))
    if "encoder.layer.0.attention.attention.q_bias" in model.state_dict():  # transformers before version 5
        state = {
            key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
            for key, value in state.items()
        }
    fill(model, state, path.name)
    return model


def v2_config(state: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> Any:
    """transformers' VideoMAEConfig of a VideoMAE v2 encoder.

    Raises TeacherError where the file `name` holds none.
    """
    from transformers import VideoMAEConfig

    needed = ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.intermediate.dense.weight")
    if lacking := [key for key in needed if key not in state]:
        raise TeacherError(f"{name} is not a VideoMAE v2 encoder: it has no {lacking[0]}.")
    patch = state[needed[0]]
    width = patch.shape[0]
    return VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=1
        + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer.")),
        num_attention_heads=config.get("num_heads") or width // (88 if width == 1408 else 64),
        intermediate_size=state[needed[1]].shape[0],
        image_size=config.get("img_size") or 224,
        num_frames=config.get("num_frames") or 16,
        patch_size=patch.shape[3],
        tubelet_size=patch.shape[2],
        layer_norm_eps=1e-6,
        use_mean_pooling=True,  # no norm after the last block
    )


def from_v2_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAE v2's state dict under transformers' names, without what `V2_BESIDE` names.

    Unknown keys keep their names.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        joint = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", key)
        if joint:
            for name, part in zip(("query", "key", "value"), value.chunk(3)):
                found[f"encoder.layer.{joint[1]}.attention.attention.{name}.weight"] = part.contiguous()
        elif not re.fullmatch(V2_BESIDE, key):
            found[renamed(key)] = value
    return found


def renamed(key: str) -> str:
    """One key of VideoMAE v2 under transformers' name."""
    for pattern, template in V2_KEYS:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(template)
    return key
