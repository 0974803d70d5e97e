"""API-format graphs: where prompt, seed, first frame and output are, and arms as overrides of one graph."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EvaluationError
from .manifest import digest

Graph = dict[str, dict[str, Any]]
Place = tuple[str, str]
"""Node id and name of an input."""

SAVERS = ("SaveVideo", "SaveWEBM", "SaveAnimatedWEBP", "VHS_VideoCombine")
WORDS = ("text", "prompt", "value", "string", "clip_l", "clip_g", "t5xxl", "llama")
"""Inputs that hold a prompt where a text encoder's link ends."""
POSITIVE = ("positive", "conditioning")
FILES = ("unet_name", "ckpt_name", "model_name", "gguf_name")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Places that generation writes to."""

    prompt: tuple[Place, ...]
    seed: tuple[Place, ...]
    output: str
    """Node that saves the video."""
    image: Place | None = None

    def as_json(self) -> dict[str, Any]:
        """Lists instead of tuples, for the plan."""
        image = list(self.image) if self.image else None
        return {
            "prompt": [*map(list, self.prompt)],
            "seed": [*map(list, self.seed)],
            "output": self.output,
            "image": image,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Inputs:
        """The reverse of `as_json`."""
        image = tuple(values["image"]) if values["image"] else None
        places = {name: tuple((node, field) for node, field in values[name]) for name in ("prompt", "seed")}
        return cls(**places, output=values["output"], image=image)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Reads a graph in API format.

    Raises EvaluationError for other files, the interface's own format among them.
    """
    try:
        graph = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} is not a readable graph ({error}); export it with File > Export (API)."
        ) from error
    if isinstance(graph, dict) and "nodes" in graph:
        raise EvaluationError(f"{path} is in the interface's format; export it with File > Export (API).")
    nodes = graph.values() if isinstance(graph, dict) else []
    if not nodes or not all(
        isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes
    ):
        raise EvaluationError(f"{path} is no graph in API format; export it with File > Export (API).")
    return graph


