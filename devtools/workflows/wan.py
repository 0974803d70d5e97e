"""The Wan graphs: one for every method, with one model (Wan 2.1) or two experts in turn (Wan 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .format import Column, Graph, Node, Out
from .pieces import SEED, UMT5, WAN_SMALL, WAN_VAE, decode, expert, loaders, sampler, save_video, shift

EXPERTS = ("high", "low")
"""Wan 2.2's experts by the noise they take, in the order in which they sample."""
ONE = ("",)
"""Wan 2.1's only model."""
WIDTH = 320
"""Width of a column of nodes without long texts or pictures."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method's part in a Wan graph. A stage is "" for an only model, "high" or "low" for an expert."""

    name: str
    """Last part of the graph's name."""
    loads: tuple[Node, ...]
    """Loaders of the method's own files."""
    ask: tuple[Node, ...]
    """The prompts and what reads them."""
    acts: str
    """Title of the column in which the method acts on the model."""
    correct: Callable[[str], list[Node]]
    """Stage -> nodes from the stage's model to the corrected one, which is the last."""
    asks_first: bool = False
    """The method needs to know the prompt, so its column comes after that of the prompts."""
    measure: Callable[..., Node]
    """(model, latent, key=, title=) -> the node that shows what the method did."""
    measure_key: str
    measure_title: str
    width: int
    """Width of the columns in which results are shown."""


def named(stage: str, name: str) -> str:
    """Key of a node of one stage."""
    return f"{stage}_{name}" if stage else name


def noise(stage: str, title: str) -> str:
    """Title of a node of one expert; "" leaves the node its own name."""
    return f"{title} ({stage} noise)" if stage else ""


def wan(
    method: Method,
    *,
    stages: tuple[str, ...],
    note: str,
    note_height: int,
    note_width: int = 400,
    video: Node,
    shift_by: float,
    cfg: float = 0.0,
) -> Graph:
    """The graph of a method on Wan 2.1 (`ONE`) or Wan 2.2 (`EXPERTS`).

    video: the empty latent; shift_by: ModelSamplingSD3's shift; cfg: of the only model, experts have their
    own.
    """
    two = stages == EXPERTS
    correct = [node for stage in stages for node in corrected(method, stage, shift_by)]
    latent = Out(stages[-1] if two else "sampler", "LATENT")
    samples = (
        [staged("high", Out("size", "LATENT")), staged("low", Out("high", "LATENT"))]
        if two
        else [single(cfg)]
    )
    measures = [measured(method, stage) for stage in stages]
    asking = ("Ask", [*method.ask, *([video] if two else [])], 420)
    acting = (method.acts, correct if two else [*correct, video], WIDTH)
    looking = save_video(Out("decode", "IMAGE"), f"video/{'wan2.2' if two else 'wan2.1'}_{method.name}", 16.0)
    columns = [
        ("Load", [*models(stages), *loaders(UMT5, "wan", WAN_VAE), *method.loads], 420 if two else 380),
        *((asking, acting) if method.asks_first else (acting, asking)),
        ("Sample", [*samples, decode(latent)], WIDTH),
        ("Look", looking if two else [*looking, *measures], method.width),
        *([("Measure", measures, method.width)] if two else []),
    ]
    return Graph(
        name=f"{'wan2.2_t2v_14B' if two else 'wan2.1_t2v_1.3B'}_{method.name}",
        note=note,
        note_width=note_width,
        note_height=note_height,
        columns=[
            Column(title=f"{number}  {title}", nodes=nodes, width=width)
            for number, (title, nodes, width) in enumerate(columns, 1)
        ],
    )


def models(stages: tuple[str, ...]) -> list[Node]:
    """The only model, or both experts."""
    if stages == ONE:
        return [
            Node(key="model", type="UNETLoader", values={"unet_name": WAN_SMALL.name}, files=(WAN_SMALL,))
        ]
    return [expert(stage, f"wan2.2_t2v_{stage}_noise_14B_fp8_scaled.safetensors") for stage in stages]


def corrected(method: Method, stage: str, shift_by: float) -> list[Node]:
    """A stage's corrections and its shift."""
    nodes = method.correct(stage)
    return [*nodes, shift(named(stage, "shift"), nodes[-1].key, shift_by)]


def single(cfg: float) -> Node:
    """Sampler of Wan 2.1."""
    return sampler(Out("shift", "MODEL"), steps=30, cfg=cfg, sampler_name="uni_pc")


def staged(stage: str, latent: Out) -> Node:
    """Sampler of one of Wan 2.2's experts: ten of twenty steps."""
    wires = {
        "model": Out(f"{stage}_shift", "MODEL"),
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent_image": latent,
    }
    settings = {"steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple"}
    turns = {
        "high": {
            "add_noise": "enable",
            "noise_seed": SEED,
            "end_at_step": 10,
            "return_with_leftover_noise": "enable",
        },
        "low": {"add_noise": "disable", "start_at_step": 10, "return_with_leftover_noise": "disable"},
    }
    values = {**wires, **settings, **turns[stage]}
    return Node(key=stage, type="KSamplerAdvanced", title=noise(stage, "KSampler"), values=values)


def measured(method: Method, stage: str) -> Node:
    """What the method did in a stage."""
    model, latent = Out(named(stage, "shift"), "MODEL"), Out(stage or "sampler", "LATENT")
    title = noise(stage, method.measure_title)
    return method.measure(model, latent, key=named(stage, method.measure_key), title=title)
