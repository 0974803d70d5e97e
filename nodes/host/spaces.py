"""Latent spaces by the names that weights files carry, and which MODEL makes videos."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_patcher

from ...methods.video_models import NOT_VIDEO, SPACES, TOY, VideoModel, models_of, space_of_format

TOY_WIDTH = 256
"""A Wan DiT no wider than this is the toy world's: real ones are 1536 and more, and the toy VAE was trained
apart."""


def latent_space(model: comfy.model_patcher.ModelPatcher) -> str:
    """The name of the latent space a MODEL samples in, as weights files carry it: "wan2.1", "cogvideox",
    "toy", ...

    A format that no row of the table has gets its ComfyUI class name in lower case.
    """
    name = type(model.get_model_object("latent_format")).__name__
    known = space_of_format(name)
    space = name.lower() if known is None else known.name
    if space == "wan2.1" and getattr(model.model.diffusion_model, "dim", TOY_WIDTH + 1) <= TOY_WIDTH:
        return TOY.name
    return space


def latent_format(space: str) -> comfy.latent_formats.LatentFormat | None:
    """The format whose `process_in` turns a LATENT on a wire into what a MODEL of this space samples; None
    where unknown."""
    known = TOY if space == TOY.name else SPACES.get(space)
    found = None if known is None else getattr(comfy.latent_formats, known.latent_format, None)
    return None if found is None else found()


def video_models(model: comfy.model_patcher.ModelPatcher) -> list[VideoModel]:
    """The rows of the table that a MODEL may be; [] where it has none (the toy world's)."""
    return models_of(type(model.model.model_config).__name__, latent_space(model))


def require_video_model(model: comfy.model_patcher.ModelPatcher, node: str) -> None:
    """Raises ValueError where the MODEL makes images or sound."""
    does = NOT_VIDEO.get(type(getattr(model.model, "model_config", None)).__name__, "does not make videos")
    if does in NOT_VIDEO.values() or model.get_model_object("latent_format").latent_dimensions != 3:
        raise ValueError(f"{node} needs a video model, but {type(model.model).__name__} {does}.")
