"""LaMo nodes: load a motion predictor, guide a MODEL with it, see where motion is, see what guidance did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.lamo import (
    KIND,
    WINDOWS,
    GuidanceTrace,
    MotionFieldPredictor,
    MotionPriorGuidance,
    drift_heatmap,
    field_heatmap,
    load_predictor,
)
from ..methods.lamo.weights import check_fits
from ..methods.weights import WeightsError, WeightsInfo
from .host import files, patching, wires
from .views import figures, traces

CATEGORY = "latent physics/lamo"
SHARE, START = 0.5, 0.9
"""Defaults of LaMo Guidance: share of the stable step, and noise level below which steps are guided."""
SKIP = 2
"""First maps that the heatmaps leave out: those of the pairs (0, 2) and (1, 3) hold most of a causal VAE's
start."""
AS_WIRED = "as wired"
MotionPredictorType = io.Custom("MOTION_PREDICTOR")


@dataclass(frozen=True, kw_only=True)
class MotionPredictor:
    """What travels on a MOTION_PREDICTOR wire."""

    name: str
    """The file's name in the loader's menu."""
    patcher: comfy.model_patcher.ModelPatcher
    """The network under ComfyUI's memory management."""
    info: WeightsInfo
    """What the file says of itself."""

    @property
    def network(self) -> MotionFieldPredictor:
        return self.patcher.model

    def lag(self, override: int) -> int:
        """The lag to use: `override`, or what the predictor was trained with where that is 0."""
        return override or int(self.info.config["lag"])


class LoadMotionPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLoadMotionPredictor",
            display_name="Load Motion Predictor",
            category=CATEGORY,
            description="Loads a network that was trained to say how a latent video frame changes next. "
            "LaMo Guidance and "
            "Motion Field Heatmap use it. It fits one latent space (Wan 2.1, CogVideoX, ...) only.",
            search_aliases=["lamo", "physics", "motion prior", "motion field"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=files.list_files(KIND),
                    tooltip="A file in models/latent_physics, written by `latent-physics predictor`. Names "
                    "that begin with "
                    "toy/ come with the pack and fit the toy world.",
                ),
            ],
            outputs=[
                MotionPredictorType.Output(
                    display_name="predictor",
                    tooltip="The network, for LaMo Guidance and Motion Field Heatmap.",
                ),
                io.String.Output(
                    display_name="info",
                    tooltip="What the file says: latent space, sizes, lag, how it was trained.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        try:
            check_fits(files.file_info(name), None, name)
        except WeightsError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return files.fingerprint(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        with torch.inference_mode(
            False
        ):  # weights made in inference mode could not be differentiated through
            network, info = load_predictor(files.find_file(name), operations=comfy.ops.manual_cast)
        predictor = MotionPredictor(name=name, patcher=patching.manage(network), info=info)
        return io.NodeOutput(predictor, _describe(name, info))


class LaMoGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLaMoGuidance",
            display_name="LaMo Guidance",
            category=CATEGORY,
            description="While the sampler runs, nudges the video towards motion that the predictor expects "
            "(Motion Prior "
            "Guidance). Put it between the model loader and the sampler. The prompt is read from the "
            "sampler's positive "
            "conditioning.",
            search_aliases=["lamo", "physics", "motion prior guidance", "motion"],
            inputs=[
                io.Model.Input("model", tooltip="A video model whose latents the predictor was trained on."),
                MotionPredictorType.Input("predictor", tooltip="From Load Motion Predictor."),
                io.Float.Input(
                    "strength",
                    default=25.0,
                    min=0.0,
                    max=10000.0,
                    step=0.5,
                    tooltip="The paper's lambda; 25 is its value for CogVideoX, 0 leaves the model exactly "
                    "as it was. In mode "
                    "bounded it only lets the nudge fade out in the last steps, and share says how hard to "
                    "push.",
                    advanced=True,
                ),
                io.Float.Input(
                    "active",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fraction of the schedule that is guided, from its clean end, where window is "
                    "percent or steps. "
                    "0.8 is the paper's value.",
                    advanced=True,
                ),
                io.Int.Input(
                    "lag",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Latent frames between the two frames that are compared. 0 uses the lag the "
                    "predictor was trained "
                    "with, which is what it predicts best.",
                    advanced=True,
                ),
                io.Float.Input(
                    "max_ratio",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Limit on the nudge as a fraction of the noise that the step removes. 0 sets no "
                    "limit.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "full_trace",
                    default=False,
                    tooltip="Also measure the motion error after each nudge and in the steps that are not "
                    "guided, for "
                    "Guidance Trace. Runs the predictor once more per step.",
                    advanced=True,
                ),
                io.Float.Input(
                    "share",
                    default=SHARE,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How hard to push, as a share of the largest nudge that cannot overshoot: the "
                    "same number for "
                    "every length, step count, sampler and CFG. 0 leaves the model exactly as it was.",
                ),
                io.Float.Input(
                    "start",
                    default=START,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Noise level below which the steps are guided, 1 = pure noise. The picture is "
                    "still noise above "
                    "it. The same number fits every shift, both samplers of Wan 2.2, and denoise below 1.",
                ),
                io.Combo.Input(
                    "window",
                    options=list(WINDOWS),
                    default="noise",
                    optional=True,
                    tooltip="Which steps are guided. noise: those below the noise level start. percent: the "
                    "last active of "
                    "the model's own schedule. steps: the last active of this sampler's steps, as in the "
                    "paper.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "mode",
                    options=["bounded", "paper"],
                    default="bounded",
                    optional=True,
                    tooltip="bounded: no nudge is longer than share allows. paper: strength alone decides, "
                    "which breaks the "
                    "picture where it is high and the noise is.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with guidance, for any sampler. More guidance nodes can follow."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: comfy.model_patcher.ModelPatcher,
        predictor: MotionPredictor,
        strength: float,
        active: float,
        lag: int = 0,
        max_ratio: float = 0.0,
        full_trace: bool = False,
        share: float = SHARE,
        start: float = START,
        window: str = "noise",
        mode: str = "bounded",
    ) -> io.NodeOutput:
        patching.require_video_model(model, "LaMo Guidance")
        check_fits(predictor.info, patching.latent_space(model), predictor.name)
        guidance = MotionPriorGuidance(
            predictor.network,
            scale=strength if share > 0 or mode == "paper" else 0.0,
            lag=predictor.lag(lag),
            active=active,
            bound=None if mode == "paper" else share or SHARE,
            window=window,
            start=start,
            max_ratio=max_ratio or None,
            trace=GuidanceTrace(measure_after=full_trace),
        )
        return io.NodeOutput(
            patching.add_correction(model, guidance, networks=[predictor.patcher], key="latent_physics.lamo")
        )


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
            inputs=[
                _latent_input(),
                _images_input(),
                _lag_input(default=2, least=1),
                *_view_inputs(),
                _skip_input(),
                io.Combo.Input(
                    "latent_space",
                    options=[AS_WIRED, *patching.LATENT_SPACES.values()],
                    default=AS_WIRED,
                    optional=True,
                    tooltip="Compare in the latents as the model samples them. Channels of the VAE's own "
                    "latents have scales "
                    f"that differ by up to 8 times (Wan), so the largest rule the heat. {AS_WIRED}: the "
                    f"VAE's.",
                    advanced=True,
                ),
            ],
            outputs=_heatmap_outputs(),
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
        form = None if latent_space == AS_WIRED else patching.latent_format(latent_space)
        maps, peak = drift_heatmap(video if form is None else form.process_in(video), lag, skip=skip)
        return _show(maps, peak, video.shape[2], images, opacity, scale_mask, cls)


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
            inputs=[
                _latent_input(),
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
        form = patching.latent_format(predictor.info.latent_space)
        inside = (
            video if form is None else form.process_in(video)
        )  # wires carry the VAE's latents, predictors read the sampler's
        device = patcher.load_device
        conds = [{"cross_attn": tokens, **options} for tokens, options in positive or []]
        cond = patching.pooled_condition(conds, 0.0, video.shape, device)
        maps, peak = field_heatmap(inside.to(device), network, cond, guidance.lag, skip)
        return _show(maps.to(video.device), peak, video.shape[2], images, opacity, scale_mask, cls)


class GuidanceTraceNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsGuidanceTrace",
            display_name="Guidance Trace",
            category=CATEGORY,
            description="Plots what LaMo Guidance did in the last run: the motion error per step, before "
            "and after, and how "
            "large the nudge was.",
            search_aliases=["lamo", "guidance", "plot", "debug"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that LaMo Guidance gave to the sampler."),
                io.Latent.Input(
                    "latent",
                    tooltip="The sampler's output. It is not looked at; it makes this node wait for the "
                    "sampler.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot", tooltip="Motion error L_guide per step, and |edit| / |x0|."
                ),
                io.String.Output(display_name="table", tooltip="The same numbers as comma-separated text."),
            ],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher, latent: dict[str, Any]) -> io.NodeOutput:
        video = wires.video_in(latent)
        found = {
            key.removeprefix("latent_physics."): traces.of_this_run(correction, video)
            for key, correction in patching.corrections(model)
            if isinstance(correction, MotionPriorGuidance) and correction.trace is not None
        }
        if not found:
            raise ValueError(
                "Guidance Trace was given a MODEL without LaMo Guidance: wire the MODEL that LaMo Guidance "
                "puts out."
            )
        if not any(trace.rows for trace in found.values()):
            raise ValueError(
                "Guidance Trace found nothing: no sampler ran with this MODEL, or none of its steps was "
                "guided."
            )
        image = figures.plot(traces.panels(found))
        return io.NodeOutput(image, traces.table(found), ui=figures.preview_image(image, cls))


def _describe(name: str, info: WeightsInfo) -> str:
    lines = [f"{name}: motion predictor for {info.latent_space} latents"]
    lines += [f"{key}: {value}" for part in (info.config, info.recipe) for key, value in part.items()]
    return "\n".join(lines)


def _latent_input() -> io.Latent.Input:
    return io.Latent.Input("latent", tooltip="A video latent: a sampler's output, or an encoded video.")


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
            tooltip="How much the hottest place covers the video.",
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


def _show(
    maps: Tensor,
    peak: Tensor,
    latents: int,
    images: Tensor | None,
    opacity: float,
    scale_mask: bool,
    cls: type[io.ComfyNode],
) -> io.NodeOutput:
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
    return io.NodeOutput(shown, mask, frame, ui=figures.preview_video(shown, cls))


NODES = [LoadMotionPredictor, LaMoGuidance, MotionDriftHeatmap, MotionFieldHeatmap, GuidanceTraceNode]
