"""The pack's subgraph blueprints."""

from __future__ import annotations

from .format import INPUT, Column, Graph, Node, Out
from .pieces import guidance

TEXTS = {"positive": Out(INPUT, "positive"), "negative": Out(INPUT, "negative")}
WIRES = {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"}


def guided(model: str, key: str, title: str = "") -> Node:
    """LaMo on an input of the subgraph."""
    wires = {"predictor": Out(INPUT, "predictor"), "share": Out(INPUT, "share")}
    return guidance(Out(INPUT, model), key=key, title=title, **wires)


def two_experts() -> Graph:
    settings = {
        "steps": Out(INPUT, "steps"),
        "cfg": Out(INPUT, "cfg"),
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    high = {
        "add_noise": "enable",
        "noise_seed": Out(INPUT, "seed"),
        "end_at_step": Out(INPUT, "switch_at"),
        "return_with_leftover_noise": "enable",
        "model": Out("high_guidance", "MODEL"),
        "latent_image": Out(INPUT, "latent"),
    }
    low = {
        "add_noise": "disable",
        "start_at_step": Out(INPUT, "switch_at"),
        "return_with_leftover_noise": "disable",
        "model": Out("low_guidance", "MODEL"),
        "latent_image": Out("high", "LATENT"),
    }
    samplers = [
        Node(key=key, type="KSamplerAdvanced", title=f"{key} noise", values={**TEXTS, **settings, **values})
        for key, values in (("high", high), ("low", low))
    ]
    return Graph(
        name="two experts with LaMo",
        note="Samples with Wan 2.2's two experts in turn, both with LaMo Guidance. Wire each expert after its "
        "LoRA and shift.",
        inputs={
            "high_model": "MODEL",
            "low_model": "MODEL",
            "predictor": "MOTION_PREDICTOR",
            **WIRES,
            "seed": "INT",
            "steps": "INT",
            "switch_at": "INT",
            "cfg": "FLOAT",
            "share": "FLOAT",
        },
        defaults={"steps": 4, "switch_at": 2, "cfg": 1.0},
        outputs={"LATENT": Out("low", "LATENT")},
        columns=[
            Column(
                title="",
                nodes=[
                    guided("high_model", "high_guidance", "LaMo Guidance (high noise)"),
                    guided("low_model", "low_guidance", "LaMo Guidance (low noise)"),
                ],
            ),
            Column(title="", nodes=samplers),
        ],
    )


def with_and_without() -> Graph:
    settings = {
        "seed": Out(INPUT, "seed"),
        "steps": Out(INPUT, "steps"),
        "cfg": Out(INPUT, "cfg"),
        "sampler_name": "euler",
        "scheduler": "simple",
        "latent_image": Out(INPUT, "latent"),
    }
    models = {"without": Out(INPUT, "model"), "with": Out("guidance", "MODEL")}
    samplers = [
        Node(key=key, type="KSampler", title=f"{key} LaMo", values={**TEXTS, **settings, "model": model})
        for key, model in models.items()
    ]
    return Graph(
        name="with and without LaMo",
        note="Samples one seed twice: the plain model, and the model with LaMo Guidance. Decode both and look at "
        "them side by side.",
        inputs={
            "model": "MODEL",
            "predictor": "MOTION_PREDICTOR",
            **WIRES,
            "seed": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "share": "FLOAT",
        },
        outputs={key: Out(key, "LATENT") for key in models},
        columns=[Column(title="", nodes=[guided("model", "guidance")]), Column(title="", nodes=samplers)],
    )


BLUEPRINTS = (two_experts, with_and_without)
