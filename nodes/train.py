"""Train Motion Predictor: latents on a wire, or a folder of videos, become a predictor on a wire, and a file
that Load Motion Predictor lists."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..methods.lamo import MotionFieldPredictor, predictor_info, save_predictor
from ..methods.video_models import SPACES, TOY
from .host import files, patching, video_folder
from .host.files import check_name, check_place, free_path
from .host.latents import clips_of_folder, clips_of_latent, step_bytes
from .lamo import CATEGORY, MotionPredictor, MotionPredictorType
from .views import figures
from .views.traces import curves, summary

if TYPE_CHECKING:
    from ..training.tasks.predictor import PredictorTraining

UNWIRED: Any = object()
"""An input that no wire comes to, where ComfyUI checks a graph: it hands None over for one whose wire is
still to be computed."""


class TrainMotionPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsTrainMotionPredictor",
            display_name="Train Motion Predictor",
            category=CATEGORY,
            description="Trains the network that LaMo Guidance steers with, on the clips of a LATENT or of "
            "a folder of "
            "videos, and saves it where Load Motion Predictor finds it. The same training as the command "
            "`latent-physics predictor`.",
            search_aliases=["lamo", "physics", "training", "motion prior", "motion field"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Video clips to learn from, as one batch: encoded videos, joined with Latent "
                    "Batch, or a sampler's "
                    "output. All of one size. With one clip only, none can be held out for measuring. "
                    "Instead of it, choose a "
                    "folder.",
                ),
                io.Combo.Input(
                    "latent_space",
                    options=[TOY.name, *SPACES],
                    default="toy",
                    tooltip="VAE that the latent comes from. A LATENT does not say it, and a predictor "
                    "fits one space only. "
                    "wan2.1 is that of Wan 2.1 and Wan 2.2 14B.",
                ),
                io.String.Input(
                    "name",
                    default="my_predictor",
                    tooltip="File name in models/latent_physics, without a folder. An existing file is "
                    "never replaced: a number "
                    "is added. Empty: nothing is saved, the predictor is only put out.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=["toy", "full", "quick"],
                    default="toy",
                    tooltip="toy: 0.5M parameters, for small latents on a CPU. full: 10.8M parameters, the "
                    "paper's size, for a "
                    "real model's latents on a GPU. quick: 2.2M parameters, minutes on a GPU and at most "
                    "2.4 GiB at 832 x 480: "
                    "a first predictor to try with.",
                ),
                io.Int.Input(
                    "order",
                    default=1,
                    min=1,
                    max=2,
                    tooltip="1: predicts from one frame, as in the paper. 2: from one frame and the last "
                    "change, which says "
                    "which way things go.",
                ),
                io.Int.Input(
                    "lag",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Number of latent frames that it predicts ahead. 2 is the paper's value.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Training steps. 0 uses the recipe's: 3000 for toy and quick, 20000 for full.",
                ),
                io.Float.Input(
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.5,
                    tooltip="Stop after this many minutes, if that comes before steps. 0 sets no limit.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Seed of the first weights, the clips held out, the order of the data and the "
                    "noise.",
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Frame pairs per step. 0 uses the recipe's: 32 for toy, 16 for others. Lower it "
                    "if memory is short.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The clips' prompts: one for all, or as many as clips, joined with Conditioning "
                    "(Combine). Without "
                    "it the predictor does not look at prompts. With a folder: one for all of its videos.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Encodes the folder's videos; it has to be that of latent_space. Not needed for "
                    "a LATENT.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Reads the folder's captions: a .txt of the video's name beside it, else its "
                    "file name. Without it, and without positive, the predictor does not look at prompts; "
                    "nor does one made of ComfyUI's own clips, which have no captions.",
                ),
                io.Combo.Input(
                    "folder",
                    options=video_folder.list_folders(),
                    default=video_folder.NONE,
                    optional=True,
                    tooltip="Instead of a LATENT: a folder inside ComfyUI's input folder, with videos, "
                    "animations, or folders of frames at any depth, or the generated clips that ComfyUI's "
                    "own templates show, for a first predictor without videos of yours. Needs a VAE. Press R "
                    "after adding one. Clips that are broken or too short are skipped, and named in info.",
                ),
                *cut_inputs(),
            ],
            outputs=[
                MotionPredictorType.Output(
                    display_name="predictor",
                    tooltip="The trained network, for LaMo Guidance and Motion Field Heatmap.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="The loss per step, and how much of the change in the held-out clips stays "
                    "unexplained.",
                ),
                io.String.Output(
                    display_name="info", tooltip="Where it was saved, how long it took, how good it is."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        name: str | None = None,
        folder: str | None = video_folder.NONE,
        latent: Any = UNWIRED,
        vae: Any = UNWIRED,
    ) -> bool | str:
        try:
            check_name(name or "")
            if folder is not None:  # a wire may still bring one
                check_source(latent is not UNWIRED, folder, vae is not UNWIRED)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = video_folder.NONE, **_: Any) -> str:
        return video_folder.fingerprint(folder)

    @classmethod
    def execute(
        cls,
        latent_space: str,
        name: str,
        recipe: str,
        order: int,
        lag: int,
        steps: int,
        minutes: float,
        seed: int,
        batch: int = 0,
        latent: dict[str, Any] | None = None,
        positive: list[Any] | None = None,
        vae: Any | None = None,
        clip: Any | None = None,
        folder: str = video_folder.NONE,
        width: int = 0,
        height: int = 0,
        frames: int = 0,
        fps: float = 0.0,
    ) -> io.NodeOutput:
        from ..training.tasks.predictor import RECIPES, PredictorTraining

        check_name(name)
        check_source(latent is not None, folder, vae is not None)
        check_place(name)
        with scratch_folder() as scratch:
            if latent is not None:
                clips, skipped = clips_of_latent(latent, latent_space, positive), []
            else:
                cut = video_folder.Cut(width=width, height=height, frames=frames, fps=fps)
                clips, skipped = clips_of_folder(
                    folder, latent_space, vae, clip, positive, cut, Path(scratch)
                )
            device = comfy.model_management.get_torch_device()
            config = dataclasses.replace(
                RECIPES[recipe],
                order=order,
                lag=lag,
                steps=steps or RECIPES[recipe].steps,
                minutes=minutes or None,
                seed=seed,
                batch=batch or RECIPES[recipe].batch,
                held_out=RECIPES[recipe].held_out if len(set(clips.groups)) > 1 else 0.0,
                device=str(device),
            )
            comfy.model_management.free_memory(step_bytes(config, *clips.size), device)
            training = PredictorTraining(clips, config)
            train(training)
        predictor, kept = keep(name, training.averaged(), latent_space, lag, training.recipe())
        image = figures.plot(curves(training), title=f"{latent_space}, {training.step} steps")
        return io.NodeOutput(
            predictor, image, summary(training, kept, skipped), ui=figures.preview_image(image, cls)
        )


def cut_inputs() -> list[io.Input]:
    """Inputs of the form to which a folder's videos are cut."""
    return [
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=4096,
            step=16,
            optional=True,
            tooltip="Pixels to which the folder's videos are cropped and resized. 0 takes the "
            "usual value: 64 for toy, 720 for CogVideoX, 832 for Wan and others; 352 for ComfyUI's own "
            "clips, which are about that large.",
            advanced=True,
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=4096,
            step=16,
            optional=True,
            tooltip="Pixels. 0 takes the usual value: 64 for toy, 480 for others; 352 for ComfyUI's own "
            "clips.",
            advanced=True,
        ),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=4097,
            optional=True,
            tooltip="Frames taken of each video of the folder, from its start: a multiple of 4 plus "
            "1. 0 takes the "
            "usual value: 33 for toy, 49 for CogVideoX, 81 for Wan and others. Shorter videos are skipped.",
            advanced=True,
        ),
        io.Float.Input(
            "fps",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=1.0,
            optional=True,
            tooltip="Frames of faster videos are dropped down to this many per second; none are "
            "doubled. 0 uses the "
            "model's own rate: 8 for CogVideoX, 16 for Wan 2.1, 24 to 30 for others, all frames for "
            "toy. 1000 keeps all.",
            advanced=True,
        ),
    ]


