"""The table of video models against the ComfyUI that is installed."""

from __future__ import annotations

import pytest

pytest.importorskip("comfy.supported_models", reason="needs ComfyUI; run dev.py setup")

import comfy.latent_formats
import comfy.sd
import comfy.supported_models
from latent_physics.methods.video_models import MODELS, NOT_VIDEO, SPACES
from latent_physics.nodes.host import spaces

LISTED = {name for model in MODELS.values() for name in model.classes}


def formats(supported):
    """Classes of the latent formats that a class of supported_models may have: CogVideoX has two."""
    found = supported.latent_format
    kind = found if isinstance(found, type) else type(found)
    return {kind, *kind.__subclasses__()} if kind.__name__ == "CogVideoX" else {kind}


def video_classes():
    return {
        kind.__name__: kind
        for kind in comfy.supported_models.models
        if getattr(getattr(kind, "latent_format", None), "latent_dimensions", 2) == 3
    }


def test_every_model_of_comfyui_whose_latents_have_frames_is_in_the_table():
    """Fails by name where a release brings another one: give it a row, or say what it does instead."""
    assert sorted(set(video_classes()) - LISTED - set(NOT_VIDEO)) == []
    assert not LISTED & set(NOT_VIDEO)


def test_every_row_is_a_model_of_comfyui():
    assert sorted(LISTED - set(video_classes())) == []
    assert sorted(set(NOT_VIDEO) - set(video_classes())) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_latent_format_and_text_encoder_of_its_classes(name):
    model = MODELS[name]
    for supported in model.classes:
        names = {kind.__name__ for kind in formats(video_classes()[supported])}
        assert SPACES[model.space].latent_format in names, supported
    assert hasattr(comfy.sd.CLIPType, model.clip_type.upper())


@pytest.mark.parametrize("name", SPACES)
def test_a_space_has_the_compression_of_its_format(name):
    space, form = SPACES[name], spaces.latent_format(name)
    assert form.spacial_downscale_ratio == space.pixels
    assert round(space.frames.stride) == form.temporal_downscale_ratio or name == "minimax_h3"
    if name == "minimax_h3":  # the format's count is that of its sound
        form = comfy.latent_formats.MiniMaxH3Video()
    assert form.latent_channels == space.channels


def test_minimax_h3_counts_frames_as_comfyui_does():
    from comfy_extras.nodes_minimax_h3 import FPS, align_frame_count, video_latent_t

    rule = SPACES["minimax_h3"].frames
    assert MODELS["h3"].fps == FPS
    for frames in range(6, 400):
        assert rule.fits(frames) == (align_frame_count(frames) == frames)
        if rule.fits(frames):
            assert rule.latent_frames(frames) == video_latent_t(frames)


def test_a_space_that_nobody_knows_has_no_format():
    assert spaces.latent_format("somebody elses") is None
