"""The video models of ComfyUI 0.30 as data: latent space, compression, prompts, sampling and rate of
each.

It is the only place that knows them. `SPACES` is what weights files name, `MODELS` what an artist loads;
tests compare both with `comfy.supported_models` and `comfy.latent_formats`, so a release with another video
model is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampling = Literal["flow", "edm", "v"]
"""Prediction of a network: the velocity of a flow, EDM's preconditioned x0, or DDPM's v."""


@dataclass(frozen=True)
class FramesRule:
    """Compression of time by a VAE: `start` frames become `start_latents` latent frames, and every further
    `period` frames become `latents` more."""

    period: int
    latents: int = 1
    start: int = 1
    start_latents: int = 1

    def fits(self, frames: int) -> bool:
        """Whether a clip of that many frames is encoded whole and has more than the start."""
        return frames > self.start and (frames - self.start) % self.period == 0

    def longest(self, frames: int) -> int:
        """The most frames, at most `frames`, that fit; 0 where none do."""
        periods = (frames - self.start) // self.period
        return self.start + periods * self.period if periods > 0 else 0

    def nearest(self, frames: int) -> int:
        """A number of frames that fits, near `frames`."""
        return self.start + max(1, round((frames - self.start) / self.period)) * self.period

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of `frames` frames that fit."""
        return self.start_latents + (frames - self.start) // self.period * self.latents

    @property
    def stride(self) -> float:
        """Frames per latent frame, on average after the start."""
        return self.period / self.latents

    def __str__(self) -> str:
        return f"a multiple of {self.period} plus {self.start}"


EVERY_4, EVERY_6, EVERY_8 = FramesRule(4), FramesRule(6), FramesRule(8)


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """The latents of one video VAE, which several models may share."""

    name: str
    """As weights files carry it."""
    latent_format: str
    """ComfyUI's class in `comfy.latent_formats`."""
    channels: int
    """Number of the video's channels; a format that nests sound may say more (MiniMax H3: 32, of which the
    video has 24)."""
    pixels: int = 8
    """Pixels per latent in height and width."""
    frames: FramesRule = EVERY_4


@dataclass(frozen=True, kw_only=True)
class VideoModel:
    """One model family as an artist knows it."""

    name: str
    """As commands take it."""
    title: str
    classes: tuple[str, ...]
    """ComfyUI's classes in `comfy.supported_models`."""
    space: str
    prompt_width: int = 4096
    """Numbers per token on a CONDITIONING wire."""
    sampling: Sampling = "flow"
    fps: float
    """Frames per second that it was made for; 0 where it has no rate of its own."""
    clip_type: str = "wan"
    """ComfyUI's name of its text encoder, in CLIPLoader's menu."""
    side_multiple: int = 16
    """Width and height are multiples of this many pixels: the VAE's stride times the network's patch."""
    size: tuple[int, int, int] = (832, 480, 81)
    """Width, height and frames that clips are cut to where nobody says otherwise."""
    sound: bool = False
    """Whether its latents nest a video and its sound."""


SPACES: dict[str, LatentSpace] = {
    space.name: space
    for space in (
        LatentSpace(name="wan2.1", latent_format="Wan21", channels=16),
        LatentSpace(name="wan2.2", latent_format="Wan22", channels=48, pixels=16),
        LatentSpace(name="cogvideox", latent_format="CogVideoX", channels=16),
        LatentSpace(name="cogvideox1.5", latent_format="CogVideoX1_5", channels=16),
        LatentSpace(name="hunyuan_video", latent_format="HunyuanVideo", channels=16),
        LatentSpace(name="hunyuan_video1.5", latent_format="HunyuanVideo15", channels=32, pixels=16),
        LatentSpace(name="ltxv", latent_format="LTXV", channels=128, pixels=32, frames=EVERY_8),
        LatentSpace(name="ltxav", latent_format="LTXAV", channels=128, pixels=32, frames=EVERY_8),
        LatentSpace(
            name="minimax_h3",
            latent_format="MiniMaxH3AV",
            channels=24,
            pixels=16,
            frames=FramesRule(17, latents=5, start=5, start_latents=2),
        ),
        LatentSpace(name="mochi", latent_format="Mochi", channels=12, frames=EVERY_6),
        LatentSpace(name="cosmos1", latent_format="Cosmos1CV8x8x8", channels=16, frames=EVERY_8),
    )
}
"""By name. Wan 2.2 14B has Wan 2.1's latents; only its 5B has its own."""

TOY = LatentSpace(name="toy", latent_format="Wan21", channels=16)
"""The toy world's: a small Wan VAE, trained apart."""

