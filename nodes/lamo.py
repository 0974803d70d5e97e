"""LaMo nodes: load a motion predictor, guide a MODEL with it, see where motion is, see what guidance did."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io

from ..methods.lamo import (
    KIND,
    WINDOWS,
    GuidanceTrace,
    MotionFieldPredictor,
    MotionPriorGuidance,
    load_predictor,
)
from ..methods.lamo.weights import check_fits, check_use, rate_note
from ..methods.video_models import main_model
from ..methods.weights import WeightsError, WeightsInfo
from .host import files, patching, spaces, wires
from .views import figures, traces

CATEGORY = "latent physics/lamo"
SHARE, START = 0.5, 0.9
"""Defaults of LaMo Guidance: share of the stable step, and noise level below which steps are guided."""
MotionPredictorType = io.Custom("MOTION_PREDICTOR")
NO_PREDICTOR = (
    "The template first_predictor makes one in minutes, from clips that every ComfyUI has (Train Motion "
    "Predictor)."
)


@dataclass(frozen=True, kw_only=True)
class MotionPredictor:
    """Value of a MOTION_PREDICTOR wire."""

    name: str
    """The file's name in the loader's menu."""
    patcher: comfy.model_patcher.ModelPatcher
    """The network under ComfyUI's memory management."""
    info: WeightsInfo
    """Metadata of the file."""

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
                    tooltip="The file's metadata: latent space, sizes, lag, training.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        if name is None:  # from another node, in a moment
            return True
        try:
            info = files.file_info(name)
            check_fits(info, None, name)
            check_use(info, name)
        except WeightsError as error:
            return str(error) if files.is_there(name) else f"{error} {NO_PREDICTOR}"
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
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
                    tooltip="Strength of the nudge, as a share of the largest nudge that cannot overshoot: the "
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
                    tooltip="Steps that are guided. noise: those below the noise level start. percent: the "
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
        spaces.require_video_model(model, "LaMo Guidance")
        check_fits(predictor.info, spaces.latent_space(model), predictor.name)
        if note := rate_note(predictor.info, spaces.video_models(model), predictor.name):
            logging.warning("LaMo Guidance: %s", note)
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
            patching.add_correction(
                model,
                guidance,
                networks=[predictor.patcher],
                key="latent_physics.lamo",
                title="LaMo Guidance",
            )
        )


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
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that LaMo Guidance gave to the sampler."),
                io.Latent.Input(
                    "latent",
                    tooltip="The sampler's output. Only used to run this node after the sampler.",
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
    model = main_model(info.latent_space)
    if model and (note := rate_note(info, [model], name)):
        lines.append(f"NOTE: {note}")
    lines += [f"{key}: {value}" for part in (info.config, info.recipe) for key, value in part.items()]
    return "\n".join(lines)


def latent_input() -> io.Latent.Input:
    return io.Latent.Input("latent", tooltip="A video latent: a sampler's output, or an encoded video.")


NODES = [LoadMotionPredictor, LaMoGuidance, GuidanceTraceNode]
