"""Train Motion Predictor: latents on a wire, or a folder of videos, become a predictor on a wire, and a file that Load Motion
Predictor lists."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.lamo import MotionFieldPredictor, pool_tokens, predictor_info, save_predictor
from . import files, patching, video_folder, views, wires
from .lamo import CATEGORY, MotionPredictor, MotionPredictorType

if TYPE_CHECKING:
    from ..training.dataset import Clips
    from ..training.predictor import PredictorConfig, PredictorTraining

SPACES = ["toy", *patching.LATENT_SPACES.values()]
PROMPT_WIDTH = {"cosmos1": 1024, "hunyuan_video1.5": 3584}
"""Numbers per token of a space's text encoder, for a training without prompts; the others have 4096."""
NAME = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9][a-z0-9 ._-]{0,99}", re.IGNORECASE)
"""File names that every system takes; Windows reads those at the start as devices."""
ROOM = 64 * 1024**2
"""Bytes that must be free before training: the largest predictor takes 43 MB."""
SKIPPED = 20
"""At most so many of the clips that were skipped are named."""
POINTS = 300
"""At most so many points per curve; longer runs are averaged over stretches of steps."""
BYTES_PER_ACTIVATION = 34.0
"""Memory of a training step per pair, position, channel and block: the full recipe measures 0.4 GiB at 60 x 104."""

UNWIRED: Any = object()
"""An input that no wire comes to, where ComfyUI checks a graph: it hands None over for one whose wire is still to be computed."""


class TrainMotionPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsTrainMotionPredictor",
            display_name="Train Motion Predictor",
            category=CATEGORY,
            description="Trains the network that LaMo Guidance steers with, on the clips of a LATENT or of a folder of "
            "videos, and saves it where Load Motion Predictor finds it. The same training as the command "
            "`latent-physics predictor`.",
            search_aliases=["lamo", "physics", "training", "motion prior", "motion field"],
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Video clips to learn from, as one batch: encoded videos, joined with Latent Batch, or a sampler's "
                    "output. All of one size. With one clip only, none can be held out for measuring. Instead of it, choose a "
                    "folder.",
                ),
                io.Combo.Input(
                    "latent_space",
                    options=SPACES,
                    default="toy",
                    tooltip="Which VAE the latent comes from. A LATENT does not say it, and a predictor fits one space only. "
                    "wan2.1 is that of Wan 2.1 and Wan 2.2 14B.",
                ),
                io.String.Input(
                    "name",
                    default="my_predictor",
                    tooltip="File name in models/latent_physics, without a folder. An existing file is never replaced: a number "
                    "is added. Empty: nothing is saved, the predictor is only put out.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=["toy", "full"],
                    default="toy",
                    tooltip="toy: 0.5M parameters, for small latents on a CPU. full: 10.8M parameters, the paper's size, for a "
                    "real model's latents on a GPU.",
                ),
                io.Int.Input(
                    "order",
                    default=1,
                    min=1,
                    max=2,
                    tooltip="1: predicts from one frame, as in the paper. 2: from one frame and the last change, which says "
                    "which way things go.",
                ),
                io.Int.Input(
                    "lag", default=2, min=1, max=16, tooltip="How many latent frames ahead it predicts. 2 is the paper's value."
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Training steps. 0 uses the recipe's: 3000 for toy, 20000 for full.",
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
                    tooltip="Of the first weights, the clips held out, the order of the data and the noise.",
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Frame pairs per step. 0 uses the recipe's: 32 for toy, 16 for full. Lower it where memory is short.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The clips' prompts: one for all, or as many as clips, joined with Conditioning (Combine). Without "
                    "it the predictor does not look at prompts. With a folder: one for all of its videos.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Encodes the folder's videos; it has to be that of latent_space. Not needed for a LATENT.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Reads the folder's captions: a .txt of the video's name beside it, else its file name. Without it, "
                    "and without positive, the predictor does not look at prompts.",
                ),
                io.Combo.Input(
                    "folder",
                    options=video_folder.list_folders(),
                    default=video_folder.NONE,
                    optional=True,
                    tooltip="Instead of a LATENT: a folder inside ComfyUI's input folder, with videos, animations, or folders of "
                    "frames at any depth. Needs a VAE. Press R after adding one. Clips that are broken or too short are "
                    "skipped, and named in info.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    tooltip="Pixels to which the folder's videos are cropped and resized. 0 uses what is usual: 64 for toy, 720 "
                    "for CogVideoX, 832 for Wan and others.",
                    advanced=True,
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    tooltip="Pixels. 0 uses what is usual: 64 for toy, 480 for others.",
                    advanced=True,
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4097,
                    optional=True,
                    tooltip="Frames taken of each video of the folder, from its start: a multiple of 4 plus 1. 0 uses what is "
                    "usual: 33 for toy, 49 for CogVideoX, 81 for Wan and others. Shorter videos are skipped.",
                    advanced=True,
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    optional=True,
                    tooltip="Frames of faster videos are dropped down to this many per second; none are doubled. 0 uses what is "
                    "usual: all of them for toy, 8 for CogVideoX, 16 for Wan and others. 1000 keeps all.",
                    advanced=True,
                ),
            ],
            outputs=[
                MotionPredictorType.Output(
                    display_name="predictor", tooltip="The trained network, for LaMo Guidance and Motion Field Heatmap."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="The loss per step, and how much of the change in the held-out clips stays unexplained.",
                ),
                io.String.Output(display_name="info", tooltip="Where it was saved, how long it took, how good it is."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, name: str | None = None, folder: str | None = video_folder.NONE, latent: Any = UNWIRED, vae: Any = UNWIRED
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
        from ..training.predictor import RECIPES, PredictorTraining

        check_name(name)
        check_source(latent is not None, folder, vae is not None)
        check_place(name)
        with tempfile.TemporaryDirectory(prefix="latent_physics_", dir=temp_directory(), ignore_cleanup_errors=True) as scratch:
            if latent is not None:
                clips, skipped = clips_of_latent(latent, latent_space, positive), []
            else:
                cut = video_folder.Cut(width=width, height=height, frames=frames, fps=fps)
                clips, skipped = clips_of_folder(folder, latent_space, vae, clip, positive, cut, Path(scratch))
            prompted = bool(positive) or (latent is None and clip is not None)
            device = comfy.model_management.get_torch_device()
            config = dataclasses.replace(
                RECIPES[recipe],
                order=order,
                lag=lag,
                steps=steps or RECIPES[recipe].steps,
                minutes=minutes or None,
                seed=seed,
                batch=batch or RECIPES[recipe].batch,
                validation=RECIPES[recipe].validation if len(set(clips.groups)) > 1 else 0.0,
                device=str(device),
                **({} if prompted else {"drop_probability": 0.0}),  # there is no prompt to drop
            )
            comfy.model_management.free_memory(step_bytes(config, *clips.size), device)
            training = PredictorTraining(clips, config)
            train(training)
        network = training.averaged()
        if not prompted:
            forget_prompts(network)
        predictor, kept = keep(name, network, latent_space, lag, training.recipe())
        image = views.plot(curves(training), title=f"{latent_space}, {training.step} steps")
        return io.NodeOutput(predictor, image, summary(training, kept, skipped), ui=views.preview_image(image, cls))


def check_source(latent: bool, folder: str, vae: bool) -> None:
    """Raises ValueError unless there is exactly one thing to learn from, a LATENT or a folder that may be read and a VAE."""
    chosen = video_folder.is_chosen(folder)
    if latent and chosen:
        raise ValueError(f"there are two things to learn from: unwire the latent, or set folder to {video_folder.NONE}.")
    if not latent and not chosen:
        raise ValueError("there is nothing to learn from: wire a latent, or choose a folder of videos and wire a vae.")
    if chosen:
        video_folder.find_folder(folder)
        if not vae:
            raise ValueError(f"the videos in {folder!r} have to be encoded: wire the vae of the chosen latent space.")


def temp_directory() -> str:
    """ComfyUI's folder for temporary files, made where it is missing."""
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
    return folder_paths.get_temp_directory()


def clips_of_latent(latent: dict[str, Any], space: str, positive: list[Any] | None) -> Clips:
    """The clips of a LATENT and their prompts. Raises ValueError where they do not fit."""
    from ..training.dataset import Clips

    video = sampled_latents(latent, space)
    return Clips.from_tensors(list(video), pooled_prompts(positive, len(video)), space, cond_dim=prompt_width(space))


def clips_of_folder(
    folder: str, space: str, vae: Any, clip: Any | None, positive: list[Any] | None, cut: video_folder.Cut, scratch: Path
) -> tuple[Clips, list[str]]:
    """(the clips of a folder, a sentence for each that could not be used). Raises ValueError where none can be."""
    if clip is not None and positive:
        raise ValueError("there are two sources of prompts: wire clip, for the captions, or positive, one prompt for all.")
    fixed = pooled_prompts(positive, 1)
    fixed = torch.zeros(prompt_width(space)) if fixed is None else fixed[0]

    def embed(caption: str) -> Tensor:
        if clip is None:
            return fixed
        return pooled_prompts(clip.encode_from_tokens_scheduled(clip.tokenize(caption)), 1)[0]

    return video_folder.encode_folder(
        video_folder.find_folder(folder), space, vae, embed, cut, scratch=scratch, to_sampled=sampled_latents
    )


def prompt_width(space: str) -> int:
    return PROMPT_WIDTH.get(space, 4096)


def check_name(name: str) -> None:
    """Raises ValueError for a file name that could lead out of the folder, or that a system would not take."""
    if name and not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the predictor's file name: use letters, digits, spaces, dots, dashes and underscores, "
            "and no folder."
        )


def check_place(name: str) -> None:
    """Raises ValueError, before the training and not after it, where nothing could be saved."""
    if not name:
        return
    files.register_folder()
    folder = Path(folder_paths.models_dir) / files.FOLDER
    try:
        tempfile.TemporaryFile(dir=folder).close()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): allow it, or leave the name empty.") from error
    if free < ROOM:
        raise ValueError(f"{folder} has {free / 1e6:.0f} MB free and needs {ROOM / 1e6:.0f}: make room, or leave the name empty.")


