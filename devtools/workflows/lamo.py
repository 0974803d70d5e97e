"""LaMo's graphs: the toy world, heatmaps, scores, Wan 2.1, both experts of Wan 2.2, CogVideoX."""

from __future__ import annotations

from .format import Column, Graph, Node, Out
from .pieces import (
    COG,
    COG_CACHE,
    COG_PREDICTOR,
    COG_VAE,
    GUIDED,
    PROMPT,
    REAL_PROMPT,
    SEED,
    T5,
    TOY_CLIP,
    TOY_MODEL,
    TOY_PREDICTOR,
    TOY_PROMPT,
    TOY_PROMPTS,
    TOY_VAE,
    WAN_NEGATIVE,
    WAN_PREDICTOR,
    WORLD,
    decode,
    guidance,
    how_to_train,
    law_score,
    loaders,
    predictor,
    prompts,
    sampler,
    save_toy,
    save_video,
    size,
    trace,
)
from .wan import EXPERTS, ONE, Method, named, noise, wan


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

Try **share** in LaMo Guidance: 0 gives the left clip again, too much stiffens the motion.
{TOY_PROMPTS}""",
        note_height=640,
        columns=[
            Column(
                title="1  Load",
                nodes=[WORLD, predictor(TOY_PREDICTOR), guidance(TOY_MODEL, full_trace=True)],
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
                    law_score(
                        Out("plain_images", "IMAGE"), key="plain_score", title="Law Score without LaMo"
                    ),
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

Set **share** in LaMo Guidance to 0 for the plain model, run again with the same seed, and compare the means. Look at the
dynamic degree too: a clip that stands still breaks no law.
{TOY_PROMPTS}""",
        note_height=560,
        columns=[
            Column(
                title="1  Load",
                nodes=[WORLD, predictor(TOY_PREDICTOR), guidance(TOY_MODEL)],
                width=360,
            ),
            Column(
                title="2  Ask",
                nodes=[PROMPT, *prompts(Out("prompt", "STRING"), "", TOY_CLIP), size(64, 64, 33, 8)],
            ),
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


# --- real backbones -----------------------------------------------------------------------------------------


def guided(stage: str) -> list[Node]:
    """LaMo on one model."""
    model, key = Out(named(stage, "model"), "MODEL"), named(stage, "guidance")
    return [guidance(model, key=key, title=noise(stage, "LaMo Guidance"), full_trace=True)]


LAMO = Method(
    name="lamo",
    loads=(predictor(WAN_PREDICTOR),),
    ask=tuple(prompts(REAL_PROMPT, WAN_NEGATIVE)),
    acts="Guide",
    correct=guided,
    measure=trace,
    measure_key="trace",
    measure_title="Guidance Trace",
    width=420,
)


def wan21() -> Graph:
    return wan(
        LAMO,
        stages=ONE,
        note=f"""# Wan 2.1 1.3B, text to video, with LaMo

ComfyUI's own Wan 2.1 graph with two nodes more: **Load Motion Predictor** and **LaMo Guidance** between the model and its shift.

1. Fetch the three model files (the names in *Load* are those of ComfyUI's own template), and train a motion predictor.
2. Press **Run**. Set **share** to 0 and run again for the same video without LaMo.
3. **Guidance Trace** shows the motion error per step, how large the nudge was, and where share held it back. Where motion
   stiffens, lower share; where nothing changes, raise it.

The same share and start fit every length, step count, sampler, shift and cfg.
{how_to_train(WAN_PREDICTOR, "--backbone wan")}""",
        note_height=620,
        note_width=560,
        video=size(832, 480, 33),
        shift_by=8.0,
        cfg=6.0,
    )


def wan22() -> Graph:
    return wan(
        LAMO,
        stages=EXPERTS,
        note=f"""# Wan 2.2 14B, text to video, with LaMo on both experts

ComfyUI's own Wan 2.2 graph (the 20-step one) with **LaMo Guidance** for each of the two experts. Both use one motion predictor:
Wan 2.2 14B has Wan 2.1's latents.

1. Fetch the four model files (the names in *Load* are those of ComfyUI's own template), and train a motion predictor.
2. Press **Run**. Set both **share** to 0 and run again for the same video without LaMo.
3. The **Guidance Trace** of each expert shows the motion error per step and how large the nudge was.

**start** is a noise level, so both nodes have the same: the first expert is guided once its noise is below it, the second
always.
{how_to_train(WAN_PREDICTOR, "--backbone wan")}""",
        note_height=620,
        note_width=560,
        video=size(640, 640, 81),
        shift_by=5.0,
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
2. Train a motion predictor. Press **Run**. Set **share** to 0 and run again for the same video without LaMo.
3. **Guidance Trace** shows the motion error per step and how large the nudge was.

For the paper's own rule set *mode* to paper: strength 25 and, with *window* at steps, active 0.8 are its values. This
model works on pairs of latent frames:
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
                    guidance(Out("model", "MODEL"), full_trace=True),
                    size(1360, 768, 77),
                ],
            ),
            Column(title="3  Ask", nodes=prompts(REAL_PROMPT, ""), width=420),
            Column(
                title="4  Sample",
                nodes=[
                    Node(key="ddim", type="VOIDSampler"),
                    Node(
                        key="sigmas",
                        type="BasicScheduler",
                        values={"model": GUIDED, "scheduler": "simple", "steps": 50},
                    ),
                    Node(
                        key="sampler", type="SamplerCustom", values={**wires, "noise_seed": SEED, "cfg": 6.0}
                    ),
                    decode(latent),
                ],
            ),
            Column(
                title="5  Look",
                nodes=[
                    *save_video(Out("decode", "IMAGE"), "video/cogvideox_lamo", 16.0),
                    trace(GUIDED, latent),
                ],
                width=420,
            ),
        ],
    )


GRAPHS = (toy_world_lamo, motion_heatmaps, toy_world_score, wan21, wan22, cogvideox)
