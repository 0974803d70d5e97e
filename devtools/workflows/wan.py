"""The Wan graphs: a method (LaMo, PILA) on a variant of the model, with one model or two experts in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import files
from .format import Column, ModelFile, Node, Out
from .pieces import (
    SEED,
    VAE,
    decode,
    loader,
    loaders,
    lora,
    numbered,
    sampler,
    save_video,
    shift,
    size,
    start_image,
)

ONE = ("",)
"""Stages of a variant with one model."""
WIDTH = 320
"""Width of a column of nodes without long texts or pictures."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A Wan model and the schedule of ComfyUI's own template for it."""

    name: str
    """First part of the graph's name."""
    unets: tuple[ModelFile, ...]
    """A file per stage."""
    loras: tuple[ModelFile, ...] = ()
    """Step-distilled LoRA of each stage."""
    vae: ModelFile = files.WAN_VAE
    video: str = "EmptyHunyuanLatentVideo"
    """The node that makes the empty latent; one of LATENTS."""
    size: tuple[int, int, int]
    """Width, height and frames."""
    fps: float = 16.0
    steps: int
    """Steps of all stages together, which share them evenly."""
    cfg: float
    shift: float
    sampler: str = "euler"

    @property
    def stages(self) -> tuple[str, ...]:
        return files.EXPERTS if len(self.unets) == 2 else ONE

    @property
    def takes_image(self) -> bool:
        return self.video != "EmptyHunyuanLatentVideo"


WAN21 = Variant(
    name="wan2.1_t2v_1.3B",
    unets=(files.WAN_SMALL,),
    size=(832, 480, 33),
    steps=30,
    cfg=6.0,
    shift=8.0,
    sampler="uni_pc",
)
WAN22 = Variant(name="wan2.2_t2v_14B", unets=files.WAN_T2V, size=(640, 640, 81), steps=20, cfg=3.5, shift=5.0)
WAN22_FEW = Variant(
    name="wan2.2_t2v_14B_4steps",
    unets=files.WAN_T2V,
    loras=files.WAN_T2V_LORA,
    size=(640, 640, 81),
    steps=4,
    cfg=1.0,
    shift=5.0,
)
WAN22_IMAGE_FEW = Variant(
    name="wan2.2_i2v_14B_4steps",
    unets=files.WAN_I2V,
    loras=files.WAN_I2V_LORA,
    video="WanImageToVideo",
    size=(640, 640, 81),
    steps=4,
    cfg=1.0,
    shift=5.0,
)
WAN22_5B = Variant(
    name="wan2.2_ti2v_5B",
    unets=(files.WAN_5B,),
    vae=files.WAN_5B_VAE,
    video="Wan22ImageToVideoLatent",
    size=(1280, 704, 121),
    fps=24.0,
    steps=20,
    cfg=5.0,
    shift=8.0,
    sampler="uni_pc",
)


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
    correct: Callable[[str, Out], list[Node]]
    """(stage, its model) -> nodes from that model to the corrected one, which is the last."""
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


def columns(variant: Variant, method: Method) -> list[Column]:
    """The graph of a method on a variant of Wan."""
    two, last = len(variant.stages) == 2, variant.stages[-1] or "sampler"
    correct = {stage: method.correct(stage, ready(stage)) for stage in variant.stages}
    samples = sampled(variant, {stage: Out(nodes[-1].key, "MODEL") for stage, nodes in correct.items()})
    measures = [measured(method, stage, nodes[-1].key) for stage, nodes in correct.items()]
    load = [*models(variant), *loaders(files.UMT5, "wan", variant.vae), *method.loads]
    asking = ("Ask", [*method.ask, *start(variant)], 420)
    acting = (method.acts, [node for nodes in correct.values() for node in nodes], WIDTH)
    looking = save_video(Out("decode", "IMAGE"), f"video/{variant.name}_{method.name}", variant.fps)
    return numbered(
        ("Load", load, 420),
        *((asking, acting) if method.asks_first else (acting, asking)),
        ("Sample", [*samples, decode(Out(last, "LATENT"))], WIDTH),
        ("Look", looking if two else [*looking, *measures], method.width),
        *([("Measure", measures, method.width)] if two else []),
    )


def ready(stage: str) -> Out:
    """A stage's model with its LoRA and shift."""
    return Out(named(stage, "shift"), "MODEL")


def models(variant: Variant) -> list[Node]:
    """Every stage's model, its step-distilled LoRA and its shift."""
    made = []
    for number, stage in enumerate(variant.stages):
        key = named(stage, "model")
        made.append(loader(key, variant.unets[number], noise(stage, "Load Diffusion Model")))
        if variant.loras:
            made.append(lora(named(stage, "lora"), key, variant.loras[number], noise(stage, "4-step LoRA")))
            key = named(stage, "lora")
        made.append(shift(named(stage, "shift"), key, variant.shift, noise(stage, "Shift") or "Shift"))
    return made


def start(variant: Variant) -> list[Node]:
    """The picture a video begins with, and its empty latent."""
    width, height, length = variant.size
    if not variant.takes_image:
        return [size(width, height, length)]
    values = {"vae": VAE, "start_image": Out("image", "IMAGE"), "width": width, "height": height}
    if variant.video == "WanImageToVideo":
        values |= {"positive": Out("positive", "CONDITIONING"), "negative": Out("negative", "CONDITIONING")}
    return [start_image(), Node(key="size", type=variant.video, values={**values, "length": length})]


def wires(variant: Variant) -> dict[str, Out]:
    """Inputs of the first sampler beside its model."""
    if variant.video == "WanImageToVideo":
        outputs = {"positive": "positive", "negative": "negative", "latent_image": "latent"}
        return {name: Out("size", output) for name, output in outputs.items()}
    texts = {name: Out(name, "CONDITIONING") for name in ("positive", "negative")}
    return {**texts, "latent_image": Out("size", "LATENT")}


def sampled(variant: Variant, models: dict[str, Out], prefix: str = "") -> list[Node]:
    """KSampler of an only model, or one KSamplerAdvanced per expert: the halves of the steps.

    prefix: of the nodes' keys, where a graph samples more than once.
    """
    settings = {"cfg": variant.cfg, "sampler_name": variant.sampler, "steps": variant.steps}
    if variant.stages == ONE:
        return [sampler(models[""], key=f"{prefix}sampler", **{**wires(variant), **settings})]
    half = variant.steps // 2
    turns = {
        "high": {
            "add_noise": "enable",
            "noise_seed": SEED,
            "end_at_step": half,
            "return_with_leftover_noise": "enable",
        },
        "low": {"add_noise": "disable", "start_at_step": half, "return_with_leftover_noise": "disable"},
    }
    made = []
    for stage, model in models.items():
        given = {**wires(variant), "model": model, "scheduler": "simple", **settings, **turns[stage]}
        if stage == "low":
            given["latent_image"] = Out(f"{prefix}high", "LATENT")
        title = noise(stage, "KSampler")
        made.append(Node(key=f"{prefix}{stage}", type="KSamplerAdvanced", title=title, values=given))
    return made


def measured(method: Method, stage: str, model: str) -> Node:
    """Views of the method's work in a stage."""
    latent, title = Out(stage or "sampler", "LATENT"), noise(stage, method.measure_title)
    return method.measure(Out(model, "MODEL"), latent, key=named(stage, method.measure_key), title=title)