def sampled_latents(latent: dict[str, Any], space: str) -> Tensor:
    """The clips of a LATENT as a model of `space` samples them, `B C T H W` float32 on the CPU.

    Wires carry the VAE's latents; predictors read what samplers see. Raises ValueError where the latent is not of that space.
    """
    video = wires.video_in(latent)
    if video.ndim != 5:
        raise ValueError(f"Train Motion Predictor needs a video latent, B C T H W, but this one is {tuple(video.shape)}.")
    form = patching.latent_format(space)
    if form is None:
        raise ValueError(f"this ComfyUI does not know the latent space {space!r}; choose another one, or update ComfyUI.")
    if form.latent_channels != video.shape[1]:
        raise ValueError(
            f"this latent has {video.shape[1]} channels, but {space} latents have {form.latent_channels}: choose the latent "
            "space of the VAE that made it."
        )
    return form.process_in(video.float().cpu())


def pooled_prompts(positive: list[Any] | None, clips: int) -> Tensor | None:
    """One pooled prompt embedding per clip, `clips D`; None without prompts.

    Raises ValueError where there are neither one nor as many prompts as clips, or they have no tokens.
    """
    rows = []
    for tokens, options in positive or []:
        if tokens.ndim != 3:
            raise ValueError("this prompt has no text tokens; wire the output of CLIP Text Encode.")
        mask = options.get("attention_mask")
        fits = mask is not None and mask.ndim == 2 and mask.shape[-1] == tokens.shape[1]
        rows += list(pool_tokens(tokens, mask if fits else None).float().cpu())
    if not rows:
        return None
    if len(rows) not in (1, clips):
        raise ValueError(f"there are {len(rows)} prompts for {clips} clips; wire one prompt for all, or one for each.")
    return torch.stack(rows * (clips // len(rows)))


def step_bytes(config: PredictorConfig, height: int, width: int) -> float:
    """About what a training step needs on the device."""
    return BYTES_PER_ACTIVATION * height * width * config.width * config.blocks * config.batch


def train(training: PredictorTraining) -> None:
    """Trains under ComfyUI's progress bar. Its cancel button ends it; nothing is written then."""
    progress = comfy.utils.ProgressBar(1000)

    def show(report: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update_absolute(math.floor(1000 * report.fraction), 1000)

    training.run(show)


def forget_prompts(network: MotionFieldPredictor) -> None:
    """Makes a predictor that never saw a prompt ignore prompts; otherwise they would act through untrained weights."""
    with torch.inference_mode(False), torch.no_grad():
        network.embed.weight.zero_()


def keep(
    name: str, network: MotionFieldPredictor, space: str, lag: int, recipe: dict[str, Any]
) -> tuple[MotionPredictor, str]:
    """(what travels on the wire, a line about the file). It is what Load Motion Predictor would make of the file.

    Where the file cannot be written after all, the line says so, and the predictor is on the wire nevertheless.
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
            line = f"NOT SAVED: {path} could not be written ({error.strerror}); the predictor is on the wire only"
            logging.error("Train Motion Predictor: %s", line)
    return MotionPredictor(name=path.name, patcher=patching.manage(loaded), info=info), line


def free_path(name: str) -> Path:
    """A file in models/latent_physics that does not exist yet: NAME, or NAME_2, NAME_3 and so on."""
    files.register_folder()
    folder = Path(folder_paths.models_dir) / files.FOLDER
    stem = name.removesuffix(".safetensors")
    names = (f"{stem}{f'_{number}' if number > 1 else ''}.safetensors" for number in range(1, 100000))
    return next(folder / file for file in names if not os.path.lexists(folder / file))


def curves(training: PredictorTraining) -> list[views.Panel]:
    """The log as plots. Curves of long runs are averaged."""

    def curve(column: str, label: str, dashed: bool = False) -> views.Curve | None:
        rows = [(row["step"], row[column]) for row in training.log.rows if column in row]
        if not rows:
            return None
        table = [torch.tensor(part).mean(dim=0) for part in chunks(rows, math.ceil(len(rows) / POINTS))]
        return views.Curve(label=label, x=[float(x) for x, _ in table], y=[float(y) for _, y in table], dashed=dashed)

    loss = [curve("loss", "training"), curve("val_loss", "held-out clips", dashed=True)]
    panels = [views.Panel(title="loss (LaMo, eq 7)", x_label="step", curves=[one for one in loss if one], log=True)]
    unexplained = curve("unexplained", "held-out clips")
    if unexplained:
        title = "share of the change that is not explained (1: knows nothing, 0: perfect)"
        panels.append(views.Panel(title=title, x_label="step", curves=[unexplained]))
    return panels


def chunks(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def summary(training: PredictorTraining, kept_as: str, skipped: list[str]) -> str:
    """What came out, for the info output."""
    kept = training.kept()
    held = "no clip was held out, so nothing is known of new clips"
    if "unexplained" in kept:
        held = f"unexplained change in held-out clips: {kept['unexplained']:.3f}, at step {kept['kept_step']}, which is kept"
    rows = [row["loss"] for row in training.log.rows if "loss" in row]
    return "\n".join(
        [
            kept_as,
            f"{len(training.clips)} clips of {training.clips.latent_space} latents, {len(training.pairs)} frame pairs",
            f"{training.step} steps in {training.seconds:.0f} s, last loss {rows[-1]:.4f}" if rows else "no step was made",
            held,
            *([f"{len(skipped)} clips were skipped:", *[f"  {reason}" for reason in skipped[:SKIPPED]]] if skipped else []),
        ]
    )


NODES = [TrainMotionPredictor]