def check_source(latent: bool, folder: str, vae: bool) -> None:
    """Raises ValueError unless there is exactly one thing to learn from, a LATENT or a folder that may be
    read and a VAE."""
    chosen = video_folder.is_chosen(folder)
    if latent and chosen:
        raise ValueError(
            f"there are two things to learn from: unwire the latent, or set folder to {video_folder.NONE}."
        )
    if not latent and not chosen:
        raise ValueError(
            "there is nothing to learn from: wire a latent, or choose a folder of videos and wire a vae."
        )
    if chosen:
        video_folder.check_folder(folder)
        if not vae:
            raise ValueError(
                f"the videos in {folder!r} have to be encoded: wire the vae of the chosen latent space."
            )


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in ComfyUI's own for temporary files, which goes away at the end."""
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
    return tempfile.TemporaryDirectory(
        prefix="latent_physics_", dir=folder_paths.get_temp_directory(), ignore_cleanup_errors=True
    )


def train(training: PredictorTraining) -> None:
    """Trains under ComfyUI's progress bar. Its cancel button ends it; nothing is written then."""
    training.run(progress_bar())


def progress_bar() -> Callable[[Any], None]:
    """An observer of a run that moves ComfyUI's progress bar, and ends it where it was cancelled."""
    progress = comfy.utils.ProgressBar(1000)

    def show(report: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update_absolute(math.floor(1000 * report.fraction), 1000)

    return show


def keep(
    name: str, network: MotionFieldPredictor, space: str, lag: int, recipe: dict[str, Any]
) -> tuple[MotionPredictor, str]:
    """(what travels on the wire, a line about the file). It is what Load Motion Predictor would make of the
    file.

    Where the file cannot be written after all, the line says so, and the predictor is on the wire
    nevertheless.
    """
    state = {key: value.detach().float().cpu() for key, value in network.state_dict().items()}
    info = predictor_info(network, space, lag, recipe)
    with torch.inference_mode(False):  # weights made in inference mode could not be differentiated through
        with torch.device("meta"):  # draws nothing from the random generators
            loaded = MotionFieldPredictor(**network.config, operations=comfy.ops.manual_cast)
        loaded.to_empty(device="cpu").load_state_dict(state)
        loaded.requires_grad_(False).eval()
    path, line = Path("unsaved"), "not saved: no name was given"
    if name:
        path = free_path(name)
        try:
            save_predictor(path, network, space, lag, recipe)
            line = f"saved as {path.name} in models/{files.FOLDER}"
        except OSError as error:
            why = f"{path} could not be written ({error.strerror})"
            line = f"NOT SAVED: {why}; the predictor is on the wire only"
            logging.error("Train Motion Predictor: %s", line)
    return MotionPredictor(name=path.name, patcher=patching.manage(loaded), info=info), line


NODES = [TrainMotionPredictor]