MODELS: dict[str, VideoModel] = {
    model.name: model
    for model in (
        VideoModel(
            name="wan2.1",
            title="Wan 2.1 and Wan 2.2 14B",
            classes=(
                "WAN21_T2V", "WAN21_CausalAR_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Camera",
                "WAN22_Camera", "WAN21_Vace", "WAN22_S2V", "WAN22_Animate", "WAN21_SCAIL", "WAN21_SCAIL2",
                "WAN22_WanDancer",
            ),
            space="wan2.1",
            fps=16,
        ),
        VideoModel(name="humo", title="HuMo", classes=("WAN21_HuMo",), space="wan2.1", fps=25),
        VideoModel(
            name="wan2.2-5b",
            title="Wan 2.2 5B",
            classes=("WAN22_T2V",),
            space="wan2.2",
            fps=24,
            side_multiple=32,
        ),
        VideoModel(
            name="ltx0.9",
            title="LTX-Video 0.9",
            classes=("LTXV",),
            space="ltxv",
            fps=24,
            clip_type="ltxv",
            side_multiple=32,
            size=(768, 512, 81),
        ),
        VideoModel(
            name="ltx2.3",
            title="LTX-2.3",
            classes=("LTXAV",),
            space="ltxav",
            prompt_width=6144,
            fps=25,
            clip_type="ltxv",
            side_multiple=32,
            size=(768, 512, 81),
            sound=True,
        ),
        VideoModel(
            name="ltx2",
            title="LTX-2",
            classes=("LTXAV",),
            space="ltxav",
            prompt_width=3840,
            fps=25,
            clip_type="ltxv",
            side_multiple=32,
            size=(768, 512, 81),
            sound=True,
        ),
        VideoModel(
            name="h3",
            title="MiniMax H3",
            classes=("MiniMaxH3",),
            space="minimax_h3",
            prompt_width=5120,
            fps=24,
            clip_type="minimax",
            side_multiple=32,
            size=(832, 480, 73),
            sound=True,
        ),
        VideoModel(
            name="hunyuan_video",
            title="HunyuanVideo 1.0",
            classes=("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
            space="hunyuan_video",
            fps=24,
            clip_type="hunyuan_video",
        ),
        VideoModel(
            name="hunyuan_video1.5",
            title="HunyuanVideo 1.5",
            classes=("HunyuanVideo15", "HunyuanVideo15_SR_Distilled"),
            space="hunyuan_video1.5",
            prompt_width=3584,
            fps=24,
            clip_type="hunyuan_video_15",
        ),
        VideoModel(
            name="kandinsky5",
            title="Kandinsky 5",
            classes=("Kandinsky5",),
            space="hunyuan_video",
            prompt_width=3584,
            fps=24,
            clip_type="kandinsky5",
        ),
        VideoModel(
            name="cosmos1",
            title="Cosmos 1",
            classes=("CosmosT2V", "CosmosI2V"),
            space="cosmos1",
            prompt_width=1024,
            sampling="edm",
            fps=24,
            clip_type="cosmos",
        ),
        VideoModel(
            name="cosmos2",
            title="Cosmos Predict 2",
            classes=("CosmosT2IPredict2", "CosmosI2VPredict2"),
            space="wan2.1",
            prompt_width=1024,
            fps=16,
            clip_type="cosmos",
        ),
        VideoModel(
            name="mochi",
            title="Mochi 1",
            classes=("GenmoMochi",),
            space="mochi",
            fps=30,
            clip_type="mochi",
            size=(832, 480, 85),
        ),
        VideoModel(
            name="cogvideox",
            title="CogVideoX 2B",
            classes=("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
            space="cogvideox",
            sampling="v",
            fps=8,
            clip_type="cogvideox",
            size=(720, 480, 49),
        ),
        VideoModel(
            name="cogvideox1.5",
            title="CogVideoX 1.5 5B",
            classes=("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
            space="cogvideox1.5",
            sampling="v",
            fps=16,
            clip_type="cogvideox",
            size=(720, 480, 49),
        ),
        VideoModel(
            name="cogvideox-5b",
            title="CogVideoX 1.0 5B",
            classes=("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
            space="cogvideox1.5",
            sampling="v",
            fps=8,
            clip_type="cogvideox",
            size=(720, 480, 49),
        ),
    )
}  # fmt: skip
"""By name. The first model of a space is the one that the space is cut and timed for. A class stands in
several rows where its files differ in what no class says (LTX-2 and 2.3, CogVideoX's sizes)."""

NOT_VIDEO: dict[str, str] = {
    "QwenImage": "makes images",
    "JoyImage": "makes images",
    "Krea2": "makes images",
    "Anima": "makes images",
    "HunyuanImage21Refiner": "refines images",
    "SeedVR2": "enlarges a video that is there already",
    "WAN21_FlowRVS": "marks an object in a video that is there already",
}
"""ComfyUI's other classes whose latents have frames, and what they do instead of making a video."""


def space_of_format(latent_format: str) -> LatentSpace | None:
    """The space of a class of `comfy.latent_formats`; None where the table has none."""
    return next((space for space in SPACES.values() if space.latent_format == latent_format), None)


def models_of(supported: str, space: str) -> list[VideoModel]:
    """The rows that a class of `comfy.supported_models` in a latent space may be."""
    return [model for model in MODELS.values() if supported in model.classes and model.space == space]


def main_model(space: str) -> VideoModel | None:
    """The model that a latent space is cut and timed for; None for the toy world and what is unknown."""
    return next((model for model in MODELS.values() if model.space == space), None)


def native_fps(space: str) -> float | None:
    """Frames per second of the main model of a latent space; None where it is not known."""
    model = main_model(space)
    return None if model is None else model.fps


def seconds_per_latent_frame(space: str, fps: float | None) -> float | None:
    """Time from one latent frame to the next, on average, in clips of `fps` frames per second; None where
    either is not known."""
    found = SPACES.get(space)
    return None if found is None or not fps else found.frames.stride / fps
