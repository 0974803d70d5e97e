"""Train Physics LoRA: a MODEL and clips become a LoRA on a wire, for the stock nodes that load and save
one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch
from comfy_api.latest import io

from .host import native, spaces, video_folder
from .host.files import FOLDER, check_name
from .host.latents import cache_latent, cache_videos
from .host.lora_training import NOISE, LoraSettings, lora_of, make_loop
from .train import UNWIRED, check_source, cut_inputs, progress_bar, scratch_folder
from .views import figures
from .views.traces import loss_panels, skipped_lines

if TYPE_CHECKING:
    from ..training.loop.loop import Loop

CATEGORY = "latent physics/training"
TITLE = "Train Physics LoRA"
LoraModel = io.Custom("LORA_MODEL")
"""What ComfyUI's own Train LoRA puts out."""


class TrainPhysicsLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsTrainPhysicsLora",
            display_name=TITLE,
            category=CATEGORY,
            description="Fine-tunes a Wan text-to-video MODEL with a LoRA on the clips of a LATENT or of a folder "
            "of videos: denoising, and LaMo's loss of motion drift beside it. Stock nodes load and save the "
            "LoRA. The same training as the command `latent-physics finetune`.",
            search_aliases=["lamo", "physics", "training", "fine-tune", "motion drift", "lora"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Wan 2.1, Wan 2.2 14B (one expert) or 5B, text to video, or the toy world's, from "
                    "Load Diffusion Model. LoRAs on its wire are part of what is trained on; its shift is "
                    "trained at. The file is loaded a second time.",
                ),
                io.Float.Input(
                    "drift",
                    default=0.4,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Weight of LaMo's drift loss, which compares how the clip's mean moves from frame "
                    "to frame; 0.4 is the paper's. 0: denoising alone.",
                ),
                io.Int.Input("steps", default=500, min=1, max=1000000, tooltip="Training steps."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="Learning rate of AdamW. 1e-4 is usual for a LoRA.",
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA in every linear layer of the blocks; alpha equals it. The paper's "
                    "is 128.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(NOISE),
                    default="none",
                    tooltip="Noise that is trained at. none: all of it, at the shift on the MODEL's wire. For one "
                    "of Wan 2.2 14B's two experts choose its half, wan2.2-t2v-high or -low.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Seed of the LoRA's first weights, the order of the clips, the times and the "
                    "noise.",
                ),
                io.String.Input(
                    "run",
                    default="",
                    tooltip="Name of a folder in output/latent_physics that keeps a checkpoint: a graph that was "
                    "cancelled goes on from it, and more steps may be added. Empty: a cancelled run is lost.",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Clips per step. Lower it if memory is short.",
                    advanced=True,
                ),
                io.Float.Input(
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.5,
                    tooltip="Stop after this many minutes, if that comes before steps. 0 sets no limit.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    tooltip="Keep only each block's input and compute the block again on the way back: much less "
                    "memory for a third more time.",
                    advanced=True,
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Video clips to learn from, as one batch: encoded videos, joined with Latent Batch. "
                    "Instead of it, choose a folder.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The clips' prompts: one for all, or as many as clips, joined with Conditioning "
                    "(Combine). With a folder: one for all of its videos. Without it, and without clip, the "
                    "clips are learned under an empty prompt.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The MODEL's VAE, which encodes the folder's videos."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The MODEL's text encoder. It reads the folder's captions: a .txt of the video's name "
                    "beside it, else its file name.",
                ),
                io.Combo.Input(
                    "folder",
                    options=video_folder.list_folders(),
                    default=video_folder.NONE,
                    optional=True,
                    tooltip="Instead of a LATENT: a folder inside ComfyUI's input folder, with videos, animations, "
                    "or folders of frames at any depth, or the generated clips that ComfyUI's own templates show. "
                    "Needs a VAE. Press R after adding one.",
                ),
                *cut_inputs(),
            ],
            outputs=[
                LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA, for the stock nodes Load LoRA Model and Save LoRA Weights.",
                ),
                io.Image.Output(display_name="plot", tooltip="The losses per step."),
                io.String.Output(
                    display_name="info", tooltip="How long it took, the losses, and which clips were skipped."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        run: str | None = None,
        folder: str | None = video_folder.NONE,
        latent: Any = UNWIRED,
        vae: Any = UNWIRED,
    ) -> bool | str:
        try:
            check_name(run or "", "run's folder")
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
        model: Any,
        drift: float,
        steps: int,
        learning_rate: float,
        rank: int,
        noise: str,
        seed: int,
        run: str = "",
        batch: int = 1,
        minutes: float = 0.0,
        checkpointing: bool = True,
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
        native.check_trained(model)
        check_name(run, "run's folder")
        check_source(latent is not None, folder, vae is not None)
        settings = LoraSettings(
            steps=steps, learning_rate=learning_rate, rank=rank, drift=drift, noise=noise, seed=seed,
            batch=batch, minutes=minutes, checkpointing=checkpointing,
        )  # fmt: skip
        space, tokens = spaces.latent_space(model), model.model.diffusion_model.text_dim
        with scratch_folder() as scratch:
            clips, skipped = Path(scratch), []
            if latent is not None:
                cache_latent(latent, space, positive, tokens, clips)
            else:
                cut = video_folder.Cut(width=width, height=height, frames=frames, fps=fps)
                skipped = cache_videos(
                    folder, space, vae, clip, positive, cut, width=tokens, out=clips, node=TITLE
                )
            with native.trained_copy(model) as copy:
                loop = make_loop(copy, clips, settings, run_folder(run), progress_bar())
                loop.go()
                lora = lora_of(loop, settings)
        image = figures.plot(loss_panels(loop.log.rows, titles(loop)), title=f"{space}, {loop.step} steps")
        return io.NodeOutput(
            lora, image, summary(loop, lora, run, skipped), ui=figures.preview_image(image, cls)
        )


def run_folder(name: str) -> Path | None:
    """Where a run of this name keeps its checkpoint; None without a name."""
    return Path(folder_paths.get_output_directory()) / FOLDER / name if name else None


def titles(loop: Loop) -> dict[str, str]:
    """Titles of the plots by the loss's column."""
    words = {"denoise": "denoising error", "drift": "motion drift (LaMo, eq 6), unweighted"}
    return {name: words[name] for name in loop.task.names}


def summary(loop: Loop, lora: dict[str, torch.Tensor], run: str, skipped: list[str]) -> str:
    """The info output."""
    rows = [row for row in loop.log.rows if "loss" in row]
    size = sum(value.numel() * value.element_size() for value in lora.values())
    layers = sum(name.endswith(".alpha") for name in lora)
    last = ", ".join(f"{name} {rows[-1][name]:.4f}" for name in loop.task.names) if rows else "no new step"
    kept = f"the checkpoint is in output/{FOLDER}/{run}" if run else "no checkpoint was kept: run has no name"
    return "\n".join(
        [
            f"LoRA of {layers} layers, {size / 1e6:.1f} MB",
            loop.task.clips.describe(),
            f"{loop.step} steps in {loop.seconds:.0f} s; last: {last}",
            *held_out_line(loop),
            kept,
            *skipped_lines(skipped),
        ]
    )


def held_out_line(loop: Loop) -> list[str]:
    """The held-out clips' denoising error at the start and the end; [] where none was held out."""
    found = [row["val_denoise"] for row in loop.log.rows if "val_denoise" in row]
    return (
        [f"denoising error of held-out clips: {found[0]:.4f} before, {found[-1]:.4f} after"] if found else []
    )


NODES = [TrainPhysicsLora]
