"""PILA's graphs: the toy world, its views, Wan 2.1, Wan 2.2 in two stages, and PILA with LaMo."""

from __future__ import annotations

from dataclasses import replace

from ..toy_size import FRAMES, SIDE
from .format import Column, Graph, Node, Out
from .pieces import (
    PROMPT,
    REAL_PROMPT,
    SEED,
    TOY_CLIP,
    TOY_MODEL,
    TOY_PREDICTOR,
    TOY_PROMPTS,
    TOY_VAE,
    WAN_NEGATIVE,
    WAN_PREDICTOR,
    WORLD,
    decode,
    guidance,
    law_score,
    predictor,
    prompts,
    quick_predictor,
    sampler,
    save_toy,
    size,
)
from .wan import WAN21, WAN22, Method, columns, named, noise

LONGER = replace(WAN21, size=(832, 480, 81), shift=5.0, cfg=5.0)
"""Wan 2.1 with a longer clip, at shift 5 and CFG 5."""
TOY_ADAPTER = "toy/toy_pila.safetensors"
WAN_ADAPTER = "wan2.1_pila.safetensors"
"""Trained on Wan 2.1; Wan 2.2 14B has the same latents."""
LABELS, ADAPTER = Out("parser", "labels"), Out("adapter", "adapter")
DESCRIPTION = Out("parser", "prompt")

HOW_TO_TRAIN = f"""
**The PILA adapter** is trained once on Wan 2.1 1.3B, on videos of your own, and serves Wan 2.2 14B too. In the folder of this
pack, with the packages of `pip install -e .[train]`:

```
python training cache --videos MY_CLIPS --out runs/cache --tokens
python training pila --recipe wan --cache runs/cache --out runs/pila \\
  --export ComfyUI/models/latent_physics/{WAN_ADAPTER}
```

Then press R, so that Load PILA Adapter lists it.
"""


def adapter(name: str) -> Node:
    return Node(key="adapter", type="LatentPhysicsLoadPilaAdapter", values={"name": name})


def parser(prompt: object) -> Node:
    return Node(key="parser", type="LatentPhysicsPromptParser", values={"prompt": prompt}, height=420)


def pila(model: Out, *, key: str = "pila", title: str = "", **values: object) -> Node:
    wires = {"model": model, "adapter": ADAPTER, "labels": LABELS}
    return Node(key=key, type="LatentPhysicsPilaCorrection", title=title, values={**wires, **values})


def labels() -> Node:
    """Physics Labels behind the parser, with every slider at 0: the parser's labels go through."""
    return Node(key="by_hand", type="LatentPhysicsLabels", values={"labels": Out("parser", "labels")})


def router(model: Out, latent: Out, *, key: str = "router", title: str = "") -> Node:
    return Node(
        key=key,
        type="LatentPhysicsRouterPlot",
        title=title,
        values={"model": model, "latent": latent},
        height=520,
    )


