"""LaMo on the Wan models that artists have, in the schedules of ComfyUI's own templates."""

from __future__ import annotations

from dataclasses import replace

from .format import Graph, Node, Out
from .pieces import (
    PREDICTORS,
    REAL_PROMPT,
    WAN_NEGATIVE,
    WAN_PREDICTOR,
    guidance,
    how_to_train,
    predictor,
    prompts,
    real_graph,
    trace,
)
from .wan import WAN21, WAN22, WAN22_5B, WAN22_FEW, WAN22_IMAGE_FEW, Method, columns, named, noise

SMALL_PREDICTOR = PREDICTORS["wan2.2"]
TRACE = (
    "**Guidance Trace** shows the motion error of each step before and after the nudge, and where share held the nudge back. Set "
    "**share** to 0 and run again for the same video without LaMo."
)
EXPERTS = (
    "**start** is a noise level, so both LaMo nodes have the same: the first expert is guided once its noise is below it, the "
    "second always. Wan 2.2 14B has Wan 2.1's latents: one predictor serves both."
)
FEW = (
    "ComfyUI's own graph for four steps at **CFG 1**, with **LaMo Guidance** as the last node before each expert's sampler. At CFG 1 "
    "nodes that work on the difference to the negative prompt (CFGZeroStar, CFGNorm, TCFG, Mahiro, FreSca) have nothing to do; LaMo works "
    "on the video itself."
)


def guided(stage: str, model: Out) -> list[Node]:
    """LaMo on one model."""
    key = named(stage, "guidance")
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
SMALL = replace(LAMO, loads=(predictor(SMALL_PREDICTOR),))


def wan21() -> Graph:
    return real_graph(
        "wan2.1_t2v_1.3B_lamo",
        "Wan 2.1 1.3B, text to video, with LaMo",
        what="ComfyUI's own Wan 2.1 graph with **LaMo Guidance** as the last node before the sampler.",
        see=TRACE,
        space="wan2.1",
        columns=columns(WAN21, LAMO),
        more=how_to_train(WAN_PREDICTOR, "--backbone wan"),
    )


def wan22() -> Graph:
    return real_graph(
        "wan2.2_t2v_14B_lamo",
        "Wan 2.2 14B, text to video, 20 steps, with LaMo on both experts",
        what="ComfyUI's own Wan 2.2 graph with **LaMo Guidance** as the last node before each sampler.",
        see=TRACE,
        space="wan2.1",
        columns=columns(WAN22, LAMO),
        more="\n" + EXPERTS + "\n" + how_to_train(WAN_PREDICTOR, "--backbone wan"),
    )


def wan22_few() -> Graph:
    return real_graph(
        "wan2.2_t2v_14B_4steps_lamo",
        "Wan 2.2 14B, text to video in 4 steps, with LaMo on both experts",
        what=FEW,
        see=TRACE,
        space="wan2.1",
        columns=columns(WAN22_FEW, LAMO),
        more="\n" + EXPERTS + "\n",
    )


def wan22_image_few() -> Graph:
    return real_graph(
        "wan2.2_i2v_14B_4steps_lamo",
        "Wan 2.2 14B, image to video in 4 steps, with LaMo on both experts",
        what=FEW,
        see="does what the picture shows go on moving as things do? " + TRACE,
        space="wan2.1",
        columns=columns(WAN22_IMAGE_FEW, LAMO),
        more="\nChoose your own picture in *First frame*, and say in the prompt what moves.\n\n"
        + EXPERTS
        + "\n",
    )


def wan22_5b() -> Graph:
    return real_graph(
        "wan2.2_ti2v_5B_lamo",
        "Wan 2.2 5B, image or text to video, with LaMo",
        what="ComfyUI's own Wan 2.2 5B graph with **LaMo Guidance** as the last node before the sampler.",
        see=TRACE,
        space="wan2.2",
        columns=columns(WAN22_5B, SMALL),
        more="\nThe picture in *First frame* stays as it is: LaMo guides the frames after it. For text alone, remove the wire to "
        "**start_image**. The 5B model has latents of its own (48 channels): it needs its own predictor.\n",
    )


GRAPHS = (wan21, wan22, wan22_few, wan22_image_few, wan22_5b)
