"""The first frame that image-to-video models are given beside noise and words, as ComfyUI gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from ..console import TrainingError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = 0.5
MASK_CHANNELS = 4
"""One for each of the frames that a latent frame holds."""
HEAD_WIDTH = 80
"""Of ViT-H, the encoder that Wan reads: 16 heads of 80."""


@dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """What a model is given of the first frames of a batch. What it does not take is None."""

    latent: Tensor | None = None
    """`B C T H W` in model scaling: the first frame followed by grey, encoded. Wan with 36 channels."""
    vision: Tensor | None = None
    """`B N D`: the tokens before CLIP vision's last layer. Wan 2.1."""
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
    """What a 36-channel Wan sees, `B 36 T H W`: noise, a mask that is 1 in the first latent frame, the first
    frame's latent (ComfyUI's `WAN21.concat_cond`)."""
    mask = torch.zeros_like(noisy[:, :MASK_CHANNELS])
    mask[:, :, 0] = 1
    return torch.cat([noisy, mask, latent.to(noisy)], dim=1)


class ClipVision(nn.Module):
    """CLIP's vision encoder, of which Wan 2.1 reads the tokens before the last layer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Tokens `B N D` of images `B 3 H W` in [0, 1], squeezed into CLIP's square without cropping, as Wan
        was trained and as ComfyUI's template encodes them."""
        weight = next(self.encoder.parameters())
        side = self.encoder.config.image_size
        pixels = image.to(weight.device, torch.float32)
        if pixels.shape[-2:] != (side, side):
            pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        pixels = (pixels * 255).clamp(0, 255).round() / 255  # CLIP was trained on bytes
        pixels = (pixels - _column(CLIP_MEAN, pixels)) / _column(CLIP_STD, pixels)
        return self.encoder(pixel_values=pixels.to(weight.dtype), output_hidden_states=True).hidden_states[-2]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def vision_from_file(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> ClipVision:
    """CLIP's vision encoder from a file as ComfyUI's models/clip_vision holds it; sizes are read off the
    tensors. Raises TrainingError where it is something else."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    head = "vision_model."
    state = {key.removeprefix(head): value.to(dtype) for key, value in state.items() if key.startswith(head)}
    try:
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        cells = state["embeddings.position_embedding.weight"].shape[0] - 1
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=1 + max(int(key.split(".")[2]) for key in state if ".layers." in key),
            num_attention_heads=max(1, width // HEAD_WIDTH),
            image_size=round(cells**0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
        )
        with torch.device("meta"):
            model = CLIPVisionModel(config)
        state.pop("embeddings.position_ids", None)
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        if unexpected or [key for key in missing if not key.endswith("position_ids")]:
            raise KeyError((missing + unexpected)[0])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(
            f"{path.name} is not CLIP's vision encoder ViT-H ({reason}); use the file clip_vision_h."
        ) from error
    model.embeddings.position_ids = torch.arange(cells + 1)[None]
    return ClipVision(model)
