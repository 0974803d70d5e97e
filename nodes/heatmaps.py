"""LaMo's two heatmaps: where a video moves, and where a motion predictor expects motion."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.lamo import (
    MotionPriorGuidance,
    drift_heatmap,
    field_heatmap,
    motion_amount,
)
from ..methods.video_models import SPACES
from .host import conditioning, spaces, wires
from .lamo import CATEGORY, MotionPredictor, MotionPredictorType, latent_input
from .views import figures

SKIP = 2
"""First maps that the heatmaps leave out: those of the pairs (0, 2) and (1, 3) hold most of a causal VAE's
start."""


AS_WIRED = "as wired"


class MotionDriftHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsMotionDriftHeatmap",
            display_name="Motion Drift Heatmap",
            category=CATEGORY,
            description="Shows where a video moves: how strongly each place changes in the direction in "
            "which the whole frame "
            "changes. Needs no trained network.",
            search_aliases=["lamo", "motion", "heatmap"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                latent_input(),
                _images_input(),
                _lag_input(default=2, least=1),
                *_view_inputs(),
                _skip_input(),
                io.Combo.Input(
                    "latent_space",
                    options=[AS_WIRED, *SPACES],
                    default=AS_WIRED,
                    optional=True,
                    tooltip="Compare in the latents as the model samples them. Channels of the VAE's own "
                    "latents have scales "
                    f"that differ by up to 8 times (Wan), so the largest rule the heat. {AS_WIRED}: the "
                    f"VAE's.",
                    advanced=True,
                ),
            ],
            outputs=[
                *_heatmap_outputs(),
                io.Float.Output(
                    display_name="motion",
                    tooltip="Amount of change between the compared frames, as a share of the latent's "
                    "standard deviation; of the first clip. 0 is a still clip. Compare clips of one model: "
                    "flicker counts too.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        lag: int,
        opacity: float,
        scale_mask: bool,
        images: Tensor | None = None,
        skip: int = SKIP,
        latent_space: str = AS_WIRED,
    ) -> io.NodeOutput:
        video = wires.finite_video(latent, "no motion to show")
        form = None if latent_space == AS_WIRED else spaces.latent_format(latent_space)
        inside = video if form is None else form.process_in(video)
        maps, peak = drift_heatmap(inside, lag, skip=skip)
        shown, mask, frame = _overlay(maps, peak, video.shape[2], images, opacity, scale_mask)
        motion = float(motion_amount(inside[:1], lag, skip)[0])
        return io.NodeOutput(shown, mask, frame, motion, ui=figures.preview_video(shown, cls))


class MotionFieldHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsMotionFieldHeatmap",
            display_name="Motion Field Heatmap",
            category=CATEGORY,
            description="Shows where a motion predictor expects motion: what it says of each frame, less "
            "what it says of the "
            "same scene standing still.",
            search_aliases=["lamo", "motion", "heatmap"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                latent_input(),
                MotionPredictorType.Input(
                    "predictor", tooltip="From Load Motion Predictor; trained on this latent's space."
                ),
                _images_input(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The prompt of the video. Without it the predictor is asked without a prompt.",
                ),
                _lag_input(default=0, least=0),
                *_view_inputs(),
                _skip_input(),
            ],
            outputs=_heatmap_outputs(),
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        predictor: MotionPredictor,
        lag: int,
        opacity: float,
        scale_mask: bool,
        images: Tensor | None = None,
        positive: list[Any] | None = None,
        skip: int = SKIP,
    ) -> io.NodeOutput:
        video = wires.finite_video(latent, "no motion to show")
        network, patcher = predictor.network, predictor.patcher
        guidance = MotionPriorGuidance(network, lag=predictor.lag(lag))
        guidance.check(tuple(video.shape))
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=guidance.memory_required(tuple(video.shape))
        )
        form = spaces.latent_format(predictor.info.latent_space)
        inside = (
            video if form is None else form.process_in(video)
        )  # wires carry the VAE's latents, predictors read the sampler's
        device = patcher.load_device
        conds = [{"cross_attn": tokens, **options} for tokens, options in positive or []]
        cond = conditioning.pooled_condition(conds, 0.0, video.shape, device)
        maps, peak = field_heatmap(inside.to(device), network, cond, guidance.lag, skip)
        maps = maps.to(video.device)
        shown, mask, frame = _overlay(maps, peak, video.shape[2], images, opacity, scale_mask)
        return io.NodeOutput(shown, mask, frame, ui=figures.preview_video(shown, cls))


def _images_input() -> io.Image.Input:
    return io.Image.Input(
        "images",
        optional=True,
        tooltip="The decoded video of the same latent, to lay the heat over. Without it the heat is shown "
        "alone.",
    )


def _lag_input(default: int, least: int) -> io.Int.Input:
    usual = "2 is the paper's value." if least else "0 uses the lag the predictor was trained with."
    tooltip = f"Latent frames between the two frames that are compared. {usual}"
    return io.Int.Input("lag", default=default, min=least, max=16, tooltip=tooltip)


def _skip_input() -> io.Int.Input:
    return io.Int.Input(
        "skip",
        default=SKIP,
        min=0,
        max=16,
        optional=True,
        tooltip="Latent frames at the start that are not shown. Most video VAEs make the first latent frame "
        "of a single video "
        "frame and the others of several, which changes more than anything that moves. 0 shows all.",
        advanced=True,
    )


def _view_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "opacity",
            default=0.7,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Opacity of the hottest place over the video.",
        ),
        io.Boolean.Input(
            "scale_mask",
            default=False,
            tooltip="Scale the mask so that the clip's hottest place is 1, for use as a mask. Off, it holds "
            "the raw values.",
        ),
    ]


def _heatmap_outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            display_name="overlay",
            tooltip="The video under its heat; the hottest place of a clip is the brightest.",
        ),
        io.Mask.Output(
            display_name="maps",
            tooltip="One map per latent frame that has a successor, at the latent's height and width.",
        ),
        io.Int.Output(
            display_name="peak_frame",
            tooltip="The frame with the strongest common motion, of the first clip: its number among the "
            "images, or among the "
            "latent frames where no images are wired.",
        ),
    ]


def _overlay(
    maps: Tensor, peak: Tensor, latents: int, images: Tensor | None, opacity: float, scale_mask: bool
) -> tuple[Tensor, Tensor, int]:
    """Maps `(B, T', H, W)` as overlay, mask and peak frame. Clips of a batch follow one another, as VAE
    Decode puts them."""
    maps = maps.cpu()
    scaled = figures.unit_range(maps)
    if images is None:
        shown = figures.heat_frames(scaled.flatten(0, 1))
        frame = int(peak[0])
    else:
        if len(images) % len(maps) or len(images) < len(maps):
            raise ValueError(
                f"{len(images)} images do not belong to a latent of {len(maps)} clips: wire the decoded "
                f"video of this latent."
            )
        clips = images.reshape(len(maps), -1, *images.shape[1:])
        shown = torch.cat(
            [figures.overlay(clip, scaled[b], latents, opacity) for b, clip in enumerate(clips)]
        )
        frame = figures.decoded_frame(int(peak[0]), clips.shape[1], latents)
    mask = (scaled if scale_mask else maps).flatten(0, 1).float()
    return shown, mask, frame


NODES = [MotionDriftHeatmap, MotionFieldHeatmap]