def toy_world_pila() -> Graph:
    models = {
        "plain": ("nothing", TOY_MODEL),
        "lamo": ("LaMo", Out("guidance", "MODEL")),
        "pila_only": ("PILA", Out("pila", "MODEL")),
        "both": ("PILA and LaMo", Out("stacked", "MODEL")),
    }
    seed = Out("seed", "INT")

    def stitch(key: str, left: str, right: str) -> Node:
        images = {
            "image1": Out(left, "IMAGE"),
            "image2": Out(right, "IMAGE"),
            "direction": "right",
            "spacing_width": 4,
        }
        return Node(key=key, type="ImageStitch", title="Side by side", values=images)

    return Graph(
        name="toy_world_pila",
        note=f"""# The same clip four times: plain, LaMo, PILA, both

Press **Run**. Needs no download and no GPU: the models come with the pack.

Four samplers get the same prompt, seed and settings. **Physics Prompt Parser** reads from the prompt which physics it is about
and
**PILA Correction** prefers the experts for it; its rules need no language model.

- **Save Animated WEBP**: from left to right plain, LaMo, PILA, both.
- **Law Score**: how well each clip keeps its world's law. One clip says little: raise batch_size in *Video size*.
- **Router Plot**: which experts worked at each step, and how large the correction was.

Try **strength** in PILA Correction: 0 gives the plain clip again.
{TOY_PROMPTS}""",
        note_height=860,
        columns=[
            Column(title="1  Load", nodes=[WORLD, predictor(TOY_PREDICTOR), adapter(TOY_ADAPTER)], width=360),
            Column(
                title="2  Ask",
                nodes=[
                    PROMPT,
                    parser(Out("prompt", "STRING")),
                    Node(key="seed", type="PrimitiveInt", title="Seed of all", values={"value": SEED}),
                    *prompts(DESCRIPTION, "", TOY_CLIP),
                    size(SIDE, SIDE, FRAMES),
                ],
                width=380,
            ),
            Column(
                title="3  Correct",
                nodes=[
                    guidance(TOY_MODEL, title="LaMo Guidance"),
                    pila(TOY_MODEL, title="PILA Correction"),
                    guidance(Out("pila", "MODEL"), key="stacked", title="LaMo Guidance after PILA"),
                ],
            ),
            Column(
                title="4  Sample",
                nodes=[
                    sampler(model, key=key, title=f"KSampler with {title}", seed=seed)
                    for key, (title, model) in models.items()
                ],
            ),
            Column(
                title="5  Look: plain, LaMo, PILA, both",
                nodes=[
                    *(decode(Out(key, "LATENT"), key=f"{key}_images", vae=TOY_VAE) for key in models),
                    stitch("first_pair", "plain_images", "lamo_images"),
                    stitch("second_pair", "pila_only_images", "both_images"),
                    stitch("four", "first_pair", "second_pair"),
                    *save_toy(Out("four", "IMAGE"), "toy_world_pila", height=380),
                ],
                width=560,
            ),
            Column(
                title="6  Measure",
                nodes=[
                    *(
                        law_score(
                            Out(f"{key}_images", "IMAGE"), key=f"{key}_score", title=f"Law Score with {title}"
                        )
                        for key, (title, _) in models.items()
                    ),
                    router(Out("pila", "MODEL"), Out("pila_only", "LATENT")),
                ],
                width=480,
            ),
        ],
    )


def pila_views() -> Graph:
    latent, larger = Out("sampler", "LATENT"), Out("larger", "IMAGE")
    corrected = Out("pila", "MODEL")

    def bank(field: str, key: str) -> Node:
        values = {"latent": latent, "adapter": ADAPTER, "images": larger, "field": field}
        return Node(key=key, type="LatentPhysicsAttributeBankView", values=values, height=460)

    by_hand = pila(TOY_MODEL, keep_for_maps=True, labels=Out("by_hand", "labels"))
    maps = {"model": corrected, "latent": latent, "images": larger, "expert": "strongest"}
    return Graph(
        name="pila_views",
        note=f"""# What does the PILA adapter see and do?

Press **Run**. Needs no download and no GPU: the models come with the pack.

- **Physics Prompt Parser** reads the kinds of physics from the prompt, and **Physics Labels** lets you overrule it: raise a slider
  and see another expert work. At 0 the parser's labels go through.
- **Router Plot**: which experts worked at each step.
- **Expert Maps**: where the strongest expert acted (needs keep_for_maps on in PILA Correction).
- **Attribute Bank View**: fields that the adapter reads out of the finished video. The velocity's colour is its direction. They
are
  proxies without units, not measurements.
{TOY_PROMPTS}""",
        note_height=760,
        columns=[
            Column(title="1  Load", nodes=[WORLD, adapter(TOY_ADAPTER)], width=360),
            Column(
                title="2  Ask",
                nodes=[
                    PROMPT,
                    parser(Out("prompt", "STRING")),
                    labels(),
                    *prompts(DESCRIPTION, "", TOY_CLIP),
                    size(SIDE, SIDE, FRAMES),
                ],
                width=380,
            ),
            Column(
                title="3  Sample",
                nodes=[by_hand, sampler(corrected), decode(latent, vae=TOY_VAE)],
            ),
            Column(title="4  The clip", nodes=save_toy(Out("decode", "IMAGE"), "pila_views")),
            Column(
                title="5  Experts",
                nodes=[
                    router(corrected, latent),
                    Node(key="maps", type="LatentPhysicsExpertMaps", values=maps, height=520),
                ],
                width=480,
            ),
            Column(
                title="6  Fields",
                nodes=[
                    bank("u: velocity (colour: direction, brightness: speed)", "velocity"),
                    bank("rho: density", "density"),
                    bank("T: temperature", "temperature"),
                ],
                width=420,
            ),
        ],
    )


