"""Latent spaces by the names that weights files carry, and which MODEL makes videos."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_patcher

LATENT_SPACES = {
    "Wan21": "wan2.1",
    "Wan22": "wan2.2",
    "CogVideoX": "cogvideox",
    "CogVideoX1_5": "cogvideox1.5",
    "HunyuanVideo": "hunyuan_video",
    "HunyuanVideo15": "hunyuan_video1.5",
    "LTXV": "ltxv",
    "LTXAV": "ltxav",
    "Mochi": "mochi",
    "Cosmos1CV8x8x8": "cosmos1",
}
"""ComfyUI's latent format -> the name that weights files carry. Wan 2.2 14B has Wan 2.1's latents; only its
5B has its own."""

TOY_WIDTH = 256
"""A Wan DiT no wider than this is the toy world's: real ones are 1536 and more, and the toy VAE was trained
apart."""


def latent_space(model: comfy.model_patcher.ModelPatcher) -> str:
    """The name of the latent space a MODEL samples in, as weights files carry it: "wan2.1", "cogvideox",
    "toy", ...

    A format that is not in LATENT_SPACES gets its ComfyUI class name in lower case.
    """
    name = type(model.get_model_object("latent_format")).__name__
    space = LATENT_SPACES.get(name, name.lower())
    if space == "wan2.1" and getattr(model.model.diffusion_model, "dim", TOY_WIDTH + 1) <= TOY_WIDTH:
        return "toy"
    return space


def latent_format(space: str) -> comfy.latent_formats.LatentFormat | None:
    """The format whose `process_in` turns a LATENT on a wire into what a MODEL of this space samples; None
    where unknown."""
    names = {known: name for name, known in LATENT_SPACES.items()} | {"toy": "Wan21"}
    found = getattr(comfy.latent_formats, names.get(space, ""), None)
    return None if found is None else found()


def require_video_model(model: comfy.model_patcher.ModelPatcher, node: str) -> None:
    """Raises ValueError where the MODEL makes images or sound."""
    if model.get_model_object("latent_format").latent_dimensions != 3:
        raise ValueError(
            f"{node} needs a video model, but {type(model.model).__name__} does not make videos."
        )
