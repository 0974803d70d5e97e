"""LaMo on LTX-2.3: a small video with sound in 8 steps, then the same at twice the size in 3."""

from __future__ import annotations

from . import files
from .format import Column, Graph, Node, Out
from .pieces import (
    PREDICTORS,
    REAL_PROMPT,
    SEED,
    cfg_guider,
    guidance,
    lora,
    numbered,
    predictor,
    prompts,
    real_graph,
    save_video,
    start_image,
    trace,
)

NAME = "ltx2.3_two_stage_lamo"
WIDTH, HEIGHT, LENGTH, FPS = 640, 352, 121, 25.0
"""Size of the first stage; the second doubles width and height."""
SIGMAS = {
    "first": "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0",
    "second": "0.85, 0.7250, 0.4219, 0.0",
}
"""Noise levels of both stages in ComfyUI's own templates for LTX-2.3."""
NEGATIVE = "pc game, console game, video game, cartoon, childish, ugly"
VAE, SOUND_VAE = Out("model", "VAE"), Out("sound_vae", "Audio VAE")


def load() -> list[Node]:
    checkpoint = {"ckpt_name": files.LTX.name}
    text = {"text_encoder": files.GEMMA.name, **checkpoint}
    upscaler = {"model_name": files.LTX_UPSCALER.name}
    return [
        Node(key="model", type="CheckpointLoaderSimple", values=checkpoint, files=(files.LTX,)),
        lora("lora", "model", files.LTX_LORA, "Distilled LoRA", 0.5),
        Node(key="clip", type="LTXAVTextEncoderLoader", values=text, files=(files.GEMMA, files.LTX)),
        Node(key="sound_vae", type="LTXVAudioVAELoader", values=checkpoint, files=(files.LTX,)),
        Node(key="upscaler", type="LatentUpscaleModelLoader", values=upscaler, files=(files.LTX_UPSCALER,)),
        predictor(PREDICTORS["ltxav"]),
    ]


def ask() -> list[Node]:
    texts = {"positive": Out("positive", "CONDITIONING"), "negative": Out("negative", "CONDITIONING")}
    scaled = {"image": Out("image", "IMAGE"), "upscale_method": "lanczos", "crop": "center"}
    twice = {"width": 2 * WIDTH, "height": 2 * HEIGHT}
    return [
        *prompts(REAL_PROMPT, NEGATIVE),
        Node(key="rate", type="LTXVConditioning", title="Frame rate", values={**texts, "frame_rate": FPS}),
        Node(
            key="from_text",
            type="PrimitiveBoolean",
            title="From text alone, without the picture",
            values={"value": False},
        ),
        start_image(),
        Node(key="scaled", type="ImageScale", title="Scale to the video", values={**scaled, **twice}),
        Node(
            key="picture",
            type="LTXVPreprocess",
            values={"image": Out("scaled", "IMAGE"), "img_compression": 18},
        ),
    ]


def placed(stage: str, latent: Out, strength: float) -> Node:
    """The first frame in a stage's latent."""
    wires = {"vae": VAE, "image": Out("picture", "output_image"), "latent": latent}
    values = {**wires, "strength": strength, "bypass": Out("from_text", "BOOLEAN")}
    return Node(key=f"{stage}_placed", type="LTXVImgToVideoInplace", values=values)


def guided(stage: str) -> Node:
    """LaMo of one stage. Each has its own, so that each has its own trace."""
    title = f"LaMo Guidance ({stage} stage)"
    return guidance(Out("lora", "MODEL"), key=f"{stage}_guidance", title=title, full_trace=True)


