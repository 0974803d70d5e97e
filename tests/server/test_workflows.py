"""Every shipped graph in the real server: the toy ones run and their outputs are opened, the others lack only
their models."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from latent_physics.devtools.server import ComfyServer, PromptRejected
from latent_physics.devtools.workflows.__main__ import FOLDER, forms
from latent_physics.devtools.workflows.__main__ import GRAPHS as WRITTEN
from latent_physics.devtools.workflows.format import ModelFile

pytestmark = pytest.mark.server
GRAPHS = sorted((Path(__file__).parents[2] / "workflows" / "api").glob("*.json"))
MODEL_FILES = (".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".bin", ".png", ".jpg", ".webp", ".mp4")


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def is_toy(graph: dict[str, Any]) -> bool:
    """Whether everything the graph needs is shipped."""
    return any("ToyWorld" in node["class_type"] for node in graph.values())


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_graph_runs_or_lacks_only_its_models(server: ComfyServer, run_and_open, path: Path) -> None:
    graph = load(path)
    if is_toy(graph):
        run_and_open(server, graph)
        return
    with pytest.raises(PromptRejected) as refused:
        server.queue(graph)
    errors = [
        (node, error)
        for node, entry in refused.value.reply["node_errors"].items()
        for error in entry["errors"]
    ]
    assert errors
    for node, error in errors:
        if error["type"] == "custom_validation_failed":  # Load Motion Predictor says where the file belongs
            assert "models/latent_physics" in error["details"], f"node {node}: {error}"
            continue
        value = str(error["extra_info"].get("received_value"))
        assert error["type"] == "value_not_in_list", f"node {node}: {error}"
        assert value.endswith(MODEL_FILES), f"node {node}: {error}"


def test_some_graph_is_a_toy_and_some_is_not() -> None:
    kinds = {is_toy(load(path)) for path in GRAPHS}
    assert kinds == {True, False}


def test_toy_graph_runs_in_an_older_comfyui(older_server: ComfyServer, run_and_open) -> None:
    (path,) = [path for path in GRAPHS if path.stem == "toy_world_lamo"]
    run_and_open(older_server, load(path))


@pytest.mark.parametrize("build", WRITTEN, ids=lambda build: build.__name__)
def test_shipped_files_are_those_that_the_graphs_write(server: ComfyServer, build) -> None:
    for path, text in forms(build(), server.object_info()).items():
        assert (FOLDER / path).read_text(encoding="utf-8") == text, path


def test_every_shipped_graph_is_written_by_one_function() -> None:
    assert sorted(build().name for build in WRITTEN) == [path.stem for path in GRAPHS]


def files_of_templates() -> set[ModelFile]:
    """Every model file that ComfyUI's own templates link to."""
    found = importlib.util.find_spec("comfyui_workflow_templates_json")
    if found is None:
        pytest.skip("comfyui_workflow_templates_json, which holds ComfyUI's templates, is not installed")

    def walk(part: Any) -> set[ModelFile]:
        if isinstance(part, dict):
            here = (
                {ModelFile(*(part[key].split("?")[0] for key in ModelFile._fields))}
                if is_file(part)
                else set()
            )
            return here.union(*map(walk, part.values()))
        return set().union(*map(walk, part)) if isinstance(part, list) else set()

    def is_file(part: dict[str, Any]) -> bool:
        return all(isinstance(part.get(key), str) for key in ModelFile._fields)

    (folder,) = found.submodule_search_locations
    return set().union(*(walk(load(path)) for path in Path(folder, "templates").glob("*.json")))


def test_model_files_are_those_of_comfyuis_own_templates() -> None:
    ours = {file for build in WRITTEN for node in build().nodes() for file in node.files}
    assert len(ours) > 20
    assert not sorted(ours - files_of_templates())


def test_every_graph_of_a_large_model_leads_to_a_first_predictor() -> None:
    for build in WRITTEN:
        graph = build()
        types = {node.type for node in graph.nodes()}
        if "LatentPhysicsLoadToyWorld" not in types and "LatentPhysicsLoadMotionPredictor" in types:
            way = r"first_predictor\*\*.*Train Motion Predictor\*\*.*quick"
            assert re.search(way, graph.note, flags=re.S), graph.name


def node_of(graph: dict[str, Any], kind: str) -> str:
    return next(number for number, node in graph.items() if node["class_type"] == kind)


def toy_instead(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph of a large model with the toy world's model, text encoder and VAE in it, small and short."""
    graph = {number: {**node, "inputs": dict(node["inputs"])} for number, node in graph.items()}
    loaders = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    for kind, output in loaders.items():
        old = node_of(graph, kind)
        for node in graph.values():
            for name, value in node["inputs"].items():
                if value == [old, 0]:
                    node["inputs"][name] = ["toy", output]
        del graph[old]
    graph["toy"] = {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}}
    graph[node_of(graph, "EmptyHunyuanLatentVideo")]["inputs"] |= {"width": 64, "height": 64, "length": 33}
    graph[node_of(graph, "KSampler")]["inputs"]["steps"] = 2
    return graph


def test_first_predictor_trains_on_comfyuis_own_clips_and_guides(server: ComfyServer, run_and_open) -> None:
    if importlib.util.find_spec("comfyui_workflow_templates_media_video") is None:
        pytest.skip("ComfyUI's template packages are not installed")
    graph = toy_instead(load(FOLDER / "api" / "first_predictor.json"))
    train = graph[node_of(graph, "LatentPhysicsTrainMotionPredictor")]["inputs"]
    assert (train["folder"], train["recipe"]) == ("ComfyUI's own clips", "quick")
    train |= {"latent_space": "toy", "recipe": "toy", "steps": 2, "name": "", "batch": 4}
    train |= {"width": 32, "height": 32, "frames": 9}  # so that little of each is decoded
    assert any(name.endswith(".mp4") for name in run_and_open(server, graph))
