"""Graphs of the training nodes and of what the alignment methods look at."""

from __future__ import annotations

from ..toy_size import FRAMES, SIDE
from .format import Column, Graph, Node, Out
from .pieces import (
    SEED,
    TOY_CLIP,
    TOY_FPS,
    TOY_MODEL,
    TOY_PROMPT,
    TOY_PROMPTS,
    TOY_VAE,
    WORLD,
    decode,
    guidance,
    prompts,
    sampler,
    save_toy,
    size,
)

TAPPED = Out("tap", "MODEL")


def enlarged(key: str, images: Out, name: str) -> list[Node]:
    """Pictures of 64 pixels, enlarged without smoothing and saved."""
    larger = {"image": images, "upscale_method": "nearest-exact", "scale_by": 4.0}
    saved = {"filename_prefix": f"latent_physics/{name}", "fps": TOY_FPS, "lossless": False, "quality": 90}
    return [
        Node(key=f"{key}_larger", type="ImageScaleBy", title="Enlarge", values=larger),
        Node(
            key=f"{key}_save",
            type="SaveAnimatedWEBP",
            values={"images": Out(f"{key}_larger", "IMAGE"), **saved},
            height=420,
        ),
    ]


def toy_train_predictor() -> Graph:
    train = {
        "latent": Out("data", "LATENT"),
        "positive": Out("positive", "CONDITIONING"),
        "latent_space": "toy",
        "name": "my_toy_predictor",
        "recipe": "toy",
        "steps": 300,
    }
    return Graph(
        name="toy_train_predictor",
        note=f"""# Train a motion predictor and use it, in one graph

Press **Run**. Needs no download and no GPU. Sampling eight clips and 300 training steps take about a minute on a laptop.

1. The first sampler makes eight clips with the toy model.
2. **Train Motion Predictor** learns from them how a latent frame goes on. Its plot shows the loss, and how much of the change in
   a held-out clip it cannot explain (1: nothing known, 0: all). The file goes to models/latent_physics.
3. **LaMo Guidance** steers the second sampler, with another seed, by it.

The node works; the predictor is no better than its data. These clips are the model's own, with its own mistakes. For real use
wire encoded videos instead: VAE Encode for each, joined by Latent Batch; or train on a folder with the pack's command.
{TOY_PROMPTS}""",
        note_height=600,
        columns=[
            Column(title="1  Load", nodes=[WORLD], width=320),
            Column(title="2  Ask", nodes=[*prompts(TOY_PROMPT, "", TOY_CLIP), size(SIDE, SIDE, FRAMES, 8)]),
            Column(
                title="3  Train",
                nodes=[
                    sampler(TOY_MODEL, key="data", title="Clips to learn from"),
                    Node(key="train", type="LatentPhysicsTrainMotionPredictor", values=train, height=640),
                ],
                width=420,
            ),
            Column(
                title="4  Use",
                nodes=[
                    guidance(TOY_MODEL, predictor=Out("train", "predictor")),
                    sampler(Out("guidance", "MODEL"), seed=SEED + 1),
                    decode(Out("sampler", "LATENT"), vae=TOY_VAE),
                ],
            ),
            Column(title="5  The clips", nodes=save_toy(Out("decode", "IMAGE"), "toy_train_predictor")),
        ],
    )


