"""LaMo's graphs of the toy world: guidance, heatmaps, scores."""

from __future__ import annotations

from ..toy_size import FRAMES, SIDE
from .format import Column, Graph, Node, Out
from .pieces import (
    GUIDED,
    PROMPT,
    SEED,
    TOY_CLIP,
    TOY_MODEL,
    TOY_PREDICTOR,
    TOY_PROMPT,
    TOY_PROMPTS,
    TOY_VAE,
    WORLD,
    decode,
    guidance,
    law_score,
    predictor,
    prompts,
    sampler,
    save_toy,
    size,
    trace,
)


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
                    size(SIDE, SIDE, FRAMES),
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
            Column(title="2  Ask", nodes=[*prompts(TOY_PROMPT, "", TOY_CLIP), size(SIDE, SIDE, FRAMES)]),
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
                nodes=[PROMPT, *prompts(Out("prompt", "STRING"), "", TOY_CLIP), size(SIDE, SIDE, FRAMES, 8)],
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


GRAPHS = (toy_world_lamo, motion_heatmaps, toy_world_score)
