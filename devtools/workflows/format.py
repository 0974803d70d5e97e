"""Workflows as compact data, and the two forms ComfyUI knows: the API form that servers run, the UI form that
people edit.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import comfyui
from ..shell import BenchError

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
"""Input types that are edited on the node; every other type is a socket."""
SEEDS = {"seed", "noise_seed"}
"""INT inputs that get a second widget, what to do with the number after a run."""
TITLE, SLOT, WIDGET, TEXT = 30, 20, 24, 110
"""Heights on the canvas: a node's title bar, a row of sockets, a widget, a text field of several lines."""
GAP, COLUMN_GAP, GROUP_HEAD, BORDER = 30, 60, 50, 20
"""Space between nodes, between columns, above a group's first node, and around what a group encloses."""
READABLE = 0.62
"""Below this zoom the interface draws no text."""
COLOURS = {"positive": ("#232", "#353"), "negative": ("#322", "#533")}
"""Title and body colours of the prompts, as ComfyUI's own templates have them."""
OUR_NODES = "LatentPhysics"
"""Prefix of the pack's node ids."""
REGISTRY_NAME = "latent-physics"
_DOOR = (Path(__file__).resolve().parents[2] / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', _DOOR, flags=re.M)[1]
NAMESPACE = uuid.UUID("5b0f6b1c-8f6d-4a0e-9f0a-3a5f3f1d7c11")

INPUT = "input"
"""Stands for the subgraph's own inputs, where `Out` names a node."""

Info = dict[str, Any]
"""Answer of /object_info: node type -> its inputs, outputs and texts."""


class Out(NamedTuple):
    """An output of another node of the graph, by that node's key and the output's name."""

    node: str
    output: str


class ModelFile(NamedTuple):
    """A file that the user has to fetch."""

    name: str
    url: str
    directory: str
    """Folder below ComfyUI's models."""


@dataclass(kw_only=True)
class Node:
    """One node of a graph."""

    key: str
    """Its name within the graph; "positive" and "negative" are coloured as prompts."""
    type: str
    """ComfyUI's id of the node."""
    title: str = ""
    """Shown instead of the node's own name."""
    values: dict[str, Any] = field(default_factory=dict)
    """Input -> value, or `Out` for a wire. Widgets left out have their default."""
    height: int = 0
    """Least height on the canvas, for nodes that show pictures or long texts."""
    files: tuple[ModelFile, ...] = ()
    """Model files that the node's widgets name, for the interface's list of missing models."""


@dataclass(kw_only=True)
class Column:
    """A group of the canvas: nodes one below the other."""

    title: str
    nodes: list[Node]
    width: int = 320


@dataclass(kw_only=True)
class Graph:
    """A workflow."""

    name: str
    """File name without its ending; the template browser shows it."""
    note: str
    """Markdown: what to press and what to look at."""
    columns: list[Column]
    """Left to right, in the order of the flow."""
    note_height: int = 420
    note_width: int = 400
    inputs: dict[str, str] = field(default_factory=dict)
    """Inputs of a subgraph: name -> type. Its nodes are wired to them with `Out(INPUT, name)`."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Values of a subgraph: input -> the value its widget begins with, where it is not the node's own."""
    outputs: dict[str, Out] = field(default_factory=dict)
    """Outputs of a subgraph: name -> where it comes from."""

    def nodes(self) -> list[Node]:
        return [node for column in self.columns for node in column.nodes]

    def ids(self) -> dict[str, int]:
        """Key -> number on the canvas. Number 1 is the note."""
        return {node.key: number for number, node in enumerate(self.nodes(), start=2)}


class Input(NamedTuple):
    """An input of a node as the server describes it."""

    name: str
    kind: Any
    options: dict[str, Any]
    required: bool

    @property
    def is_widget(self) -> bool:
        """Several types, as in FLOAT,INT, are a widget where each is one."""
        return isinstance(self.kind, list) or set(self.kind.split(",")) <= WIDGETS

    @property
    def is_seed(self) -> bool:
        return self.kind == "INT" and bool(self.options.get("control_after_generate", self.name in SEEDS))

    def default(self) -> Any:
        """The value a fresh node has."""
        if "default" in self.options:
            return self.options["default"]
        choices = self.kind if isinstance(self.kind, list) else self.options.get("options", [])
        if choices:
            return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
        if isinstance(self.kind, list) or "options" in self.options:
            return None
        return {"STRING": "", "BOOLEAN": False}.get(self.kind, 0)


def inputs_of(info: Info, kind: str) -> Iterator[Input]:
    """The inputs of a node in the order in which the interface shows them."""
    for part in ("required", "optional"):
        specs = info[kind]["input"].get(part, {})
        for name in info[kind].get("input_order", {}).get(part, specs):
            spec = specs[name]
            yield Input(name, spec[0], spec[1] if len(spec) > 1 else {}, part == "required")


def check(graph: Graph, info: Info) -> None:
    """Raises BenchError if a node, input or output does not exist, or an input that has to be wired is
    not.
    """
    nodes = {node.key: node for node in graph.nodes()}
    if len(nodes) != len(graph.nodes()):
        raise BenchError(f"{graph.name}: two nodes have the same key.")
    for node in graph.nodes():
        if node.type not in info:
            raise BenchError(f"{graph.name}: ComfyUI has no node {node.type}.")
        known = {entry.name: entry for entry in inputs_of(info, node.type)}
        if unknown := set(node.values) - set(known):
            raise BenchError(f"{graph.name}: {node.type} has no input {sorted(unknown)[0]}.")
        for entry in known.values():
            value = node.values.get(entry.name)
            if isinstance(value, Out):
                if value.node == INPUT and value.output in graph.inputs:
                    continue
                if value.node not in nodes or value.output not in info[nodes[value.node].type]["output_name"]:
                    raise BenchError(
                        f"{graph.name}: {node.key}.{entry.name} is wired to {value}, which does not exist."
                    )
            elif entry.required and not entry.is_widget:
                raise BenchError(f"{graph.name}: nothing is wired to {node.key}.{entry.name}.")


def slot_of(graph: Graph, info: Info, wire: Out) -> int:
    if wire.node == INPUT:
        return list(graph.inputs).index(wire.output)
    node = next(node for node in graph.nodes() if node.key == wire.node)
    return info[node.type]["output_name"].index(wire.output)


def api_form(graph: Graph, info: Info) -> dict[str, Any]:
    """The graph for `POST /prompt`: node number -> class and inputs, every widget written out."""
    ids, made = graph.ids(), {}
    for node in graph.nodes():
        values = {}
        for entry in inputs_of(info, node.type):
            value = node.values.get(entry.name)
            if isinstance(value, Out):
                values[entry.name] = [str(ids[value.node]), slot_of(graph, info, value)]
            elif entry.is_widget:
                values[entry.name] = entry.default() if value is None else value
        title = node.title or info[node.type]["display_name"]
        made[str(ids[node.key])] = {"inputs": values, "class_type": node.type, "_meta": {"title": title}}
    return made


def ui_form(graph: Graph, info: Info) -> dict[str, Any]:
    """The graph for the interface: nodes with places, sizes and sockets, links, groups and a note."""
    ids, links = graph.ids(), []
    nodes = [_note(graph)]
    groups = []
    x = nodes[0]["size"][0] + COLUMN_GAP
    for number, column in enumerate(graph.columns, start=1):
        y = 0
        for node in column.nodes:
            made = _node(graph, node, info, ids, links)
            made["pos"], made["size"] = [x, y], [column.width, _height(node, info)]
            nodes.append(made)
            y += made["size"][1] + GAP + TITLE
        box = [x - BORDER, -TITLE - GROUP_HEAD, column.width + 2 * BORDER, y - GAP + GROUP_HEAD + BORDER]
        groups.append(
            {
                "id": number,
                "title": column.title,
                "bounding": box,
                "color": "#3f789e",
                "font_size": 22,
                "flags": {},
            }
        )
        x += column.width + COLUMN_GAP
    _name_links(nodes, links)
    return {
        "id": str(uuid.uuid5(NAMESPACE, graph.name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": _view(groups, nodes)},
        "version": 0.4,
    }


def _note(graph: Graph) -> dict[str, Any]:
    return {
        "id": 1,
        "type": "MarkdownNote",
        "title": "What this is",
        "pos": [0, 0],
        "size": [graph.note_width, graph.note_height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [graph.note],
        "color": "#432",
        "bgcolor": "#653",
    }


def _node(
    graph: Graph, node: Node, info: Info, ids: dict[str, int], links: list[list[Any]]
) -> dict[str, Any]:
    """One node; appends its incoming links."""
    sockets, wired_widgets, values = [], [], []
    for entry in inputs_of(info, node.type):
        value = node.values.get(entry.name)
        kind = "COMBO" if isinstance(entry.kind, list) else entry.kind
        slot: dict[str, Any] = {"name": entry.name, "type": kind, "link": None}
        if not entry.is_widget:
            sockets.append(slot if entry.required else {**slot, "shape": 7})
            continue
        if isinstance(value, Out):
            wired_widgets.append({**slot, "widget": {"name": entry.name}})
        values.append(entry.default() if value is None or isinstance(value, Out) else value)
        if entry.is_seed:
            values.append("fixed")
    inputs = sockets + wired_widgets  # the interface lists sockets before widgets that became sockets
    for place, slot in enumerate(inputs):
        wire = node.values.get(slot["name"])
        if isinstance(wire, Out):
            slot["link"] = len(links) + 1
            links.append(
                [slot["link"], ids[wire.node], slot_of(graph, info, wire), ids[node.key], place, slot["type"]]
            )
    outputs = [
        {"name": name, "type": kind if isinstance(kind, str) else "COMBO", "links": []}
        for name, kind in zip(info[node.type]["output_name"], info[node.type]["output"])
    ]
    made: dict[str, Any] = {
        "id": ids[node.key],
        "type": node.type,
        **({"title": node.title} if node.title else {}),
        "pos": [0, 0],
        "size": [0, 0],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type, **origin(node.type)},
        "widgets_values": values,
    }
    if node.files:
        made["properties"]["models"] = [file._asdict() for file in node.files]
    if node.key in COLOURS:
        made["color"], made["bgcolor"] = COLOURS[node.key]
    return made


def origin(kind: str) -> dict[str, str]:
    """The registry's name and version of the pack a node type belongs to: how ComfyUI finds a missing
    pack."""
    if kind.startswith(OUR_NODES):
        return {"cnr_id": REGISTRY_NAME, "ver": VERSION}
    return {"cnr_id": "comfy-core", "ver": comfyui.DEFAULT_VERSION}


def _height(node: Node, info: Info) -> int:
    """A node's height below its title bar."""
    sockets, widgets = 0, 0
    for entry in inputs_of(info, node.type):
        if not entry.is_widget:
            sockets += 1
        else:
            widgets += TEXT if entry.options.get("multiline") else WIDGET * (2 if entry.is_seed else 1)
    rows = max(sockets, len(info[node.type]["output"]))
    return max(rows * SLOT + widgets + 16, node.height)


def _name_links(nodes: list[dict[str, Any]], links: list[list[Any]]) -> None:
    """Writes the links into the outputs they leave, with the outputs' types, and the order in which the nodes
    run.
    """
    by_id = {node["id"]: node for node in nodes}
    for link in links:
        number, source, slot = link[:3]
        by_id[source]["outputs"][slot]["links"].append(number)
        link[5] = by_id[source]["outputs"][slot]["type"]
    waiting, order = list(nodes), 0
    done: set[int] = set()
    while waiting:
        ready = [node for node in waiting if all(link[1] in done for link in links if link[3] == node["id"])]
        if not ready:
            raise BenchError("the graph has a cycle.")
        for node in ready:
            node["order"], order = order, order + 1
            done.add(node["id"])
        waiting = [node for node in waiting if node["id"] not in done]


def _view(groups: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Zoom and offset that show the graph in a window of 1600 x 1000, beside the menus, but not so small that
    texts vanish.
    """
    right = max(group["bounding"][0] + group["bounding"][2] for group in groups)
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes) + BORDER
    top = -TITLE - GROUP_HEAD
    scale = round(max(READABLE, min(1.0, 1480 / right, 820 / (bottom - top))), 3)
    return {"scale": scale, "offset": [round(80 / scale), round(110 / scale) - top]}


def overlaps(workflow: dict[str, Any]) -> list[tuple[int, int]]:
    """Pairs of nodes of a UI form that cover one another, title bars included."""
    boxes = [(node["id"], *node["pos"], *node["size"]) for node in workflow["nodes"]]
    found = []
    for number, (one, x, y, width, height) in enumerate(boxes):
        for other, x2, y2, width2, height2 in boxes[number + 1 :]:
            if x < x2 + width2 and x2 < x + width and y - TITLE < y2 + height2 and y2 - TITLE < y + height:
                found.append((one, other))
    return found