def corrected(stage: str, model: Out) -> list[Node]:
    """PILA on one model."""
    return [pila(model, key=named(stage, "pila"), title=noise(stage, "PILA Correction"))]


def corrected_and_guided(stage: str, model: Out) -> list[Node]:
    """PILA, then LaMo on what PILA left."""
    after = Out(named(stage, "pila"), "MODEL")
    return [*corrected(stage, model), guidance(after)]


PILA = Method(
    name="pila",
    loads=(adapter(WAN_ADAPTER),),
    ask=(parser(REAL_PROMPT), *prompts(DESCRIPTION, WAN_NEGATIVE)),
    acts="Correct",
    correct=corrected,
    asks_first=True,
    measure=router,
    measure_key="router",
    measure_title="Router Plot",
    width=480,
)
BOTH = replace(
    PILA, name="pila_lamo", loads=(*PILA.loads, predictor(WAN_PREDICTOR)), correct=corrected_and_guided
)


def wan21_pila(method: Method = PILA) -> Graph:
    lamo = method is BOTH
    title = "PILA and LaMo" if lamo else "PILA"
    files = "train a PILA adapter and a motion predictor" if lamo else "train a PILA adapter"
    order = (
        "The two corrections act one after the other at each step: PILA first, then LaMo on what PILA left."
    )
    stacking = f"\n{order}\n" if lamo else ""
    return Graph(
        name=f"wan2.1_t2v_1.3B_{method.name}",
        note=f"""# Wan 2.1 1.3B, text to video, with {title}

1. Fetch the three model files (the names in *Load* are those of ComfyUI's own template), and {files}.
2. Press **Run**. Set **strength** in PILA Correction to 0 and run again for the same video without PILA.
3. **Physics Prompt Parser** labels the prompt by rules. With an LLM (see its help page) it also rewrites the prompt so that
   materials, motion and contacts are spelled out, which is how the paper's numbers were made.
4. **Router Plot** shows which experts worked, and how large the correction was.
{stacking}{quick_predictor("wan2.1") if lamo else ""}{HOW_TO_TRAIN}""",
        note_height=880,
        columns=columns(LONGER, method),
    )


def wan21_pila_lamo() -> Graph:
    return wan21_pila(BOTH)


def wan22_pila() -> Graph:
    return Graph(
        name="wan2.2_t2v_14B_pila",
        note=f"""# Wan 2.2 14B, text to video, with PILA on both experts

ComfyUI's own Wan 2.2 graph (the 20-step one) with **PILA Correction** for each of the two models. Both use one adapter, trained
on
Wan 2.1 1.3B: the latents are the same.

1. Fetch the four model files (the names in *Load* are those of ComfyUI's own template), and train a PILA adapter.
2. Press **Run**. Set both **strength** to 0 and run again for the same video without PILA.
3. To correct only one of the models, set the other's strength to 0. The **Router Plot** of each shows what its adapter did.
4. The paper's gate is nearly closed on the high-noise model (0.05 to 0.08 of the correction). An adapter trained with
   `--gate linear` acts there too: add that to the training command below.
{HOW_TO_TRAIN}""",
        note_height=760,
        columns=columns(WAN22, PILA),
    )


GRAPHS = (toy_world_pila, pila_views, wan21_pila, wan21_pila_lamo, wan22_pila)