def is_link(value: Any) -> bool:
    """Whether an input is a wire: [node id, number of the output]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def upstream(graph: Graph, node: str) -> list[str]:
    """`node` and everything it depends on. Raises EvaluationError for a wire from a missing node."""
    found, waiting = [], [node]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name not in graph:
            raise EvaluationError(f"the graph has a wire from node {name}, which it does not hold.")
        found.append(name)
        waiting += [value[0] for value in graph[name]["inputs"].values() if is_link(value)]
    return found


def pruned(graph: Graph, output: str) -> Graph:
    """A copy with only what `output` needs: previews and traces cost time and write files of their own."""
    needed = set(upstream(graph, output))
    return {name: copy.deepcopy(node) for name, node in graph.items() if name in needed}


def find_inputs(
    graph: Graph, *, prompt: Sequence[str] = (), seed: Sequence[str] = (), output: str = ""
) -> Inputs:
    """Places of prompt, seed, first frame and output; what is named ("NODE.INPUT", NODE an id or a title) is
    taken as it is.

    Raises EvaluationError naming the option that settles what the graph leaves open.
    """
    saver = resolve(graph, output) if output else _only_saver(graph)
    part = pruned(graph, saver)
    prompts = tuple(place(graph, name) for name in prompt) or _with_twins(
        part, tuple(dict.fromkeys(_prompts(part)))
    )
    seeds = tuple(place(graph, name) for name in seed) or tuple(dict.fromkeys(_seeds(part)))
    if not prompts:
        raise EvaluationError(
            "no prompt leads to a sampler's positive input; name it: --prompt-input NODE.INPUT."
        )
    if not seeds:
        raise EvaluationError("the graph has no sampler with a seed; name it: --seed-input NODE.INPUT.")
    pictures = [(name, "image") for name, node in part.items() if node["class_type"] == "LoadImage"]
    return Inputs(prompt=prompts, seed=seeds, output=saver, image=pictures[0] if len(pictures) == 1 else None)


def _only_saver(graph: Graph) -> str:
    savers = [name for name, node in graph.items() if node["class_type"] in SAVERS]
    if len(savers) == 1:
        return savers[0]
    what = (
        "no node that saves a video"
        if not savers
        else f"{len(savers)} nodes that save videos ({', '.join(savers)})"
    )
    raise EvaluationError(f"the graph has {what}; name the one to keep: --output-node NODE.")


def _prompts(graph: Graph) -> Iterator[Place]:
    """Literal texts that the positive conditioning of a sampler or guider comes from."""
    for node in graph.values():
        name = next((name for name in POSITIVE if is_link(node["inputs"].get(name))), None)
        if name is not None and ("positive" in node["inputs"] or "Guider" in node["class_type"]):
            yield from _words(graph, node["inputs"][name][0], set())


def _words(graph: Graph, name: str, seen: set[str]) -> Iterator[Place]:
    if name in seen:
        return
    seen.add(name)
    inputs = graph[name]["inputs"]
    literal = [field for field in WORDS if isinstance(inputs.get(field), str)]
    yield from ((name, field) for field in literal)
    if literal:
        return
    both_ways = "positive" in inputs and "negative" in inputs
    for field, value in inputs.items():
        if is_link(value) and (field in WORDS or field in POSITIVE or not both_ways):
            yield from _words(graph, value[0], seen)


def _with_twins(graph: Graph, found: tuple[Place, ...]) -> tuple[Place, ...]:
    """`found` and every other place where the same words are typed: a label parser would else judge the old
    prompt.
    """
    texts = {graph[node]["inputs"][field] for node, field in found} - {""}
    typed = (
        (name, field)
        for name, node in graph.items()
        for field, value in node["inputs"].items()
        if isinstance(value, str)
    )
    return found + tuple(
        spot for spot in typed if graph[spot[0]]["inputs"][spot[1]] in texts and spot not in found
    )


def _seeds(graph: Graph) -> Iterator[Place]:
    for name, node in graph.items():
        inputs = node["inputs"]
        if "noise_seed" in inputs and inputs.get("add_noise", "enable") != "disable":
            yield _end(graph, name, "noise_seed")
        elif "seed" in inputs and {"latent_image", "sampler_name"} & inputs.keys():
            yield _end(graph, name, "seed")


def _end(graph: Graph, name: str, field: str) -> Place:
    """Where the value of an input is typed: there, or in the primitive node that its wire comes from."""
    value = graph[name]["inputs"][field]
    while is_link(value):
        name = value[0]
        field = next((key for key in ("value", "seed", "noise_seed") if key in graph[name]["inputs"]), "")
        if not field:
            kind = graph[name]["class_type"]
            raise EvaluationError(
                f"the seed comes from node {name} ({kind}); name it: --seed-input NODE.INPUT."
            )
        value = graph[name]["inputs"][field]
    return name, field


def resolve(graph: Graph, name: str) -> str:
    """Id of the node that `name` (an id or a title) means. Raises EvaluationError if none or several do."""
    if name in graph:
        return name
    titled = [node for node, entry in graph.items() if entry.get("_meta", {}).get("title") == name]
    if len(titled) != 1:
        raise EvaluationError(
            f"the graph has {len(titled) or 'no'} nodes with the id or title {name!r}; use an id."
        )
    return titled[0]


def place(graph: Graph, text: str) -> Place:
    """ "NODE.INPUT" as a place. Raises EvaluationError for an input that the node does not have."""
    node, dot, field = text.rpartition(".")
    if not dot:
        raise EvaluationError(f"{text!r} is no place in a graph; write NODE.INPUT.")
    node = resolve(graph, node)
    if field not in graph[node]["inputs"]:
        known = ", ".join(graph[node]["inputs"]) or "none"
        raise EvaluationError(
            f"node {node} ({graph[node]['class_type']}) has no input {field!r}; it has: {known}."
        )
    return node, field


def with_overrides(graph: Graph, overrides: Mapping[str, Any]) -> Graph:
    """A copy of the graph as an arm changes it: "NODE.INPUT" = value or [node id, output], "NODE" = a whole
    new node.

    Raises EvaluationError for a place that does not exist and a wire from nowhere.
    """
    changed = copy.deepcopy(graph)
    for name, value in overrides.items():
        if isinstance(value, Mapping) and "class_type" in value:
            changed[name] = {"inputs": {}, **copy.deepcopy(dict(value))}
    for name, value in overrides.items():
        if isinstance(value, Mapping) and "class_type" in value:
            continue
        node, field = place(changed, name)
        before = changed[node]["inputs"][field]
        if is_link(value) and value[0] not in changed:
            raise EvaluationError(f"{name} is wired to node {value[0]}, which the graph does not hold.")
        if (
            is_link(before)
            and not is_link(value)
            and field in ("model", "clip", "vae", "positive", "negative")
        ):
            raise EvaluationError(f"{name} takes a wire ([node id, output]), not {value!r}.")
        changed[node]["inputs"][field] = value
    return changed


def arm_graph(graph: Graph, overrides: Mapping[str, Any], inputs: Inputs) -> Graph:
    """The graph that an arm sends to ComfyUI, before prompt and seed are set.

    Raises as `with_overrides`, and if an arm cuts them off.
    """
    part = pruned(with_overrides(graph, overrides), inputs.output)
    for node, field in [*inputs.prompt, *inputs.seed]:
        if node not in part:
            raise EvaluationError(
                f"{node}.{field} does not lead to the saved video in every arm; check the overrides."
            )
    return part


def filled(graph: Graph, inputs: Inputs, *, prompt: str, seed: int, prefix: str, image: str = "") -> Graph:
    """A copy of an arm's graph with prompt, seed, file name and first frame in their places."""
    made = copy.deepcopy(graph)
    for node, field in inputs.prompt:
        made[node]["inputs"][field] = prompt
    for node, field in inputs.seed:
        made[node]["inputs"][field] = seed
    if image and inputs.image:
        made[inputs.image[0]]["inputs"][inputs.image[1]] = image
    made[inputs.output]["inputs"]["filename_prefix"] = prefix
    return made


def graph_hash(graph: Graph, inputs: Inputs) -> str:
    """Hash of an arm's graph; prompt, seed, first frame, file name and titles do not count."""
    blank = filled(graph, inputs, prompt="", seed=0, prefix="", image="-")
    return digest(
        {name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in blank.items()}
    )


def describe(graph: Graph) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Model files, LoRAs with their strengths, and the correcting nodes with their settings."""
    models, loras, corrections = [], [], []
    for node in graph.values():
        inputs = node["inputs"]
        models += [inputs[key] for key in FILES if isinstance(inputs.get(key), str)]
        if isinstance(inputs.get("lora_name"), str):
            loras.append(f"{inputs['lora_name']}@{inputs.get('strength_model', 1.0):g}")
        if node["class_type"].startswith("LatentPhysics") and is_link(inputs.get("model")):
            settings = ", ".join(f"{key}={value}" for key, value in inputs.items() if not is_link(value))
            corrections.append(f"{node['class_type'].removeprefix('LatentPhysics')}({settings})")
        if node["class_type"] == "LatentPhysicsLoadToyWorld":
            models.append("toy world")
    return " + ".join(models), tuple(loras), tuple(corrections)
