"""The first frame that image-to-video models are given beside noise and words, as ComfyUI gives it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = 0.5
MASK_CHANNELS = 4
"""One for each of the frames that a latent frame holds."""
HEAD_WIDTH = 80
"""Head width of ViT-H, the encoder that Wan reads: 16 heads of 80."""
SIGLIP_HEAD_WIDTH = 72
"""Head width of so400m, the encoder that HunyuanVideo 1.5 reads: 16 heads of 72."""


@dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """The first frames of a batch as a model is given them. Parts that it does not take are None."""

    latent: Tensor | None = None
    """`B C T H W` in model scaling: the first frame followed by grey, encoded (Wan with 36 channels), or the
    first frame alone (HunyuanVideo 1.5, T = 1)."""
    vision: Tensor | None = None
    """`B N D`: the tokens before CLIP vision's last layer (Wan 2.1), or SigLIP's last (HunyuanVideo 1.5)."""
    given: Tensor | None = None
    """`B`, True where the video's first latent frame is shown without noise. Wan 2.2 5B."""

    def to(self, device: str | torch.device) -> FirstFrame:
        """The same on another device."""
        return self.mapped(lambda value: value.to(device, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> FirstFrame:
        """The same with every tensor changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return FirstFrame(
            **{name: value if value is None else change(value) for name, value in values.items()}
        )


def followed_by_grey(video: Tensor) -> Tensor:
    """The first frame of a video `B 3 T H W` in [0, 1], then grey: what WanImageToVideo encodes."""
    shown = torch.full_like(video, GREY)
    shown[:, :, 0] = video[:, :, 0]
    return shown


def concatenated(noisy: Tensor, latent: Tensor) -> Tensor:
    """Input of a 36-channel Wan, `B 36 T H W`: noise, a mask that is 1 in the first latent frame, the first
    frame's latent (ComfyUI's `WAN21.concat_cond`)."""
    mask = torch.zeros_like(noisy[:, :MASK_CHANNELS])
    mask[:, :, 0] = 1
    return torch.cat([noisy, mask, latent.to(noisy)], dim=1)


class ClipVision(nn.Module):
    """CLIP's vision encoder, of which Wan 2.1 reads the tokens before the last layer, of the whole picture
    squeezed into its square, as it was trained and as ComfyUI's template encodes it."""

    mean, std = CLIP_MEAN, CLIP_STD
    crop = False

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Tokens `B N D` of images `B 3 H W` in [0, 1]."""
        return self.states(self.pixels(image)).hidden_states[-2]

    def states(self, pixels: Tensor) -> Any:
        """The encoder's answer with all its hidden states."""
        dtype = next(self.encoder.parameters()).dtype
        return self.encoder(pixel_values=pixels.to(dtype), output_hidden_states=True)

    def pixels(self, image: Tensor) -> Tensor:
        """Images in the encoder's size and scaling (ComfyUI's `clip_preprocess`)."""
        side = self.encoder.config.image_size
        pixels = image.to(next(self.encoder.parameters()).device, torch.float32)
        if pixels.shape[-2:] != (side, side):
            size = [side, side]
            if self.crop:
                size = [round(side / min(pixels.shape[-2:]) * length) for length in pixels.shape[-2:]]
            pixels = nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
            top, left = ((length - side) // 2 for length in size)
            pixels = pixels[..., top : top + side, left : left + side]
        pixels = (pixels * 255).clamp(0, 255).round() / 255  # both were trained on bytes
        return (pixels - _column(self.mean, pixels)) / _column(self.std, pixels)


class SiglipVision(ClipVision):
    """SigLIP's, of which HunyuanVideo 1.5 reads the last tokens, of the picture's middle square."""

    mean = std = (0.5, 0.5, 0.5)
    crop = True

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self.states(self.pixels(image)).last_hidden_state


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def vision_from_folder(source: str | os.PathLike[str], dtype: torch.dtype, encoder: str) -> ClipVision:
    """A diffusers folder's or hub id's vision encoder, of a class of transformers. Raises OSError."""
    import transformers

    model = getattr(transformers, encoder).from_pretrained(
        source, subfolder="image_encoder", dtype=dtype, use_safetensors=True
    )
    return (SiglipVision if encoder.startswith("Siglip") else ClipVision)(model)


def vision_from_file(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> ClipVision:
    """CLIP's vision encoder from a file as ComfyUI's models/clip_vision holds it; sizes are read off the
    tensors. Raises TrainingError where it is something else."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    def build(sizes: dict[str, int]) -> nn.Module:
        cells = sizes.pop("places") - 1
        config = CLIPVisionConfig(
            **sizes,
            num_attention_heads=max(1, sizes["hidden_size"] // HEAD_WIDTH),
            image_size=round(cells**0.5) * sizes["patch_size"],
            hidden_act="gelu",
        )
        return CLIPVisionModel(config)

    return ClipVision(_filled(path, state, dtype, build, "CLIP's vision encoder ViT-H", "clip_vision_h"))


def siglip_from_file(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> SiglipVision:
    """SigLIP's vision encoder from such a file. Raises TrainingError where it is something else."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    def build(sizes: dict[str, int]) -> nn.Module:
        cells = sizes.pop("places")
        config = SiglipVisionConfig(
            **sizes,
            num_attention_heads=max(1, sizes["hidden_size"] // SIGLIP_HEAD_WIDTH),
            image_size=round(cells**0.5) * sizes["patch_size"],
            vision_use_head=False,
        )
        return SiglipVisionModel(config)

    state = {key: value for key, value in state.items() if ".head." not in key}
    what, file = "SigLIP's vision encoder", "sigclip_vision_patch14_384"
    return SiglipVision(_filled(path, state, dtype, build, what, file))


def _filled(
    path: Path,
    state: dict[str, Tensor],
    dtype: torch.dtype,
    build: Callable[[dict[str, int]], nn.Module],
    what: str,
    file: str,
) -> nn.Module:
    """The model that `build` makes of a file's sizes, with its weights."""
    head = "vision_model."
    state = {key.removeprefix(head): value.to(dtype) for key, value in state.items() if key.startswith(head)}
    try:
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        sizes = {
            "hidden_size": width,
            "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": 1 + max(int(key.split(".")[2]) for key in state if ".layers." in key),
            "patch_size": patch,
            "places": state["embeddings.position_embedding.weight"].shape[0],
        }
        places = sizes["places"]
        with torch.device("meta"):
            model = build(sizes)
        state.pop("embeddings.position_ids", None)
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        if unexpected or [key for key in missing if not key.endswith("position_ids")]:
            raise KeyError((missing + unexpected)[0])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(f"{path.name} is not {what} ({reason}); use the file {file}.") from error
    model.embeddings.position_ids = torch.arange(places)[None]
    return model
