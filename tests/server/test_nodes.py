"""Every node as the server and its interface see it: texts, help pages, templates."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.server


def test_pack_loads_without_a_complaint(server, pack_nodes) -> None:
    log = server.log.read_text(encoding="utf-8", errors="replace")
    wrong = [
        line
        for line in log.splitlines()
        if "some.other-name_7" in line and ("FAILED" in line or "Cannot import" in line)
    ]
    assert not wrong


def test_every_input_and_output_has_a_tooltip(pack_nodes) -> None:
    missing = []
    for name, info in pack_nodes.items():
        if not info["description"] or not info["category"]:
            missing.append(f"{name}: description or category")
        for inputs in (info["input"].get("required", {}), info["input"].get("optional", {})):
            for key, spec in inputs.items():
                options = spec[1] if len(spec) > 1 else {}
                if not options.get("tooltip"):
                    missing.append(f"{name}: input {key}")
        tooltips = info.get("output_tooltips") or []
        for index, key in enumerate(info["output_name"]):
            if index >= len(tooltips) or not tooltips[index]:
                missing.append(f"{name}: output {key}")
    assert not missing, "\n".join(missing)


def test_ids_are_prefixed_and_the_menu_is_one(pack_nodes) -> None:
    """Node ids are forever and shared with every other pack; the pack's nodes lie in one menu."""
    assert not [name for name in pack_nodes if not name.startswith("LatentPhysics")]
    assert {info["category"].split("/")[0] for info in pack_nodes.values()} == {"latent physics"}


def test_every_node_has_a_help_page_that_names_its_inputs(server, pack_nodes) -> None:
    for name, info in pack_nodes.items():
        text = server.request(f"/extensions/some.other-name_7/docs/{urllib.parse.quote(name)}.md").decode()
        assert len(text) > 200, name
        inputs = [key for kind in ("required", "optional") for key in info["input"].get(kind, {})]
        assert not [key for key in inputs if key not in text], (
            f"{name}: the help page does not name every input"
        )


def test_every_help_page_is_served_in_chinese(server, pack_nodes) -> None:
    """The interface asks for docs/<node>/<language>.md first."""
    for name in pack_nodes:
        path = f"/extensions/some.other-name_7/docs/{urllib.parse.quote(name)}/zh.md"
        assert "\u8f93\u51fa" in server.request(path).decode("utf-8"), name


def test_viewers_are_shown_again_where_only_another_part_of_the_graph_runs(server) -> None:
    """Their pictures come back from the cache with a run of one other output."""
    graph = json.loads((Path(__file__).parents[2] / "workflows" / "api" / "motion_heatmaps.json").read_text())
    (drift,) = [node for node, entry in graph.items() if entry["class_type"].endswith("DriftHeatmap")]
    (save,) = [node for node, entry in graph.items() if entry["class_type"] == "SaveAnimatedWEBP"]
    whole = server.run(graph)
    assert whole["outputs"][drift]
    graph[save]["inputs"]["quality"] = 80
    body = {"prompt": graph, "partial_execution_targets": [save], "client_id": server.client_id}
    answer = json.loads(server.request("/prompt", body))
    part = server.wait(answer["prompt_id"])
    assert part["outputs"][save]
    assert part["outputs"][drift] == whole["outputs"][drift]


def test_texts_name_every_input(server, pack_nodes) -> None:
    """/i18n merges the locales of all packs; ours have to fit the nodes that the server knows."""
    for language, texts in server.get_json("/i18n").items():
        for name, info in pack_nodes.items():
            inputs = {key for kind in ("required", "optional") for key in info["input"].get(kind, {})}
            assert set(texts["nodeDefs"][name].get("inputs", {})) == inputs, f"{language}: {name}"


def test_every_socket_can_be_wired(server, pack_nodes) -> None:
    """Each input that is a socket takes what some node makes: a stock one, or one of ours for the objects
    that only we know."""
    made = {
        kind for info in server.object_info().values() for kind in info["output"] if isinstance(kind, str)
    }
    widgets = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
    for name, info in pack_nodes.items():
        for kind in ("required", "optional"):
            for key, spec in info["input"].get(kind, {}).items():
                wanted = spec[0]
                if isinstance(wanted, str) and wanted not in widgets and not wanted.startswith("COMFY_"):
                    assert set(wanted.split(",")) & (made | {"*"}), (
                        f"{name}: nothing makes a {wanted} for {key}"
                    )


def test_templates_are_listed_and_served(server, root: Path) -> None:
    listed = server.get_json("/api/workflow_templates")["some.other-name_7"]
    shown = sorted(path.stem for path in (root / "workflows").glob("*.json"))
    assert shown
    assert sorted(listed) == shown
    for name in shown:
        address = f"/api/workflow_templates/some.other-name_7/{urllib.parse.quote(name)}"
        assert json.loads(server.request(address + ".json"))["nodes"]
        assert server.request(address + ".jpg")[:3] == b"\xff\xd8\xff"