def toy_train_lora() -> Graph:
    train = {
        "model": TOY_MODEL,
        "latent": Out("data", "LATENT"),
        "positive": Out("positive", "CONDITIONING"),
        "steps": 40,
        "learning_rate": 3e-4,
        "rank": 8,
        "batch": 2,
        "run": "",
    }
    use = {"model": TOY_MODEL, "lora": Out("train", "lora")}
    save = {"lora": Out("train", "lora"), "prefix": "loras/toy_physics"}
    return Graph(
        name="toy_train_lora",
        note=f"""# Train a LoRA with LaMo's drift loss and use it, in one graph

Press **Run**. Needs no download and no GPU. Sampling four clips and 40 training steps take about a minute on a laptop.

1. The first sampler makes four clips with the toy model.
2. **Train Physics LoRA** fine-tunes the toy model on them: denoising, and beside it LaMo's loss of motion drift. Its plot shows both.
3. **Load LoRA Model**, a stock node, puts the LoRA on the MODEL for the second sampler, with another seed.
4. **Save LoRA Weights**, a stock node, keeps it in output/loras, where Load LoRA lists it.

The node works; a LoRA is no better than its clips, and these are the model's own. For a real model choose a **folder** of videos
instead of the latent, wire **vae** and **clip**, unplug **positive**, and give **run** a name: a cancelled run then goes on.
{TOY_PROMPTS}""",
        note_height=600,
        columns=[
            Column(title="1  Load", nodes=[WORLD], width=320),
            Column(title="2  Ask", nodes=[*prompts(TOY_PROMPT, "", TOY_CLIP), size(SIDE, SIDE, FRAMES, 4)]),
            Column(
                title="3  Train",
                nodes=[
                    sampler(TOY_MODEL, key="data", title="Clips to learn from"),
                    Node(key="train", type="LatentPhysicsTrainPhysicsLora", values=train, height=640),
                ],
                width=420,
            ),
            Column(
                title="4  Use and keep",
                nodes=[
                    Node(key="use", type="LoraModelLoader", values=use),
                    sampler(Out("use", "model"), seed=SEED + 1),
                    decode(Out("sampler", "LATENT"), vae=TOY_VAE),
                    Node(key="keep", type="SaveLoRA", values=save),
                ],
            ),
            Column(title="5  The clips", nodes=save_toy(Out("decode", "IMAGE"), "toy_train_lora")),
        ],
    )


def correspondence() -> Graph:
    images = Out("decode", "IMAGE")
    point = {"images": images, "x": 31, "y": 44, "frame": 16}
    heat = {**point, "model": TAPPED, "latent": Out("sampler", "LATENT")}
    known = {**point, "encoder": Out("teacher", "encoder")}
    saliency = {"images": images, "keep": 0.2, "patch": 8}
    return Graph(
        name="correspondence_map",
        note=f"""# What does the model take for the same thing?

Press **Run**. Needs no download and no GPU: the model comes with the pack.

- **Tap Block** remembers what one block of the model says at one step. The video is the same as without it.
- **Correspondence Map** takes a point of one frame (the cross) and shows, in every frame, where that block believes it to be. Put
  x, y and frame onto the ball. Try other blocks and steps; lower the temperature for one place, raise it for many.
- The second **Correspondence Map** asks a video encoder for the same point: generator and teacher side by side. The small
  VideoMAE here has seen the toy world only; for other videos load VideoMAE or V-JEPA 2. Keep both points equal.
- **Motion Saliency Mask** marks the fifth of every frame that changes most.
{TOY_PROMPTS}""",
        note_height=560,
        columns=[
            Column(
                title="1  Load and listen",
                nodes=[
                    WORLD,
                    Node(
                        key="tap",
                        type="LatentPhysicsTapBlock",
                        values={"model": TOY_MODEL, "block": 2, "step": 15},
                    ),
                    Node(
                        key="teacher",
                        type="LatentPhysicsLoadVideoEncoder",
                        values={"name": "toy/toy_videomae.safetensors"},
                    ),
                ],
            ),
            Column(title="2  Ask", nodes=[*prompts(TOY_PROMPT, "", TOY_CLIP), size(SIDE, SIDE, FRAMES)]),
            Column(title="3  Sample", nodes=[sampler(TAPPED), decode(Out("sampler", "LATENT"), vae=TOY_VAE)]),
            Column(
                title="4  The same thing, says the model",
                nodes=[
                    Node(key="map", type="LatentPhysicsCorrespondenceMap", values=heat, height=520),
                    *enlarged("map", Out("map", "overlay"), "correspondence_map"),
                ],
            ),
            Column(
                title="5  The same thing, says the encoder",
                nodes=[
                    Node(key="known", type="LatentPhysicsCorrespondenceMap", values=known, height=520),
                    *enlarged("known", Out("known", "overlay"), "correspondence_encoder"),
                ],
            ),
            Column(
                title="6  What moves",
                nodes=[
                    Node(key="saliency", type="LatentPhysicsMotionSaliencyMask", values=saliency, height=440),
                    *enlarged("saliency", Out("saliency", "shown"), "motion_saliency"),
                ],
            ),
        ],
    )


GRAPHS = (toy_train_predictor, toy_train_lora, correspondence)
