"""The subgraph blueprints: found by the server, offered by the interface, wired to the toy world and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from latent_physics.devtools.server import ComfyServer
from latent_physics.devtools.workflows.__main__ import BLUEPRINTS, SUBGRAPHS, blueprint

pytestmark = [pytest.mark.server, pytest.mark.browser]
FILES = sorted(SUBGRAPHS.glob("*.json"))
WIRE = """async ([workflow, share, models]) => {
    const {app, LiteGraph} = window;
    await app.loadGraphData(workflow);
    const sub = app.graph._nodes[0];
    const add = (type, values = {}) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const [name, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === name).value = value;
        return node;
    };
    const to = (source, slot, node, name) => source.connect(slot, node, node.findInputSlot(name));
    const world = add("LatentPhysicsLoadToyWorld");
    const predictor = add("LatentPhysicsLoadMotionPredictor", {name: "toy/toy_predictor_order1.safetensors"});
    const size = add("EmptyHunyuanLatentVideo", {width: 64, height: 64, length: 33});
    for (const [name, text] of [["positive", "a small blue ball falls to the floor"], ["negative", ""]]) {
        const prompt = add("CLIPTextEncode", {text});
        to(world, 1, prompt, "clip");
        to(prompt, 0, sub, name);
    }
    for (const name of models) to(world, 0, sub, name);
    to(predictor, 0, sub, "predictor");
    to(size, 0, sub, "latent");
    sub.widgets.find((widget) => widget.name === "steps").value = 4;
    sub.widgets.find((widget) => widget.name === "share").value = share;
    sub.outputs.forEach((output, slot) => {
        const decode = add("VAEDecode"), save = add("SaveAnimatedWEBP", {filename_prefix: `blueprint_${slot}`});
        to(sub, slot, decode, "samples");
        to(world, 2, decode, "vae");
        to(decode, 0, save, "images");
    });
    return (await app.graphToPrompt()).output;
}"""


def test_shipped_blueprints_are_those_that_are_written(server: ComfyServer) -> None:
    written = {f"{build().name}.json": blueprint(build(), server.object_info()) for build in BLUEPRINTS}
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == written


def test_the_server_lists_and_serves_them(server: ComfyServer) -> None:
    ours = {
        entry["name"]: key
        for key, entry in server.get_json("/global_subgraphs").items()
        if entry["info"]["node_pack"] == "custom_nodes.some.other-name_7"
    }
    assert sorted(ours) == [path.stem for path in FILES]
    for path in FILES:
        served = server.get_json(f"/global_subgraphs/{ours[path.stem]}")["data"]
        assert json.loads(served) == json.loads(path.read_text(encoding="utf-8"))


def test_the_interface_offers_them_in_its_list_of_nodes(page) -> None:
    page.get_by_text("Nodes", exact=True).first.click()
    search = page.get_by_placeholder("Search").first
    for path in FILES:
        search.fill(path.stem)
        page.get_by_text(path.stem).first.wait_for(timeout=60_000)


def run(server: ComfyServer, page: Any, path: Path, share: float) -> list[bytes]:
    """The files of a blueprint wired to the toy world, in the order of its outputs."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    models = [entry["name"] for entry in workflow["nodes"][0]["inputs"] if entry["type"] == "MODEL"]
    entry = server.run(page.evaluate(WIRE, [workflow, share, models]))
    items = [item for output in entry["outputs"].values() for item in output.get("images", [])]
    return [server.download(item) for item in sorted(items, key=lambda item: item["filename"])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_blueprint_wired_to_the_toy_world_runs_and_share_guides(
    server: ComfyServer, shared_page, path: Path
) -> None:
    plain, guided = (run(server, shared_page, path, share) for share in (0.0, 0.9))
    assert len(plain) == len(guided) > 0
    assert plain[-1] != guided[-1]
    if len(plain) == 2:
        assert plain[0] == plain[1] == guided[0]
