"""Video models' VAE and text encoder through ComfyUI's own loaders, where a ComfyUI is at hand: what caching
reads of models that have no backbone here.

Beside nodes/host it is the only file that knows ComfyUI; it is imported by those who need it alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ...methods.video_models import SPACES, VideoModel
from ..console import TrainingError
from .first_frame import FirstFrame

NO_COMFYUI = (
    "this model is encoded by ComfyUI's own loaders, and there is no ComfyUI: set COMFYUI_PATH to the folder "
    "of an installation, and run this command with its Python."
)
CHECKPOINT_VAE = "vae."
"""Prefix of the VAE's tensors in a whole checkpoint, as LTX's are."""


def find_comfyui() -> bool:
    """Whether ComfyUI can be imported: this process is one, or COMFYUI_PATH names an installation."""
    if "comfy" in sys.modules or importlib.util.find_spec("comfy") is not None:
        return True
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "comfy" / "sd.py").is_file():
        return False
    sys.path.append(path)  # last: nothing of ours may be hidden by a file of ComfyUI's
    importlib.invalidate_caches()
    return True


def start_comfyui(device: str) -> Any:
    """ComfyUI's `comfy.sd`, on the CPU where `device` is one. Raises TrainingError where there is none."""
    if not find_comfyui():
        raise TrainingError(NO_COMFYUI)
    try:
        import comfy.cli_args

        if "comfy.model_management" not in sys.modules and device == "cpu":
            comfy.cli_args.args.cpu = True
        import comfy.sd
    except ImportError as error:
        raise TrainingError(
            f"ComfyUI in {os.environ.get('COMFYUI_PATH', 'this process')} cannot be imported ({error}): run "
            "this command with the Python that runs it."
        ) from error
    return comfy.sd


class ComfyVideoEncoder:
    """A VAE file as ComfyUI loads it."""

    def __init__(self, model: VideoModel, path: str | os.PathLike[str], device: str) -> None:
        """Raises TrainingError where there is no ComfyUI, the file is no VAE, or not that of the model."""
        self.space, self.latent_space = SPACES[model.space], model.space
        self.vae = load_vae(Path(path), start_comfyui(device))
        self.format = format_of_space(model.space)
        if self.vae.latent_channels != self.space.channels:
            raise TrainingError(
                f"{Path(path).name} makes latents of {self.vae.latent_channels} channels, but those of "
                f"{model.title} have {self.space.channels}: give that model's VAE."
            )

    @torch.inference_mode()
    def encode_video(self, video: Tensor) -> Tensor:
        """`1 3 T H W` in [0, 1] -> `1 C T' H' W'` as a model samples it."""
        latent = self.vae.encode(video[0].permute(1, 2, 3, 0))
        return self.format.process_in(latent.float().cpu()).clone()

    def encode_first_frame(self, video: Tensor) -> FirstFrame:
        """Raises TrainingError: only the Wan backbone says what its image-to-video models are given."""
        raise TrainingError("first_frame is made for backbone wan only: leave it out, or leave model out.")


class ComfyPrompts:
    """A CLIP of ComfyUI's as what gives every token of a prompt."""

    def __init__(self, clip: Any, width: int, names: str, title: str) -> None:
        """width: numbers per token that the model reads; names, title: the CLIP's and the model's for an
        error."""
        self.clip, self.width, self.names, self.title = clip, width, names, title

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` and mask `B L`, as they stand on a CONDITIONING wire.

        Raises TrainingError where their width is not the model's.
        """
        rows, masks = zip(*(self._embed(prompt) for prompt in prompts))
        longest = max(len(row) for row in rows)
        pad = torch.nn.functional.pad
        tokens = torch.stack([pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        return tokens, torch.stack([pad(mask, (0, longest - len(mask))) for mask in masks])

    def _embed(self, prompt: str) -> tuple[Tensor, Tensor]:
        (tokens, options), *_ = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        if tokens.shape[-1] != self.width:
            raise TrainingError(
                f"{self.names} gives {tokens.shape[-1]} numbers per token, but {self.title} reads "
                f"{self.width}: give that model's text files."
            )
        return counted_tokens(tokens, options)


def counted_tokens(tokens: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The tokens `L D` and mask `L` of a CONDITIONING's first prompt, `1 L D`; without a mask of the
    encoder's, zero tokens do not count."""
    tokens, mask = tokens[0].float().cpu().clone(), options.get("attention_mask")
    if mask is None or mask.shape[-1] != len(tokens):
        return tokens, tokens.ne(0).any(dim=-1)
    return tokens, mask[0].cpu().bool().clone()


class ComfyTextEncoder(ComfyPrompts):
    """Text encoder files as ComfyUI loads them."""

    def __init__(self, model: VideoModel, paths: Sequence[str | os.PathLike[str]], device: str) -> None:
        """Raises TrainingError where there is no ComfyUI, or the files are no text encoder of the model."""
        sd = start_comfyui(device)
        kind = getattr(sd.CLIPType, model.clip_type.upper(), None)
        names = " and ".join(Path(path).name for path in paths)
        if kind is None:
            raise TrainingError(f"this ComfyUI has no text encoder {model.clip_type!r}: update it.")
        try:
            clip = sd.load_clip(ckpt_paths=[os.fspath(path) for path in paths], clip_type=kind)
        except (OSError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
            raise TrainingError(f"ComfyUI cannot load {names} as a text encoder ({error}).") from error
        super().__init__(clip, model.prompt_width, names, model.title)


def load_vae(path: Path, sd: Any) -> Any:
    """ComfyUI's VAE of a file, or of the part of a checkpoint that is one. Raises TrainingError."""
    import comfy.utils

    try:
        tensors, metadata = comfy.utils.load_torch_file(os.fspath(path), return_metadata=True)
        if any(name.startswith(CHECKPOINT_VAE) for name in tensors):
            tensors = {
                name.removeprefix(CHECKPOINT_VAE): tensor
                for name, tensor in tensors.items()
                if name.startswith(CHECKPOINT_VAE)
            }
        vae = sd.VAE(sd=tensors, metadata=metadata)
        vae.throw_exception_if_invalid()
    except (OSError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise TrainingError(f"ComfyUI cannot load {path.name} as a VAE ({error}).") from error
    return vae


def format_of_space(space: str) -> Any:
    """ComfyUI's latent format of a space of the table. Raises TrainingError where this ComfyUI lacks it."""
    import comfy.latent_formats

    found = getattr(comfy.latent_formats, SPACES[space].latent_format, None)
    if found is None:
        raise TrainingError(f"this ComfyUI does not know {space} latents: update it.")
    return found()
