"""Prompt nodes: physical categories from a language model in the graph, from an endpoint, by rules, or by
hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ..methods.labels.llm import parse_prompt, report
from ..methods.labels.rules import PromptLabels, parse_by_rules
from ..methods.labels.taxonomy import CATEGORIES, TAXONOMY
from .host.endpoint import LOCAL_URL, Endpoint, EndpointError, graph_ask, origin, remembering

CATEGORY = "latent physics/prompt"
PhysicsLabelsType = io.Custom("PHYSICS_LABELS")
"""Category name -> weight in 0..1."""

OFFLINE, GRAPH, ENDPOINT = "offline rules", "LLM in the graph", "LLM endpoint"
_FAILED: Counter[tuple[str, str]] = Counter()
"""How often an endpoint, address and model, gave no usable answer in this session."""


def parse(
    prompt: str,
    method: str,
    *,
    clip: Any = None,
    base_url: str = LOCAL_URL,
    model: str = "",
    rewrite: bool = True,
    timeout: float = 30.0,
    retries: int = 2,
    seed: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> PromptLabels:
    """Labels of a prompt, and its rewrite, by one of the three ways. Never raises for what a language model
    does."""
    if method == OFFLINE:
        return parse_by_rules(prompt)
    if method == GRAPH:
        if clip is None:
            return parse_by_rules(prompt, "No CLIP is wired, so the offline rules answered.")
        if not hasattr(clip, "generate"):
            return parse_by_rules(prompt, "The wired CLIP cannot write text, so the offline rules answered.")
        return parse_prompt(prompt, graph_ask(clip, seed), GRAPH, rewrite)
    try:
        endpoint = Endpoint(base_url, model, timeout, retries, seed, cancelled)
    except EndpointError as error:
        return parse_by_rules(prompt, f"The offline rules answered, because {error}.")
    return parse_prompt(prompt, remembering(endpoint), f"{endpoint.model} at {origin(base_url)}", rewrite)


class PhysicsPromptParser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsPromptParser",
            display_name="Physics Prompt Parser",
            category=CATEGORY,
            description="Reads which kinds of physics a prompt is about, and can rewrite it so that they "
            "are spelled out. "
            "Wire the "
            "labels into PILA Correction and the prompt into CLIP Text Encode. The offline rules need no "
            "language model and know "
            "English; whatever goes wrong with a language model, they answer instead, and the report says "
            "so.",
            search_aliases=["pila", "physics", "llm", "ollama", "openai", "prompt", "labels"],
            inputs=[
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="The prompt of the video."
                ),
                io.Combo.Input(
                    "method",
                    options=[OFFLINE, GRAPH, ENDPOINT],
                    default=OFFLINE,
                    tooltip="Who reads the prompt. offline rules: at once, nothing leaves the machine. LLM "
                    "in the graph: a "
                    "Qwen or "
                    "Gemma text encoder wired as clip. LLM endpoint: a server such as Ollama, llama.cpp, LM "
                    "Studio, vLLM or "
                    "OpenAI; your prompt is sent to it.",
                ),
                io.Boolean.Input(
                    "rewrite",
                    default=True,
                    tooltip="Let the language model rewrite the prompt so that materials, motion and "
                    "contacts are explicit. The "
                    "offline rules never change the prompt.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For LLM in the graph: a text encoder that can write (Qwen, Gemma). umT5 and "
                    "CLIP-L cannot.",
                ),
                io.String.Input(
                    "base_url",
                    default=LOCAL_URL,
                    optional=True,
                    tooltip="For LLM endpoint: its address, ending in /v1. The default is Ollama on this "
                    "machine. Servers on "
                    "other machines have to be allowed once, and keys are never typed here: see the help "
                    "page.",
                    advanced=True,
                ),
                io.String.Input(
                    "model",
                    default="",
                    optional=True,
                    tooltip="For LLM endpoint: the model's name there, for example qwen3:8b or gpt-4o-mini.",
                    advanced=True,
                ),
                io.Float.Input(
                    "timeout",
                    default=30.0,
                    min=1.0,
                    max=600.0,
                    step=1.0,
                    optional=True,
                    tooltip="For LLM endpoint: seconds for all questions together, retries included, before "
                    "the offline rules "
                    "take over.",
                    advanced=True,
                ),
                io.Int.Input(
                    "retries",
                    default=2,
                    min=0,
                    max=10,
                    optional=True,
                    tooltip="For LLM endpoint: how often to ask again after a connection fails.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    optional=True,
                    tooltip="Another number may give another rewrite; answers are kept, so the same number "
                    "costs nothing again.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt", tooltip="The prompt, rewritten where a language model did so."
                ),
                PhysicsLabelsType.Output(
                    display_name="labels",
                    tooltip="Categories with weight 1, for PILA Correction. Empty where nothing fits.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Who answered, the labels, and what went wrong."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, method: str | None = None, base_url: str | None = LOCAL_URL, model: str | None = "", **_: Any
    ) -> str:
        """Changes when the endpoint has failed: a server that is started since is asked by the next run,
        where ComfyUI would show what the rules said."""
        return str(_FAILED[base_url, model]) if method == ENDPOINT else ""

    @classmethod
    async def execute(
        cls,
        prompt: str,
        method: str,
        rewrite: bool,
        clip: Any = None,
        base_url: str = LOCAL_URL,
        model: str = "",
        timeout: float = 30.0,
        retries: int = 2,
        seed: int = 0,
    ) -> io.NodeOutput:
        options = {"base_url": base_url, "model": model, "timeout": timeout, "retries": retries, "seed": seed}
        read = partial(parse, prompt, method, clip=clip, rewrite=rewrite, **options)
        if method == ENDPOINT:  # in a thread of its own: the rest of the graph need not wait for a server
            parsed = await asyncio.to_thread(read, cancelled=comfy.model_management.processing_interrupted)
            comfy.model_management.throw_exception_if_processing_interrupted()
            _FAILED[base_url, model] += bool(parsed.note and prompt.strip())
        else:
            parsed = read()
        text = report(parsed)
        # A label is there or not, as in training; how sure the parser was is for the person who reads the
        # report.
        return io.NodeOutput(
            parsed.description, dict.fromkeys(parsed.labels, 1.0), text, ui=ui.PreviewText(text)
        )


def widget_name(category: str) -> str:
    """A category's name as a widget's id."""
    return category.lower().replace(" ", "_")


class PhysicsLabels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sliders = [
            io.Float.Input(
                widget_name(entry.name),
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.05,
                tooltip=f"{entry.name}: {entry.criterion} ({entry.cues}). 0 leaves it to the router, 1 asks "
                f"for it fully.",
            )
            for entry in TAXONOMY
        ]
        return io.Schema(
            node_id="LatentPhysicsLabels",
            display_name="Physics Labels",
            category=CATEGORY,
            description="Says by hand which kinds of physics a video shows, for PILA Correction. One to "
            "three are usual.",
            search_aliases=["pila", "physics", "labels", "categories"],
            inputs=[
                *sliders,
                PhysicsLabelsType.Input(
                    "labels",
                    optional=True,
                    tooltip="Labels to start from, for example the Prompt Parser's. A slider above 0 "
                    "replaces its category.",
                ),
            ],
            outputs=[
                PhysicsLabelsType.Output(
                    display_name="labels", tooltip="Categories and weights, for PILA Correction."
                )
            ],
        )

    @classmethod
    def execute(cls, labels: dict[str, float] | None = None, **sliders: float) -> io.NodeOutput:
        chosen = dict(labels or {})
        for name in CATEGORIES:
            weight = sliders.get(widget_name(name), 0.0)
            if weight > 0:
                chosen[name] = weight
        return io.NodeOutput({name: weight for name, weight in chosen.items() if weight > 0})


NODES = [PhysicsPromptParser, PhysicsLabels]
