"""Train Motion Predictor: latents on a wire become a predictor on a wire, and a file that Load Motion Predictor lists."""

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
from . import files, patching, views, wires
from .lamo import CATEGORY, MotionPredictor, MotionPredictorType

if TYPE_CHECKING:
    from ..training.predictor import PredictorConfig, PredictorTraining

SPACES = ["toy", *patching.LATENT_SPACES.values()]
PROMPT_WIDTH = {"cosmos1": 1024, "hunyuan_video1.5": 3584}
"""Numbers per token of a space's text encoder, for a training without prompts; the others have 4096."""
NAME = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9][a-z0-9 ._-]{0,99}", re.IGNORECASE)
"""File names that every system takes; Windows reads those at the start as devices."""
ROOM = 64 * 1024**2
"""Bytes that must be free before training: the largest predictor takes 43 MB."""
POINTS = 300
"""At most so many points per curve; longer runs are averaged over stretches of steps."""
BYTES_PER_ACTIVATION = 34.0
"""Memory of a training step per pair, position, channel and block: the full recipe measures 0.4 GiB at 60 x 104."""


class TrainMotionPredictor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsTrainMotionPredictor",
            display_name="Train Motion Predictor",
            category=CATEGORY,
            description="Trains the network that LaMo Guidance steers with, on the clips of a LATENT, and saves it where Load "
            "Motion Predictor finds it. The same training as the command `latent-physics predictor`.",
            search_aliases=["lamo", "physics", "training", "motion prior", "motion field"],
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="Video clips to learn from, as one batch: encoded videos, joined with Latent Batch, or a sampler's "
                    "output. All of one size. With one clip only, none can be held out for measuring.",
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
                    "it the predictor does not look at prompts.",
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
    def validate_inputs(cls, name: str) -> bool | str:
        try:
            check_name(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        latent_space: str,
        name: str,
        recipe: str,
        order: int,
        lag: int,
        steps: int,
        minutes: float,
        seed: int,
        batch: int = 0,
        positive: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..training.dataset import Clips
        from ..training.predictor import RECIPES, PredictorTraining

        check_name(name)
        check_place(name)
        video = sampled_latents(latent, latent_space)
        conds = pooled_prompts(positive, len(video))
        config = dataclasses.replace(
            RECIPES[recipe],
            order=order,
            lag=lag,
            steps=steps or RECIPES[recipe].steps,
            minutes=minutes or None,
            seed=seed,
            batch=batch or RECIPES[recipe].batch,
            validation=RECIPES[recipe].validation if len(video) > 1 else 0.0,
            device=str(comfy.model_management.get_torch_device()),
            **({} if positive else {"drop_probability": 0.0}),  # there is no prompt to drop
        )
        clips = Clips.from_tensors(list(video), conds, latent_space, cond_dim=PROMPT_WIDTH.get(latent_space, 4096))
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(step_bytes(config, *video.shape[3:]), device)
        training = PredictorTraining(clips, config)
        train(training)
        network = training.averaged()
        if conds is None:
            forget_prompts(network)
        predictor, kept = keep(name, network, latent_space, lag, training.recipe())
        image = views.plot(curves(training), title=f"{latent_space}, {training.step} steps")
        return io.NodeOutput(predictor, image, summary(training, kept), ui=views.preview_image(image, cls))


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


def summary(training: PredictorTraining, kept_as: str) -> str:
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
        ]
    )


NODES = [TrainMotionPredictor]