def sampled(stage: str, conditioning: str, sound: Out) -> list[Node]:
    """A stage's sampler: video and sound as one latent."""
    both = {"video_latent": Out(f"{stage}_placed", "latent"), "audio_latent": sound}
    texts = Out(conditioning, "positive"), Out(conditioning, "negative")
    wires = {
        "noise": Out(f"{stage}_noise", "NOISE"),
        "guider": Out(f"{stage}_guider", "GUIDER"),
        "sampler": Out("euler", "SAMPLER"),
        "sigmas": Out(f"{stage}_sigmas", "SIGMAS"),
        "latent_image": Out(f"{stage}_both", "latent"),
    }
    return [
        Node(key=f"{stage}_both", type="LTXVConcatAVLatent", values=both),
        Node(key=f"{stage}_noise", type="RandomNoise", values={"noise_seed": SEED}),
        cfg_guider(Out(f"{stage}_guidance", "MODEL"), 1.0, *texts, key=f"{stage}_guider"),
        Node(key=f"{stage}_sigmas", type="ManualSigmas", values={"sigmas": SIGMAS[stage]}),
        Node(key=f"{stage}_sampler", type="SamplerCustomAdvanced", values=wires),
        Node(
            key=f"{stage}_parts",
            type="LTXVSeparateAVLatent",
            values={"av_latent": Out(f"{stage}_sampler", "output")},
        ),
    ]


def first() -> list[Node]:
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH}
    sound = {"frames_number": LENGTH, "frame_rate": FPS, "audio_vae": SOUND_VAE}
    return [
        Node(key="size", type="EmptyLTXVLatentVideo", title="Video size of the first stage", values=size),
        Node(key="silence", type="LTXVEmptyLatentAudio", values=sound),
        placed("first", Out("size", "LATENT"), 0.7),
        Node(key="euler", type="KSamplerSelect", values={"sampler_name": "euler"}),
        *sampled("first", "rate", Out("silence", "Latent")),
    ]


def second() -> list[Node]:
    video = Out("first_parts", "video_latent")
    texts = {"positive": Out("rate", "positive"), "negative": Out("rate", "negative"), "latent": video}
    larger = {"samples": video, "upscale_model": Out("upscaler", "LATENT_UPSCALE_MODEL"), "vae": VAE}
    return [
        Node(key="cropped", type="LTXVCropGuides", values=texts),
        Node(key="larger", type="LTXVLatentUpsampler", values=larger),
        placed("second", Out("larger", "LATENT"), 1.0),
        *sampled("second", "cropped", Out("first_parts", "audio_latent")),
    ]


def look() -> list[Node]:
    tiles = {"tile_size": 768, "overlap": 64, "temporal_size": 4096, "temporal_overlap": 4}
    video = {"samples": Out("second_parts", "video_latent"), "vae": VAE}
    sound = {"samples": Out("second_parts", "audio_latent"), "audio_vae": SOUND_VAE}
    return [
        Node(key="decode", type="VAEDecodeTiled", values={**video, **tiles}),
        Node(key="sound", type="LTXVAudioVAEDecode", values=sound),
        *save_video(Out("decode", "IMAGE"), f"video/{NAME}", FPS, Out("sound", "Audio")),
    ]


def measure() -> list[Node]:
    return [
        trace(
            Out(f"{stage}_guidance", "MODEL"),
            Out(f"{stage}_sampler", "output"),
            key=f"{stage}_trace",
            title=f"Guidance Trace ({stage} stage)",
        )
        for stage in SIGMAS
    ]


def two_stage() -> Graph:
    columns: list[Column] = numbered(
        ("Load", load(), 460),
        ("Ask", ask(), 420),
        ("Guide", [guided(stage) for stage in SIGMAS], 320),
        ("First stage: 8 steps", first(), 340),
        ("Second stage: twice the size, 3 steps", second(), 340),
        ("Look", look(), 420),
        ("Measure", measure(), 420),
    )
    return real_graph(
        NAME,
        "LTX-2.3, image or text to video with sound, in two stages, with LaMo",
        what="ComfyUI's own schedule (8 steps, then 3 at twice the size, both at **CFG 1** with the distilled LoRA) with **LaMo Guidance** "
        "as the last node before each stage's sampler. The sound is left alone.",
        see="the motion is decided in the first stage; the **Guidance Trace** of each stage shows the motion error of its steps before and "
        "after the nudge. Set both **share** to 0 and run again for the same video without LaMo.",
        space="ltxav",
        columns=columns,
        more="\nChoose your own picture in *First frame*, or switch *From text alone* on. Frames: 8 n + 1; width and height of the first "
        "stage: multiples of 32.\n",
    )


GRAPHS = (two_stage,)
