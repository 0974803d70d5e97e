"""One seed side by side: plain, with LaMo, and with stock nodes that change how a video moves at CFG 1."""

from __future__ import annotations

from ..toy_size import FRAMES, SIDE
from . import files
from .format import Graph, Node, Out
from .pieces import (
    PROMPT,
    REAL_PROMPT,
    TOY_CLIP,
    TOY_MODEL,
    TOY_PREDICTOR,
    TOY_PROMPTS,
    TOY_VAE,
    VAE,
    WAN_NEGATIVE,
    WAN_PREDICTOR,
    WORLD,
    decode,
    guidance,
    law_score,
    loaders,
    numbered,
    predictor,
    prompts,
    real_graph,
    sampler,
    save_toy,
    save_video,
    size,
)
from .wan import WAN22_IMAGE_FEW, models, named, noise, ready, sampled, start

ARMS = {
    "plain": "plain",
    "lamo": "LaMo",
    "tsr": "TSR",
    "rope": "time scaled",
}
"""The arms that are compared: key -> caption, in the order of the pictures."""
STOCK = {
    "tsr": ("TemporalScoreRescaling", "patched_model", {}),
    "rope": ("ScaleROPE", "MODEL", {"scale_t": 0.9}),
}
"""ComfyUI's own nodes: arm -> node, its output, its settings (the rest are its defaults)."""
RIVALS = """- **TSR** (Temporal Score Rescaling) rescales the estimate at every step; **ScaleROPE** at scale_t 0.9 makes the model believe that
  less time passes. Both work at CFG 1, as LaMo does.
- Not shown: CFGZeroStar, CFGNorm, TCFG, Mahiro and FreSca have nothing to do at CFG 1, and ComfyUI's NAGuidance does not reach Wan's
  attention, so its video is the plain one at twice the time."""


def patched(arm: str, model: Out, key: str, title: str) -> list[Node]:
    """The arm's node on a model; none for the plain arm."""
    if arm == "plain":
        return []
    if arm == "lamo":
        return [guidance(model, key=key, title=title)]
    kind, _, settings = STOCK[arm]
    return [Node(key=key, type=kind, title=title, values={"model": model, **settings})]


def model_of(arm: str, model: Out, key: str) -> Out:
    """Inputs of the arm's sampler."""
    if arm == "plain":
        return model
    return Out(key, STOCK[arm][1] if arm in STOCK else "MODEL")


def drift(arm: str, latent: Out) -> Node:
    values = {"latent": latent, "images": Out(f"{arm}_images", "IMAGE")}
    title = f"Motion Drift Heatmap: {ARMS[arm]}"
    return Node(
        key=f"{arm}_drift", type="LatentPhysicsMotionDriftHeatmap", title=title, values=values, height=440
    )


def four(kind: str, title: str) -> list[Node]:
    """The arms' pictures in two rows of two, under the key "four"."""
    images = [Out(f"{arm}_{kind}", "IMAGE") for arm in ARMS]

    def stitch(key: str, first: Out, second: Out, direction: str) -> Node:
        values = {"image1": first, "image2": second, "direction": direction, "spacing_width": 4}
        return Node(key=key, type="ImageStitch", title=title, values=values)

    return [
        stitch("upper", *images[:2], "right"),
        stitch("lower", *images[2:], "right"),
        stitch("four", Out("upper", "IMAGE"), Out("lower", "IMAGE"), "down"),
    ]


def toy_side_by_side() -> Graph:
    keys = {arm: f"{arm}_patch" for arm in ARMS}
    patches = [node for arm, key in keys.items() for node in patched(arm, TOY_MODEL, key, "")]

    def column(arm: str) -> tuple[str, list[Node], int]:
        latent, images = Out(arm, "LATENT"), Out(f"{arm}_images", "IMAGE")
        title = f"Law Score: {ARMS[arm]}"
        nodes = [
            sampler(model_of(arm, TOY_MODEL, keys[arm]), key=arm, title=f"KSampler: {ARMS[arm]}", cfg=1.0),
            decode(latent, key=f"{arm}_images", vae=TOY_VAE),
            drift(arm, latent),
            law_score(images, key=f"{arm}_score", title=title),
        ]
        return ARMS[arm], nodes, 400

    return Graph(
        name="toy_side_by_side",
        note=f"""# One seed, four ways to sample it

Press **Run**. Needs no download and no GPU: the model comes with the pack. All four samplers have the same prompt, seed and steps,
at CFG 1.

{RIVALS}

**What to see**: *Save Animated WEBP* has plain and LaMo above, TSR and time scaled below. Under each sampler the **Motion Drift
Heatmap** shows where its clip moves, and **Law Score** how well it keeps its law and, as *dynamic degree*, how much moves: compare
the law at equal motion, since a still clip breaks no law. One clip says little: change the seed, or raise batch_size in *Video
size*.
{TOY_PROMPTS}""",
        note_width=560,
        note_height=720,
        columns=numbered(
            ("Load", [WORLD, predictor(TOY_PREDICTOR), *patches], 360),
            ("Ask", [PROMPT, *prompts(Out("prompt", "STRING"), "", TOY_CLIP), size(SIDE, SIDE, FRAMES)], 320),
            *(column(arm) for arm in ARMS),
            (
                "Side by side",
                [
                    *four("images", "plain and LaMo above, TSR and time scaled below"),
                    *save_toy(Out("four", "IMAGE"), "toy_side_by_side", height=460),
                ],
                420,
            ),
        ),
    )


def wan_side_by_side() -> Graph:
    variant = WAN22_IMAGE_FEW
    guide: list[Node] = []

    def column(arm: str) -> tuple[str, list[Node], int]:
        corrected = {}
        for stage in variant.stages:
            key = named(stage, arm)
            guide.extend(patched(arm, ready(stage), key, noise(stage, ARMS[arm])))
            corrected[stage] = model_of(arm, ready(stage), key)
        latent = Out(f"{arm}_low", "LATENT")
        amount = {"source": Out(f"{arm}_drift", "motion")}
        nodes = [
            *sampled(variant, corrected, prefix=f"{arm}_"),
            decode(latent, key=f"{arm}_images", vae=VAE),
            drift(arm, latent),
            Node(key=f"{arm}_amount", type="PreviewAny", title=f"How much moves: {ARMS[arm]}", values=amount),
        ]
        return ARMS[arm], nodes, 400

    arms = [column(arm) for arm in ARMS]
    loading = [*models(variant), *loaders(files.UMT5, "wan", variant.vae), predictor(WAN_PREDICTOR)]
    return real_graph(
        "wan2.2_i2v_14B_4steps_side_by_side",
        "Wan 2.2 14B, image to video: one seed, four ways to sample it",
        what=f"ComfyUI's own graph for four steps at **CFG 1**, four times with one seed.\n\n{RIVALS}",
        see="the saved video has plain and LaMo above, TSR and time scaled below. Under each sampler the **Motion Drift Heatmap** shows "
        "where its video moves and *How much moves* by how much: compare at equal motion, since a still video makes no mistakes.",
        space="wan2.1",
        columns=numbered(
            ("Load", loading, 420),
            ("Ask", [*prompts(REAL_PROMPT, WAN_NEGATIVE), *start(variant)], 420),
            ("Guide", guide, 320),
            *arms,
            (
                "Side by side",
                [
                    *four("images", "plain and LaMo above, TSR and time scaled below"),
                    *save_video(Out("four", "IMAGE"), "video/wan2.2_side_by_side", variant.fps),
                ],
                420,
            ),
        ),
    )


GRAPHS = (toy_side_by_side, wan_side_by_side)
