"""Writes every workflow of the pack: `python -m devtools.make_workflows` from the repository's root.

Each graph below becomes workflows/NAME.json (for the template browser) and workflows/api/NAME.json (for scripts and tests). What
a node's inputs are, and in which order, is asked of a real server. `--thumbnails` instead makes workflows/NAME.jpg, by running
the toy graphs (see thumbnails.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import comfyui
from .server import ComfyServer
from .shell import BenchError, say
from .workflow_format import Column, Graph, ModelFile, Node, Out, api_form, check, overlaps, ui_form

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"

TOY_STRENGTH = 2.0
"""LaMo's strength in the toy world."""
TOY_PREDICTOR = "toy/toy_predictor_order1.safetensors"
TOY_FPS = 16.0
TOY_PROMPT = "a large red ball thrown to the right, bouncing on the floor"
SEED = 7
PAPER_STRENGTH, PAPER_ACTIVE = 25.0, 0.8
"""LaMo's values for CogVideoX (arXiv 2605.23878); where real backbones start from."""

HUB = "https://huggingface.co"
WAN21 = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
UMT5 = ModelFile(
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors", f"{WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders"
)
WAN_VAE = ModelFile("wan_2.1_vae.safetensors", f"{WAN21}/vae/wan_2.1_vae.safetensors", "vae")
WAN_SMALL = ModelFile(
    "wan2.1_t2v_1.3B_fp16.safetensors", f"{WAN21}/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", "diffusion_models"
)
T5 = ModelFile(
    "t5xxl_fp16.safetensors", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors", "text_encoders"
)
COG_VAE = ModelFile("cogvideox_vae.safetensors", f"{HUB}/Comfy-Org/void-model/resolve/main/vae/cogvideox_vae.safetensors", "vae")
COG = "cogvideox1.5_5b_t2v_bf16.safetensors"
"""Nobody repackages this one for ComfyUI; the workflow's note says what the file has to hold."""
WAN_PREDICTOR, COG_PREDICTOR = "wan2.1_motion_predictor.safetensors", "cogvideox1.5_motion_predictor.safetensors"
COG_CACHE = ("--backbone cogvideox --source THUDM/CogVideoX1.5-5B", "--width 1360 --height 768 --frames 77 --fps 16")
"""Options of `training cache` for what the CogVideoX graph generates."""
REAL_PROMPT = (
    "A glass marble rolls down a wooden ramp, drops onto a table, bounces twice and comes to rest. "
    "Close-up, steady camera, soft daylight."
)
# Wan's own negative prompt, with which it was released.
WAN_NEGATIVE = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c\u591a\u4f59\u7684\u624b\u6307\uff0c"
    "\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c\u80cc\u666f\u4eba\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)

# --- pieces that several graphs share -------------------------------------------------------------------------------------------


CLIP, VAE = Out("clip", "CLIP"), Out("vae", "VAE")


def expert(key: str, name: str) -> Node:
    """Loads one of Wan 2.2's two experts."""
    file = ModelFile(name, f"{WAN22}/diffusion_models/{name}", "diffusion_models")
    title = f"Load Diffusion Model ({key} noise)"
    return Node(key=f"{key}_model", type="UNETLoader", title=title, values={"unet_name": name}, files=(file,))


def predictor(name: str) -> Node:
    return Node(key="predictor", type="LatentPhysicsLoadMotionPredictor", values={"name": name})


def guidance(model: Out, strength: float, *, key: str = "guidance", title: str = "", **values: object) -> Node:
    wires = {"model": model, "predictor": Out("predictor", "predictor"), "strength": strength}
    return Node(key=key, type="LatentPhysicsLaMoGuidance", title=title, values={**wires, **values})


def prompts(positive: object, negative: str, clip: Out = CLIP) -> list[Node]:
    """The two CLIP Text Encode; `positive` is a text or a wire."""
    return [
        Node(key="positive", type="CLIPTextEncode", title="Positive prompt", values={"clip": clip, "text": positive}),
        Node(key="negative", type="CLIPTextEncode", title="Negative prompt", values={"clip": clip, "text": negative}),
    ]


def size(width: int, height: int, length: int, batch_size: int = 1) -> Node:
    values = {"width": width, "height": height, "length": length, "batch_size": batch_size}
    return Node(key="size", type="EmptyHunyuanLatentVideo", title="Video size", values=values)


def sampler(model: Out, *, key: str = "sampler", title: str = "", **values: object) -> Node:
    """KSampler with the toy world's settings, unless `values` say otherwise."""
    wires = {
        "model": model,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent_image": Out("size", "LATENT"),
    }
    settings = {"seed": SEED, "steps": 20, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    return Node(key=key, type="KSampler", title=title, values={**wires, **settings, **values})


def decode(latent: Out, *, key: str = "decode", vae: Out = VAE, title: str = "") -> Node:
    return Node(key=key, type="VAEDecode", title=title, values={"samples": latent, "vae": vae})


def save_video(images: Out, name: str, fps: float) -> list[Node]:
    return [
        Node(key="video", type="CreateVideo", values={"images": images, "fps": fps}),
        Node(key="save", type="SaveVideo", values={"video": Out("video", "VIDEO"), "filename_prefix": name}, height=420),
    ]


def save_toy(images: Out, name: str, height: int = 420) -> list[Node]:
    """Toy clips are 64 pixels wide: enlarged without smoothing, they can be looked at."""
    larger = {"image": images, "upscale_method": "nearest-exact", "scale_by": 4.0}
    saved = {"images": Out("larger", "IMAGE"), "filename_prefix": f"latent_physics/{name}", "fps": TOY_FPS, "lossless": False}
    return [
        Node(key="larger", type="ImageScaleBy", title="Enlarge", values=larger),
        Node(key="save", type="SaveAnimatedWEBP", values={**saved, "quality": 90}, height=height),
    ]


def law_score(images: Out, *, key: str = "score", title: str = "") -> Node:
    values = {"images": images, "prompt": Out("prompt", "STRING")}
    return Node(key=key, type="LatentPhysicsLawScore", title=title, values=values, height=420)


def trace(model: Out, latent: Out, *, key: str = "trace", title: str = "") -> Node:
    return Node(key=key, type="LatentPhysicsGuidanceTrace", title=title, values={"model": model, "latent": latent}, height=420)


WORLD = Node(key="world", type="LatentPhysicsLoadToyWorld")
TOY_MODEL, TOY_CLIP, TOY_VAE = Out("world", "MODEL"), Out("world", "CLIP"), Out("world", "VAE")
PROMPT = Node(key="prompt", type="PrimitiveStringMultiline", title="Prompt", values={"value": TOY_PROMPT}, height=130)
GUIDED = Out("guidance", "MODEL")
TOY_PROMPTS = """
Prompts the toy world understands (colours: red, green, blue, yellow, purple; sizes: small, large):

- `a small blue ball falls to the floor and bounces to the left`
- `a large green block oscillating on a spring, released below`
- `a small red drop of dye swirling clockwise in a basin of water`
- `a large purple puff of smoke expanding and drifting up`
- `a small yellow block of ice melting on a grille on the left`
- `a large red puck and a small blue puck colliding on a table`
- `a small red spot of heat spreading on a metal plate from the middle`
- `a thin yellow ring of light spreading from a lamp on the left`
"""


def how_to_train(name: str, *options: str) -> str:
    lines = " \\\n  ".join(["python training cache --videos MY_CLIPS --out runs/cache", *options])
    return f"""
**The motion predictor** is trained once per latent space, on videos of your own, and shared by all models of that space. In this
pack's folder below ComfyUI/custom_nodes, after `pip install -e .[train]`:

```
{lines}
python training predictor --cache runs/cache --out runs/predictor \\
  --export ../../models/latent_physics/{name}
```

Then press R, so that Load Motion Predictor lists the file. The pack's docs/training.md says how to tell a good predictor.
"""


# --- toy world ------------------------------------------------------------------------------------------------------------------


def toy_world_lamo() -> Graph:
    seed = Out("seed", "INT")
    plain, guided = Out("plain", "LATENT"), Out("guided", "LATENT")
    side_by_side = {
        "image1": Out("plain_images", "IMAGE"),
        "image2": Out("guided_images", "IMAGE"),
        "direction": "right",
        "spacing_width": 4,
    }
    return Graph(
        name="toy_world_lamo",
        note=f"""# The same clip without and with LaMo

Press **Run**. Needs no download and no GPU: the model comes with the pack. A clip takes a few seconds.

Two samplers get the same prompt, seed and settings. The upper one samples the plain model, the lower one the model that went
through **LaMo Guidance**.

- **Save Animated WEBP**: left without, right with LaMo.
- **Law Score**: how well each clip keeps its world's law, 1 = like a real clip; whether what was asked for is there; how much
  moves. One clip says little: raise batch_size in *Video size*, and try other seeds.
- **Guidance Trace**: the motion error in each step, before and after the nudge.

Try **strength** in LaMo Guidance: 0 gives the left clip again, too much stiffens the motion.
{TOY_PROMPTS}""",
        note_height=640,
        columns=[
            Column(
                title="1  Load",
                nodes=[WORLD, predictor(TOY_PREDICTOR), guidance(TOY_MODEL, TOY_STRENGTH, full_trace=True)],
                width=360,
            ),
            Column(
                title="2  Ask",
                nodes=[
                    PROMPT,
                    Node(key="seed", type="PrimitiveInt", title="Seed of both", values={"value": SEED}),
                    *prompts(Out("prompt", "STRING"), "", TOY_CLIP),
                    size(64, 64, 33),
                ],
            ),
            Column(
                title="3  Sample",
                nodes=[
                    sampler(TOY_MODEL, key="plain", title="KSampler without LaMo", seed=seed),
                    sampler(GUIDED, key="guided", title="KSampler with LaMo", seed=seed),
                ],
            ),
            Column(
                title="4  Look: left without, right with LaMo",
                nodes=[
                    decode(plain, key="plain_images", vae=TOY_VAE, title="VAE Decode without LaMo"),
                    decode(guided, key="guided_images", vae=TOY_VAE, title="VAE Decode with LaMo"),
                    Node(key="pair", type="ImageStitch", title="Side by side", values=side_by_side),
                    *save_toy(Out("pair", "IMAGE"), "toy_world_lamo", height=380),
                ],
                width=420,
            ),
            Column(
                title="5  Measure",
                nodes=[
                    law_score(Out("plain_images", "IMAGE"), key="plain_score", title="Law Score without LaMo"),
                    law_score(Out("guided_images", "IMAGE"), key="guided_score", title="Law Score with LaMo"),
                    trace(GUIDED, guided),
                ],
                width=420,
            ),
        ],
    )


def motion_heatmaps() -> Graph:
    latent, larger = Out("sampler", "LATENT"), Out("larger", "IMAGE")
    positive = Out("positive", "CONDITIONING")
    drift = {"latent": latent, "images": larger}
    field = {**drift, "predictor": Out("predictor", "predictor"), "positive": positive}
    return Graph(
        name="motion_heatmaps",
        note=f"""# Where does a video move?

Press **Run**. Needs no download and no GPU: the model comes with the pack.

Both heatmaps lie over the decoded clip; the hottest place of the clip is the brightest.

- **Motion Drift Heatmap** needs no trained network: how strongly each place changes in the direction in which the whole frame
  changes.
- **Motion Field Heatmap** asks a motion predictor: where does it expect motion, compared with the same scene standing still? It
  knows the prompt too.

Both also give the raw maps as MASK (wire it wherever a mask fits) and the frame with the strongest motion. To look at a video of
your own, encode it with VAE Encode and wire its LATENT and IMAGE in here; the field heatmap needs a predictor for that VAE's
latents.
{TOY_PROMPTS}""",
        note_height=560,
        columns=[
            Column(title="1  Load", nodes=[WORLD, predictor(TOY_PREDICTOR)], width=360),
            Column(title="2  Ask", nodes=[*prompts(TOY_PROMPT, "", TOY_CLIP), size(64, 64, 33)]),
            Column(title="3  Sample", nodes=[sampler(TOY_MODEL), decode(latent, vae=TOY_VAE)]),
            Column(title="4  The clip", nodes=save_toy(Out("decode", "IMAGE"), "motion_heatmaps")),
            Column(
                title="5  Where it moves",
                nodes=[
                    Node(key="drift", type="LatentPhysicsMotionDriftHeatmap", values=drift, height=440),
                    Node(key="field", type="LatentPhysicsMotionFieldHeatmap", values=field, height=480),
                ],
            ),
        ],
    )


def toy_world_score() -> Graph:
    images = Out("decode", "IMAGE")
    return Graph(
        name="toy_world_score",
        note=f"""# How well do eight clips keep their law?

Press **Run**. Needs no download and no GPU: the model comes with the pack. Eight clips take about half a minute on a laptop.

**Law Score** plots three numbers per clip, measured from pixels alone: *law* (1 = like real clips of that world, 0 = like
shuffled frames), *adherence* (is what the prompt asked for there) and *dynamic degree* (how much moves, 1 = as much as real
clips). The text below it holds the same numbers as JSON.

Set **strength** in LaMo Guidance to 0 for the plain model, run again with the same seed, and compare the means. Look at the
dynamic degree too: a clip that stands still breaks no law.
{TOY_PROMPTS}""",
        note_height=560,
        columns=[
            Column(title="1  Load", nodes=[WORLD, predictor(TOY_PREDICTOR), guidance(TOY_MODEL, TOY_STRENGTH)], width=360),
            Column(title="2  Ask", nodes=[PROMPT, *prompts(Out("prompt", "STRING"), "", TOY_CLIP), size(64, 64, 33, 8)]),
            Column(title="3  Sample", nodes=[sampler(GUIDED), decode(Out("sampler", "LATENT"), vae=TOY_VAE)]),
            Column(title="4  The clips, one after another", nodes=save_toy(images, "toy_world_score")),
            Column(
                title="5  Measure",
                nodes=[
                    law_score(images),
                    Node(
                        key="table",
                        type="PreviewAny",
                        title="Scores of every clip",
                        values={"source": Out("score", "table")},
                        height=260,
                    ),
                ],
                width=420,
            ),
        ],
    )


# --- real backbones -------------------------------------------------------------------------------------------------------------


def loaders(text: ModelFile, kind: str, vae: ModelFile) -> list[Node]:
    return [
        Node(key="clip", type="CLIPLoader", values={"clip_name": text.name, "type": kind}, files=(text,)),
        Node(key="vae", type="VAELoader", values={"vae_name": vae.name}, files=(vae,)),
    ]


def shift(key: str, model: str, value: float) -> Node:
    return Node(key=key, type="ModelSamplingSD3", title="Shift", values={"model": Out(model, "MODEL"), "shift": value})


def wan21() -> Graph:
    latent = Out("sampler", "LATENT")
    model = Node(key="model", type="UNETLoader", values={"unet_name": WAN_SMALL.name}, files=(WAN_SMALL,))
    settings = {"steps": 30, "cfg": 6.0, "sampler_name": "uni_pc"}
    return Graph(
        name="wan2.1_t2v_1.3B_lamo",
        note=f"""# Wan 2.1 1.3B, text to video, with LaMo

ComfyUI's own Wan 2.1 graph with two nodes more: **Load Motion Predictor** and **LaMo Guidance** between the model and its shift.

1. Fetch the three model files (the names in *Load* are those of ComfyUI's own template), and train a motion predictor.
2. Press **Run**. Set **strength** to 0 and run again for the same video without LaMo.
3. **Guidance Trace** shows the motion error per step and how large the nudge was. Where the picture breaks, lower strength or set
   max_ratio to 0.1; where nothing changes, raise strength.

Strength {PAPER_STRENGTH:g} is the paper's value for CogVideoX and only a start here.
{how_to_train(WAN_PREDICTOR, "--backbone wan")}""",
        note_height=620,
        note_width=560,
        columns=[
            Column(title="1  Load", nodes=[model, *loaders(UMT5, "wan", WAN_VAE), predictor(WAN_PREDICTOR)], width=380),
            Column(
                title="2  Guide",
                nodes=[
                    guidance(Out("model", "MODEL"), PAPER_STRENGTH, active=PAPER_ACTIVE, full_trace=True),
                    shift("shift", "guidance", 8.0),
                    size(832, 480, 33),
                ],
            ),
            Column(title="3  Ask", nodes=prompts(REAL_PROMPT, WAN_NEGATIVE), width=420),
            Column(title="4  Sample", nodes=[sampler(Out("shift", "MODEL"), **settings), decode(latent)]),
            Column(
                title="5  Look",
                nodes=[
                    *save_video(Out("decode", "IMAGE"), "video/wan2.1_lamo", 16.0),
                    trace(Out("shift", "MODEL"), latent),
                ],
                width=420,
            ),
        ],
    )


def wan22() -> Graph:
    def stage(noise: str, latent: Out, **values: object) -> Node:
        wires = {
            "model": Out(f"{noise}_shift", "MODEL"),
            "positive": Out("positive", "CONDITIONING"),
            "negative": Out("negative", "CONDITIONING"),
            "latent_image": latent,
        }
        settings = {"steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple"}
        title = f"KSampler ({noise} noise)"
        return Node(key=noise, type="KSamplerAdvanced", title=title, values={**wires, **settings, **values})

    first = {"add_noise": "enable", "noise_seed": SEED, "end_at_step": 10, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": 10, "return_with_leftover_noise": "disable"}
    high, low = Out("high", "LATENT"), Out("low", "LATENT")

    def guided(noise: str, active: float) -> Node:
        title = f"LaMo Guidance ({noise} noise)"
        return guidance(
            Out(f"{noise}_model", "MODEL"), PAPER_STRENGTH, key=f"{noise}_guidance", title=title, active=active, full_trace=True
        )

    return Graph(
        name="wan2.2_t2v_14B_lamo",
        note=f"""# Wan 2.2 14B, text to video, with LaMo on both experts

ComfyUI's own Wan 2.2 graph (the 20-step one) with **LaMo Guidance** for each of the two experts. Both use one motion predictor:
Wan 2.2 14B has Wan 2.1's latents.

1. Fetch the four model files (the names in *Load* are those of ComfyUI's own template), and train a motion predictor.
2. Press **Run**. Set both **strength** to 0 and run again for the same video without LaMo.
3. The **Guidance Trace** of each expert shows the motion error per step and how large the nudge was.

**active** counts a sampler's own steps from its last. Of all 20 steps the last 16 are guided: 0.6 of the first sampler's ten,
all of the second's.
{how_to_train(WAN_PREDICTOR, "--backbone wan")}""",
        note_height=620,
        note_width=560,
        columns=[
            Column(
                title="1  Load",
                nodes=[
                    expert("high", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"),
                    expert("low", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"),
                    *loaders(UMT5, "wan", WAN_VAE),
                    predictor(WAN_PREDICTOR),
                ],
                width=420,
            ),
            Column(
                title="2  Guide",
                nodes=[
                    guided("high", 0.6),
                    shift("high_shift", "high_guidance", 5.0),
                    guided("low", 1.0),
                    shift("low_shift", "low_guidance", 5.0),
                ],
            ),
            Column(title="3  Ask", nodes=[*prompts(REAL_PROMPT, WAN_NEGATIVE), size(640, 640, 81)], width=420),
            Column(
                title="4  Sample",
                nodes=[
                    stage("high", Out("size", "LATENT"), **first),
                    stage("low", high, **second),
                    decode(low),
                ],
            ),
            Column(title="5  Look", nodes=save_video(Out("decode", "IMAGE"), "video/wan2.2_lamo", 16.0), width=420),
            Column(
                title="6  Measure",
                nodes=[
                    trace(Out("high_shift", "MODEL"), high, key="high_trace", title="Guidance Trace (high noise)"),
                    trace(Out("low_shift", "MODEL"), low, key="low_trace", title="Guidance Trace (low noise)"),
                ],
                width=420,
            ),
        ],
    )


def cogvideox() -> Graph:
    latent = Out("sampler", "output")
    wires = {
        "model": GUIDED,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "sampler": Out("ddim", "SAMPLER"),
        "sigmas": Out("sigmas", "SIGMAS"),
        "latent_image": Out("size", "LATENT"),
    }
    return Graph(
        name="cogvideox_lamo",
        note=f"""# CogVideoX 1.5 5B, text to video, with LaMo

CogVideoX is sampled with **VOIDSampler** and **SamplerCustom**: KSampler scales the noise in a way that this model was not
trained for.

1. Fetch text encoder and VAE (the names are those of ComfyUI's own VOID template). For the transformer there is no file made for
   ComfyUI: `{COG}` has to hold CogVideoX 1.5 5B under ComfyUI's own tensor names (`blocks.0.q.weight`); a file with
   diffusers' names (`transformer_blocks.0.attn1.to_q.weight`) does not load.
2. Train a motion predictor. Press **Run**. Set **strength** to 0 and run again for the same video without LaMo.
3. **Guidance Trace** shows the motion error per step and how large the nudge was.

Strength {PAPER_STRENGTH:g} and active {PAPER_ACTIVE:g} are the paper's values. This model works on pairs of latent frames:
77 frames are 20 latent frames; lengths that give an odd number (81, 49) spoil the last ones.
{how_to_train(COG_PREDICTOR, *COG_CACHE)}""",
        note_height=620,
        note_width=560,
        columns=[
            Column(
                title="1  Load",
                nodes=[
                    Node(key="model", type="UNETLoader", values={"unet_name": COG}),
                    *loaders(T5, "cogvideox", COG_VAE),
                    predictor(COG_PREDICTOR),
                ],
                width=380,
            ),
            Column(
                title="2  Guide",
                nodes=[
                    guidance(Out("model", "MODEL"), PAPER_STRENGTH, active=PAPER_ACTIVE, full_trace=True),
                    size(1360, 768, 77),
                ],
            ),
            Column(title="3  Ask", nodes=prompts(REAL_PROMPT, ""), width=420),
            Column(
                title="4  Sample",
                nodes=[
                    Node(key="ddim", type="VOIDSampler"),
                    Node(key="sigmas", type="BasicScheduler", values={"model": GUIDED, "scheduler": "simple", "steps": 50}),
                    Node(key="sampler", type="SamplerCustom", values={**wires, "noise_seed": SEED, "cfg": 6.0}),
                    decode(latent),
                ],
            ),
            Column(
                title="5  Look",
                nodes=[*save_video(Out("decode", "IMAGE"), "video/cogvideox_lamo", 16.0), trace(GUIDED, latent)],
                width=420,
            ),
        ],
    )


GRAPHS = (toy_world_lamo, motion_heatmaps, toy_world_score, wan21, wan22, cogvideox)

# --- writing --------------------------------------------------------------------------------------------------------------------


@contextmanager
def running_server() -> Iterator[ComfyServer]:
    """The newest ComfyUI that dev.py put beside the pack, with the pack in it. Raises BenchError where there is none."""
    installation = comfyui.find(ROOT)
    if installation is None:
        raise BenchError("there is no ComfyUI yet: run `python3 dev.py test` once, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as folder:
        base = comfyui.base_folder(ROOT, installation, Path(folder))
        server = ComfyServer(python=Path(sys.executable), comfyui=installation.path, base=base, log=base / "server.log")
        server.start(timeout=600)
        try:
            yield server
        finally:
            server.stop()


def write(info: dict) -> None:
    """Writes both forms of every graph. Raises BenchError for a graph that does not fit the server's nodes."""
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    from .alignment_workflows import GRAPHS as ALIGNMENT_GRAPHS
    from .pila_workflows import GRAPHS as PILA_GRAPHS

    for build in (*GRAPHS, *PILA_GRAPHS, *ALIGNMENT_GRAPHS):
        graph = build()
        check(graph, info)
        workflow = ui_form(graph, info)
        if covered := overlaps(workflow):
            raise BenchError(f"{graph.name}: nodes {covered} lie on one another.")
        for path, content in (
            (FOLDER / f"{graph.name}.json", workflow),
            (FOLDER / "api" / f"{graph.name}.json", api_form(graph, info)),
        ):
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"wrote {graph.name} ({len(workflow['nodes'])} nodes)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sentence = "make the thumbnails instead, of these workflows or of all; samples the toy graphs"
    parser.add_argument("--thumbnails", nargs="*", metavar="NAME", help=sentence)
    options = parser.parse_args(argv)
    try:
        with running_server() as server:
            if options.thumbnails is not None:
                from .thumbnails import make_thumbnails

                make_thumbnails(server, FOLDER, options.thumbnails)
            else:
                write(server.object_info())
    except BenchError as error:
        print(f"make_workflows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
