"""A motion predictor as a file: what its metadata says and how it becomes a network again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..video_models import VideoModel
from ..weights import WeightsError, WeightsInfo, load_weights, read_info, save_weights
from .predictor import MotionFieldPredictor

KIND = "motion_predictor"
TOLERANCE = 1.25
"""Rates are taken for the same where one is at most this many times the other."""


def predictor_info(
    predictor: MotionFieldPredictor, latent_space: str, lag: int = 2, recipe: Mapping[str, Any] | None = None
) -> WeightsInfo:
    """Metadata of the predictor's file: constructor arguments and lag as config, the latent space it fits,
    how it was trained.

    A recipe that knows them says `fps`, of the clips, and `seconds_per_latent_frame`: the lag is a time, and
    a model of another rate moves another way in it.
    """
    return WeightsInfo(
        kind=KIND,
        latent_space=latent_space,
        config={**predictor.config, "lag": lag},
        recipe=dict(recipe or {}),
    )


def save_predictor(
    path: str | os.PathLike[str],
    predictor: MotionFieldPredictor,
    latent_space: str,
    lag: int = 2,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Writes the predictor's weights and metadata, all or nothing. Raises OSError."""
    save_weights(path, predictor.state_dict(), predictor_info(predictor, latent_space, lag, recipe))


def load_predictor(
    path: str | os.PathLike[str], operations: Any = nn, latent_space: str | None = None
) -> tuple[MotionFieldPredictor, WeightsInfo]:
    """The predictor (on the CPU, float32, frozen, in evaluation mode) and its metadata.

    Raises WeightsError where the file is missing, no safetensors file, of another kind, damaged, or, where
    `latent_space` is given, trained on another one. Draws nothing from the random generators.
    """
    name = Path(path).name
    check_fits(read_info(path), latent_space, name)
    state, info = load_weights(path, KIND)
    check_use(info, name)
    arguments = {key: info.config.get(key) for key in ("channels", "cond_dim", "width", "blocks", "order")}
    arguments["prompted"] = info.config.get("prompted", True)  # files of before say nothing: they were
    try:
        # Before blocks are built: a file may claim any number of them.
        if isinstance(arguments["blocks"], int) and arguments["blocks"] > len(state):
            raise ValueError(f"blocks is {arguments['blocks']}, but the file holds {len(state)} tensors")
        with torch.device("meta"):
            expected = {
                key: tuple(value.shape)
                for key, value in MotionFieldPredictor(**arguments).state_dict().items()
            }
        _compare(expected, {key: tuple(value.shape) for key, value in state.items()})
        with torch.device("meta"):
            predictor = MotionFieldPredictor(**arguments, operations=operations)
        predictor.to_empty(device="cpu")
        predictor.load_state_dict({key: value.float() for key, value in state.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{name} does not hold the motion predictor that its metadata describes ({error})."
        ) from error
    return predictor.requires_grad_(False).eval(), info


def check_fits(info: WeightsInfo, latent_space: str | None, name: str) -> None:
    """Raises WeightsError where `info` is no motion predictor or was trained on another latent space than
    `latent_space`."""
    if info.kind != KIND:
        raise WeightsError(f"{name} holds a {info.kind}, not a {KIND}.")
    if latent_space is not None and info.latent_space != latent_space:
        raise WeightsError(
            f"{name} was trained on {info.latent_space!r} latents, but this model's latents are "
            f"{latent_space!r}: "
            f"choose a motion predictor trained on {latent_space!r}."
        )


def check_use(info: WeightsInfo, name: str) -> None:
    """Raises WeightsError where the metadata names a lag or an order that no guidance could use; nothing is
    loaded for it."""
    lag, order = info.config.get("lag"), info.config.get("order")
    if not isinstance(lag, int) or lag < 1:
        raise WeightsError(
            f"{name} says that its lag is {lag!r}; it must be a whole number of latent frames, at least 1."
        )
    if order not in (1, 2):
        raise WeightsError(
            f"{name} says that its order is {order!r}, but this pack reads 1 (one frame) and 2 (one frame "
            "and the last change): choose another motion predictor, or update the pack."
        )


def rate_note(info: WeightsInfo, models: Sequence[VideoModel], name: str) -> str | None:
    """One sentence where the clips that a predictor learned from run at another rate than every one of
    `models`; None where a rate is within TOLERANCE, or is not known.

    The lag is a number of latent frames: at half the rate things move twice as far in it.
    """
    rate = info.recipe.get("fps")
    if not isinstance(rate, int | float) or rate <= 0:
        return None
    ratios = [rate / model.fps for model in models if model.fps]
    if not ratios or any(1 / TOLERANCE <= ratio <= TOLERANCE for ratio in ratios):
        return None
    model = next(model for model in models if model.fps)
    return (
        f"{name} learned from clips of {rate:.3g} frames per second, but {model.title} makes {model.fps:g}: "
        f"it expects {model.fps / rate:.2g} times the motion; train one on clips of that rate."
    )


def _compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"{key} should be {expected.get(key, 'absent')} and is {found.get(key, 'absent')}"
            )
