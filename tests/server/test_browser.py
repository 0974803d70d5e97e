"""What a person does in the browser: open a template, change a value, run it, look at the preview."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from latent_physics.devtools.server import ComfyServer, output_files

pytestmark = [pytest.mark.server, pytest.mark.browser]
WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))

HAS_PREVIEW = """(id) => {
    const node = window.app.graph.getNodeById(id);
    const shown = [...(node.imgs || [])];
    for (const widget of node.widgets || []) shown.push(...(widget.element?.querySelectorAll?.("img, video") || []));
    return shown.some((media) => (media.naturalWidth || media.videoWidth) > 0);
}"""
WIDGET_POSITION = """([id, name]) => {
    const node = window.app.graph.getNodeById(id);
    const widget = node.widgets.find((widget) => widget.name === name);
    return window.app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]);
}"""
VALUE = ".graphdialog input.value"
"""What ComfyUI asks for a widget's value with."""
CENTRE = """async (id) => {
    window.app.canvas.centerOnNode(window.app.graph.getNodeById(id));
    window.app.canvas.setDirty(true, true);
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
}"""
NODES = """() => window.app.graph._nodes.map((node) => ({
    id: node.id, type: node.type, output: !!node.constructor.nodeData?.output_node,
    widgets: Object.fromEntries((node.widgets || []).map((widget) => [widget.name, widget.value])),
}))"""


def load(page, path: Path) -> None:
    """Loads a workflow as dropping its file on the canvas does, and waits until it is drawn."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_function("(count) => window.app.graph._nodes.length === count", arg=len(workflow["nodes"]))


def without_titles(graph: dict[str, Any]) -> dict[str, Any]:
    return {
        node: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for node, entry in graph.items()
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_interface_turns_the_workflow_into_its_api_twin(shared_page, path: Path) -> None:
    """The UI graph through the interface's own conversion is the graph that test_workflows.py gives to the
    server."""
    load(shared_page, path)
    made = shared_page.evaluate("async () => (await window.app.graphToPrompt()).output")
    twin = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert without_titles(made) == without_titles(twin)


def open_template(page, name: str) -> None:
    """As a person does: Templates, the pack, the picture, after scrolling where it is not among the first."""
    page.get_by_role("button", name="Templates").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("some.other-name_7", exact=True).click()
    picture = dialog.get_by_role("heading", name=name, exact=True)
    for _ in range(40):
        if picture.count():
            break
        dialog.get_by_role("heading").last.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
    picture.click()


@pytest.mark.parametrize("name", ["wan2.2_i2v_14B_4steps_lamo", "ltx2.3_two_stage_lamo"])
def test_a_stranger_is_told_of_absent_model_files_and_of_nothing_else(page, name: str) -> None:
    open_template(page, name)
    page.wait_for_function("() => window.app.graph._nodes.some((node) => node.type === 'LoadImage')")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => Object.keys(window.app.lastNodeErrors ?? {}).length")
    refused = page.evaluate("() => Object.values(window.app.lastNodeErrors).map((entry) => entry.class_type)")
    assert refused
    assert not [kind for kind in refused if "Load" not in kind]
    assert "LoadImage" not in refused
    assert not [error for error in page.errors if "/extensions/" in error]


def test_template_is_opened_changed_run_and_seen(page, server: ComfyServer) -> None:
    open_template(page, "motion_heatmaps")
    page.wait_for_function("() => window.app.graph._nodes.some((node) => node.type.includes('ToyWorld'))")
    sampler = next(node for node in page.evaluate(NODES) if "steps" in node["widgets"])

    page.evaluate(CENTRE, sampler["id"])

    def steps() -> int:
        return next(node for node in page.evaluate(NODES) if node["id"] == sampler["id"])["widgets"]["steps"]

    for _ in range(12):  # the view is still moving into place when the graph is there: a click may miss
        page.wait_for_timeout(1000)
        page.evaluate(CENTRE, sampler["id"])
        page.mouse.dblclick(*page.evaluate(WIDGET_POSITION, [sampler["id"], "steps"]))
        page.wait_for_timeout(300)
        if page.locator(VALUE).count():
            page.locator(VALUE).fill("3", timeout=5000)
            page.keyboard.press("Enter")
            page.wait_for_timeout(100)
        else:  # what else may have opened is in the way
            page.keyboard.press("Escape")
        if steps() == 3:
            break
    assert steps() == 3

    before = set(server.get_json("/history"))
    page.get_by_test_id("queue-button").click()
    entry = server.wait(wait_for_new_prompt(server, before))
    assert entry["prompt"][2][str(sampler["id"])]["inputs"]["steps"] == 3
    shown = {node for node, _ in output_files(entry)}
    assert shown
    for node in shown:
        page.wait_for_function(HAS_PREVIEW, arg=node)
    assert not page.errors, "\n".join(page.errors)


def wait_for_new_prompt(server: ComfyServer, known: set[str]) -> str:
    """The id of a prompt that somebody else queued."""
    for _ in range(100):
        queue = server.get_json("/queue")
        waiting = {entry[1] for kind in ("queue_running", "queue_pending") for entry in queue[kind]}
        new = (waiting | set(server.get_json("/history"))) - known
        if new:
            return new.pop()
        time.sleep(0.1)
    raise AssertionError("the Run button queued nothing")
