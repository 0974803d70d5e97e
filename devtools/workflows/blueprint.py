"""Subgraph blueprints: parts of graphs that ComfyUI offers as nodes, from subgraphs/*.json of a pack."""

from __future__ import annotations

import uuid
from typing import Any

from .format import GAP, INPUT, NAMESPACE, TITLE, Graph, Info, Out, _height, _node, check, inputs_of, slot_of

ENTRANCE, EXIT = -10, -20
"""ComfyUI's numbers for the two ends of a subgraph."""
SPACE = 180
"""Between an end and the nodes."""


def blueprint_form(graph: Graph, info: Info) -> dict[str, Any]:
    """The workflow of one subgraph node, with its definition.

    Raises BenchError where the graph does not fit the server's nodes.
    """
    check(graph, info)
    name = str(uuid.uuid5(NAMESPACE, graph.name))
    definition = _definition(graph, info, name)
    widgets = {entry["name"]: _default(graph, info, entry["name"]) for entry in definition["inputs"]}
    outer = {
        "id": 1,
        "type": name,
        "title": graph.name,
        "pos": [0, 0],
        "size": [320, 60 + 26 * len(graph.inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_socket(key, kind, widgets[key]) for key, kind in graph.inputs.items()],
        "outputs": [
            {"name": entry["name"], "type": entry["type"], "links": []} for entry in definition["outputs"]
        ],
        "properties": {},
        "widgets_values": [value for value in widgets.values() if value is not None],
    }
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"{graph.name}, a blueprint")),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def _socket(name: str, kind: str, value: Any) -> dict[str, Any]:
    socket = {"name": name, "type": kind, "link": None}
    return socket if value is None else {**socket, "widget": {"name": name}}


def _default(graph: Graph, info: Info, name: str) -> Any:
    """Value in this input's widget on a fresh node; None where the input is a socket."""
    for node in graph.nodes():
        for entry in inputs_of(info, node.type):
            if node.values.get(entry.name) == Out(INPUT, name):
                return graph.defaults.get(name, entry.default()) if entry.is_widget else None
    return None


def _definition(graph: Graph, info: Info, name: str) -> dict[str, Any]:
    """The subgraph: its nodes, links and ends."""
    ids = {**graph.ids(), INPUT: ENTRANCE}
    links: list[list[Any]] = []
    nodes, x = [], float(SPACE)
    for column in graph.columns:
        y = 0.0
        for node in column.nodes:
            made = _node(graph, node, info, ids, links)
            made["pos"], made["size"], made["order"] = [x, y], [column.width, _height(node, info)], len(nodes)
            y += made["size"][1] + GAP + TITLE
            nodes.append(made)
        x += column.width + 60
    for place, wire in enumerate(graph.outputs.values()):
        links.append([len(links) + 1, ids[wire.node], slot_of(graph, info, wire), EXIT, place, ""])
    by_id = {node["id"]: node for node in nodes}
    for link in links:
        if link[1] != ENTRANCE:
            output = by_id[link[1]]["outputs"][link[2]]
            output["links"].append(link[0])
            link[5] = output["type"]
    entrances = [(key, kind, ENTRANCE, 1, 2) for key, kind in graph.inputs.items()]
    exits = [(key, _kind(graph, info, wire), EXIT, 3, 4) for key, wire in graph.outputs.items()]
    return {
        "id": name,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": max(by_id),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": graph.name,
        "description": graph.note,
        "category": "latent physics",
        "inputNode": {"id": ENTRANCE, "bounding": [-20, 0, 140, 40 + 20 * len(entrances)]},
        "outputNode": {"id": EXIT, "bounding": [x + 40, 0, 140, 40 + 20 * len(exits)]},
        "inputs": [_end(name, links, number, end) for number, end in enumerate(entrances)],
        "outputs": [_end(name, links, number, end) for number, end in enumerate(exits)],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
            for link in links
        ],
        "extra": {},
    }


def _kind(graph: Graph, info: Info, wire: Out) -> str:
    node = next(node for node in graph.nodes() if node.key == wire.node)
    return info[node.type]["output"][slot_of(graph, info, wire)]


def _end(
    name: str, links: list[list[Any]], number: int, end: tuple[str, str, int, int, int]
) -> dict[str, Any]:
    """A port of the subgraph. `end`: its name, type, side, and where a link says side and slot."""
    key, kind, side, at_side, at_slot = end
    used = [link[0] for link in links if link[at_side] == side and link[at_slot] == number]
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"{name} {side} {key}")),
        "name": key,
        "type": kind,
        "linkIds": used,
        "pos": [0, 20 + 20 * number],
    }
