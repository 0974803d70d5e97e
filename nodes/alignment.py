"""The alignment methods' view of a video, without training: where a video moves, and which places an encoder
or a DiT block takes for the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.relational import correspondence
from .host import spaces, tap, wires
from .host.encoders import encoder_names, find_encoder, load_encoder, on_device
from .host.files import state_of
from .views import figures
from .views.points import check_point, laid_over, mark, saliency_mask

if TYPE_CHECKING:
    from ..encoders import Teacher

CATEGORY = "latent physics/alignment"
VideoEncoderType = io.Custom("VIDEO_ENCODER")


@dataclass(frozen=True, kw_only=True)
class VideoEncoder:
    """Value of a VIDEO_ENCODER wire."""

    name: str
    """Name in the loader's menu."""
    teacher: Teacher
    """The frozen network, on the CPU between uses."""


class MotionSaliencyMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsMotionSaliencyMask",
            display_name="Motion Saliency Mask",
            category=CATEGORY,
            description="Marks the patches of a video that change most from one moment to the next: the "
            "same fraction of every "
            "frame. It is the mask with which M-TSA is trained. Needs no network.",
            search_aliases=["motion", "mask", "saliency", "tsa"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video."),
                io.Float.Input(
                    "keep",
                    default=0.2,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    tooltip="The fraction of each frame's patches to mark. 0.2 is the paper's value.",
                ),
                io.Int.Input(
                    "patch",
                    default=16,
                    min=1,
                    max=256,
                    tooltip="Side of a patch in pixels. VideoMAE's is 16, of a clip shrunk to a third: 48 "
                    "of the video's pixels.",
                ),
                io.Int.Input(
                    "frames_per_patch",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Number of frames in a patch; they share one mask. VideoMAE and V-JEPA 2 have 2.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="One mask per frame, 1 where it moves. Pixels beyond the last whole patch are 0.",
                ),
                io.Image.Output(display_name="shown", tooltip="The video with everything else darkened."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, keep: float, patch: int, frames_per_patch: int = 2) -> io.NodeOutput:
        mask = saliency_mask(images, keep, patch, frames_per_patch)
        shown = images[..., :3].float().cpu() * (0.25 + 0.75 * mask[..., None])
        return io.NodeOutput(mask, shown, ui=figures.preview_video(shown, cls))


class LoadVideoEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLoadVideoEncoder",
            display_name="Load Video Encoder",
            category=CATEGORY,
            description="Loads VideoMAE or V-JEPA 2: networks that learned from many videos what belongs "
            "together, and the "
            "teachers that video models are aligned with. Downloads nothing.",
            search_aliases=["videomae", "v-jepa", "vjepa", "teacher", "features"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=encoder_names(),
                    tooltip="A file in models/video_encoders (a folder from the model hub, with its "
                    "config.json, or "
                    "VideoMAE v2 as one file), or one that this pack wrote to models/latent_physics. Names "
                    "that begin with toy/ "
                    "come with the pack.",
                ),
            ],
            outputs=[
                VideoEncoderType.Output(
                    display_name="encoder", tooltip="The network, for Correspondence Map."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        if name is None:  # from another node, in a moment
            return True
        try:
            find_encoder(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        return state_of(name, lambda name: find_encoder(name)[1])

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(VideoEncoder(name=name, teacher=load_encoder(name)))


class TapBlock(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsTapBlock",
            display_name="Tap Block",
            category=CATEGORY,
            description="While the sampler runs, remembers what one block of the model says at one step, "
            "for Correspondence Map. "
            "The video comes out exactly as without it.",
            search_aliases=["features", "dit", "block", "correspondence"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A video model (Wan, CogVideoX, HunyuanVideo, the toy world)."
                ),
                io.Int.Input(
                    "block",
                    default=1,
                    min=1,
                    max=200,
                    tooltip="Number of the block, from 1. TSA aligns block 18 of CogVideoX-2B's 30; the toy "
                    "world has few.",
                ),
                io.Int.Input(
                    "step",
                    default=10,
                    min=1,
                    max=10000,
                    tooltip="At which of the sampler's steps, from 1; its last where it has fewer. Early "
                    "ones see mostly noise.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for the sampler and for Correspondence Map.")],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher, block: int, step: int) -> io.NodeOutput:
        spaces.require_video_model(model, "Tap Block")
        return io.NodeOutput(tap.add_tap(model, block, step))


class CorrespondenceMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsCorrespondenceMap",
            display_name="Correspondence Map",
            category=CATEGORY,
            description="Choose a point of one frame: the heat shows where a network believes that point to "
            "be in every frame. "
            "With a video encoder it is what a teacher knows; with a tapped model, what the generator knows.",
            search_aliases=["tracking", "attention", "features", "tsa"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The frames of the video. With a tapped model: its decoded latent."
                ),
                io.Int.Input(
                    "x", default=32, min=0, max=16384, tooltip="The point's column, in pixels from the left."
                ),
                io.Int.Input(
                    "y", default=32, min=0, max=16384, tooltip="The point's row, in pixels from the top."
                ),
                io.Int.Input(
                    "frame", default=0, min=0, max=100000, tooltip="The frame the point is in, from 0."
                ),
                io.Float.Input(
                    "temperature",
                    default=0.1,
                    min=0.001,
                    max=10.0,
                    step=0.01,
                    tooltip="Softmax temperature: low shows only the best match, high spreads it out. TSA uses "
                    "0.1.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the hottest place over the video.",
                ),
                VideoEncoderType.Input(
                    "encoder",
                    optional=True,
                    tooltip="From Load Video Encoder. Wire this, or model and latent.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that Tap Block gave to the sampler. Instead of encoder.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampler's output, with model: it makes this node wait for the sampler.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The video under the heat, each frame's likeliest place brightest; a cross "
                    "marks the point.",
                ),
                io.Mask.Output(
                    display_name="maps",
                    tooltip="The probabilities P[i, f], one map per frame of the features, at their height "
                    "and width; each sums "
                    "to 1.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        x: int,
        y: int,
        frame: int,
        temperature: float,
        opacity: float,
        encoder: VideoEncoder | None = None,
        model: comfy.model_patcher.ModelPatcher | None = None,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if (encoder is None) == (model is None):
            raise ValueError(
                "Correspondence Map needs either an encoder or a model from Tap Block, and not both."
            )
        check_point(images, x, y, frame)
        if encoder is not None:
            clip, found = images, encoder_features(encoder, images)
        else:
            clip, found = tapped_features(model, latent, images)
            check_point(clip, x, y, frame)
        height, width = found.covered
        row, column = min(y, height - 1) * found.grid[1] // height, min(x, width - 1) * found.grid[2] // width
        query = (found.index[frame], row, column)
        maps = correspondence(found.tokens, found.grid, query, temperature).cpu()
        shown = laid_over(clip, maps, found.index, opacity, found.covered)
        mark(shown[frame], x, y)
        return io.NodeOutput(shown, maps, ui=figures.preview_video(shown, cls))


# --- where it moves -----------------------------------------------------------------------------------------


# --- encoders -----------------------------------------------------------------------------------------------


# --- features of a clip -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClipFeatures:
    """Features of a clip, from an encoder or a tapped block."""

    tokens: Tensor
    """`N C`, frame-major."""
    grid: tuple[int, int, int]
    """(F, H, W) of the features."""
    index: list[int]
    """The feature frame that shows each image."""
    covered: tuple[int, int]
    """Height and width, in pixels from the upper left corner, of the part of an image that the features stand
    for."""


def encoder_features(encoder: VideoEncoder, images: Tensor) -> ClipFeatures:
    """Features of a clip `T H W 3`. Raises ValueError for a clip shorter than one of its
    tubelets."""
    video = images[..., :3].movedim(-1, 0)[None].float()
    with on_device(encoder.teacher):
        found = encoder.teacher.features(video)[0].cpu()
    last = found.shape[1] - 1
    index = [min(number // encoder.teacher.patch[0], last) for number in range(len(images))]
    covered = encoder.teacher.covered(*images.shape[1:3])
    return ClipFeatures(tokens=found.flatten(1).T, grid=tuple(found.shape[1:]), index=index, covered=covered)


def tapped_features(
    model: comfy.model_patcher.ModelPatcher, latent: dict[str, Any] | None, images: Tensor
) -> tuple[Tensor, ClipFeatures]:
    """(the images of the first clip, what the tapped block made of it). Raises ValueError where nothing
    fitting was tapped."""
    if latent is None:
        raise ValueError(
            "Correspondence Map has a model but no latent: wire the sampler's output, so that it waits for "
            "it."
        )
    found = tap.tapped(model)
    samples = wires.video_in(latent)
    clips, frames = samples.shape[0], samples.shape[2]
    if frames != found.frames:
        raise ValueError(
            f"the tapped block saw {found.frames} latent frames and this latent has {frames}: wire the "
            f"sampler's."
        )
    if len(images) % clips:
        raise ValueError(
            f"{len(images)} images do not belong to a latent of {clips} clips: wire its decoded video."
        )
    clip = images[: len(images) // clips]
    per_token = -(-frames // found.grid[0])
    index = [figures.latent_frame(number, len(clip), frames) // per_token for number in range(len(clip))]
    index = [min(one, found.grid[0] - 1) for one in index]
    return clip, ClipFeatures(
        tokens=found.tokens, grid=found.grid, index=index, covered=tuple(clip.shape[1:3])
    )


# --- pictures -----------------------------------------------------------------------------------------------


NODES = [LoadVideoEncoder, TapBlock, CorrespondenceMap, MotionSaliencyMask]
