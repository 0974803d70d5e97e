"""A first motion predictor: trained in the graph on clips that every ComfyUI has, used at once, and saved
under the name that the other graphs load."""

from __future__ import annotations

from dataclasses import replace

from .format import Graph, Node, Out
from .pieces import CLIP, OWN_CLIPS, PREDICTORS, VAE, WAN_PREDICTOR
from .wan import WAN21, columns
from .wan_lamo import LAMO

WHERE = {
    "wan2.1": "wan_2.1_vae",
    "wan2.2": "wan2.2_vae",
    "ltxav": "that of Load Checkpoint, in place of Load VAE",
    "minimax_h3": "minimax_h3_video_vae_fp16",
    "hunyuan_video1.5": "hunyuanvideo15_vae_fp16",
    "cogvideox1.5": "cogvideox_vae",
}
"""Latent space -> its VAE, as ComfyUI's templates name the file."""
MODELS = {
    "wan2.1": "Wan 2.1, Wan 2.2 14B, Causal Forcing",
    "wan2.2": "Wan 2.2 5B",
    "ltxav": "LTX-2.3",
    "minimax_h3": "MiniMax H3",
    "hunyuan_video1.5": "HunyuanVideo 1.5",
    "cogvideox1.5": "CogVideoX 1.5 5B",
}
"""Latent space -> the models that have it."""

TRAINER = Node(
    key="predictor",
    type="LatentPhysicsTrainMotionPredictor",
    title="Train Motion Predictor (folder: what it learns from)",
    values={
        "latent_space": "wan2.1",
        "name": WAN_PREDICTOR.removesuffix(".safetensors"),
        "recipe": "quick",
        "folder": OWN_CLIPS,
        "vae": VAE,
        "clip": CLIP,
    },
    height=640,
)
INFO = Node(
    key="info",
    type="PreviewAny",
    title="How good it is",
    values={"source": Out("predictor", "info")},
    height=300,
)


def first_predictor() -> Graph:
    names = {space: file.removesuffix(".safetensors") for space, file in PREDICTORS.items()}
    rows = "\n".join(f"| {MODELS[s]} | `{s}` | {WHERE[s]} | `{names[s]}` |" for s in PREDICTORS)
    return Graph(
        name="first_predictor",
        note=f"""# A first motion predictor, without hunting for videos

Press **Run**. **Train Motion Predictor** takes the generated clips that ComfyUI's own templates show (about a hundred; nothing is
fetched), encodes them with this graph's VAE and trains a small predictor, recipe `quick`: minutes on a GPU. It saves it in
`models/latent_physics` under the name that the other graphs load, and the sampler on the right uses it at once.

- **How good it is** gives the change in held-out clips that stays unexplained, and below which number it is of use.
- **Guidance Trace** shows what LaMo did with it.

**Your own videos next:** put a folder of them into ComfyUI's input folder, press R, and choose it at **folder**. That is all;
captions beside the videos are read by the text encoder. More clips, of things that move as you want them to, make a better one.

**Another model:** set these three and unplug **clip**. The sampling half may stay: ComfyUI names the files that it lacks, and trains
all the same.

| model | latent_space | VAE | name |
|---|---|---|---|
{rows}

The pack's docs/training.md says how many minutes and GiB it takes, per model and card.
""",
        note_width=620,
        note_height=820,
        columns=columns(WAN21, replace(LAMO, name="first", loads=(TRAINER, INFO))),
    )


GRAPHS = (first_predictor,)
