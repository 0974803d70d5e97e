"""Graphs in API format: places found, arms as overrides."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.graph import (
    Inputs,
    arm_graph,
    describe,
    filled,
    find_inputs,
    graph_hash,
    load_graph,
    pruned,
    with_overrides,
)

API = Path(__file__).parents[2] / "workflows" / "api"


def shipped(name: str) -> dict:
    return load_graph(API / f"{name}.json")


@pytest.mark.parametrize(
    ("name", "prompt", "seed", "output"),
    [
        ("toy_world_lamo", [("5", "value")], [("6", "value")], "16"),
        ("wan2.1_t2v_1.3B_pila_lamo", [("8", "prompt")], [("14", "seed")], "17"),
        ("wan2.2_t2v_14B_lamo", [("11", "text")], [("14", "noise_seed")], "18"),
        ("cogvideox_lamo", [("6", "text")], [("12", "noise_seed")], "15"),
    ],
)
def test_prompt_seed_and_output_are_found_in_the_shipped_graphs(name, prompt, seed, output) -> None:
    graph = shipped(name)
    inputs = find_inputs(graph)
    assert list(inputs.prompt) == prompt
    assert list(inputs.seed) == seed
    assert inputs.output == output
    made = filled(arm_graph(graph, {}, inputs), inputs, prompt="a new prompt", seed=99, prefix="p")
    assert "a new prompt" in json.dumps(made)
    assert {made[node]["inputs"][field] for node, field in seed} == {99}


def test_the_negative_prompt_is_left_alone() -> None:
    graph = shipped("wan2.2_t2v_14B_lamo")
    inputs = find_inputs(graph)
    made = filled(arm_graph(graph, {}, inputs), inputs, prompt="new", seed=1, prefix="p")
    negative = made["14"]["inputs"]["negative"][0]
    assert made[negative]["inputs"]["text"] == graph[negative]["inputs"]["text"]


def test_a_prompt_typed_twice_is_replaced_twice() -> None:
    graph = shipped("wan2.1_t2v_1.3B_pila_lamo")
    text = graph["8"]["inputs"]["prompt"]
    graph["9"]["inputs"]["text"] = text  # typed into the encoder and into the parser of the labels
    assert set(find_inputs(graph).prompt) == {("9", "text"), ("8", "prompt")}


def test_previews_and_traces_are_not_run() -> None:
    graph = shipped("wan2.2_t2v_14B_lamo")
    part = pruned(graph, "18")
    assert not [node for node in part.values() if node["class_type"] == "LatentPhysicsGuidanceTrace"]
    assert "14" in part


def test_an_arm_rewires_changes_and_adds_nodes() -> None:
    graph = shipped("wan2.1_t2v_1.3B_pila_lamo")
    inputs = find_inputs(graph)
    plain = arm_graph(graph, {"14.model": ["2", 0]}, inputs)
    assert describe(plain) == ("wan2.1_t2v_1.3B_fp16.safetensors", (), ())
    lora = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["2", 0], "lora_name": "x.safetensors", "strength_model": 0.5},
    }
    with_lora = arm_graph(graph, {"40": lora, "14.model": ["40", 0]}, inputs)
    assert describe(with_lora)[1] == ("x.safetensors@0.5",)
    stronger = arm_graph(graph, {"13.strength": 50.0}, inputs)
    assert "strength=50.0" in describe(stronger)[2][1]
    hashes = {graph_hash(part, inputs) for part in (plain, with_lora, stronger)}
    assert len(hashes) == 3


def test_prompt_seed_and_titles_do_not_change_the_hash() -> None:
    graph = shipped("toy_world_pila")
    inputs = find_inputs(graph)
    part = arm_graph(graph, {}, inputs)
    other = copy.deepcopy(filled(part, inputs, prompt="other", seed=5, prefix="other"))
    other["5"]["_meta"] = {"title": "renamed"}
    assert graph_hash(part, inputs) == graph_hash(other, inputs)


def test_inputs_survive_the_plan() -> None:
    inputs = Inputs(
        prompt=(("1", "text"),), seed=(("2", "seed"), ("3", "noise_seed")), output="4", image=("5", "image")
    )
    assert Inputs.from_json(json.loads(json.dumps(inputs.as_json()))) == inputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"99.model": ["2", 0]}, "no nodes with the id or title '99'"),
        ({"12.modle": ["2", 0]}, "has no input 'modle'"),
        ({"12.model": ["77", 0]}, "node 77, which the graph does not hold"),
        ({"12.model": "wan"}, "takes a wire"),
        ({"strength": 1.0}, "write NODE.INPUT"),
        (
            {"17.video": ["40", 0], "40": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}}},
            "does not lead to the saved",
        ),
    ],
)
def test_an_override_that_does_not_fit_is_one_sentence(overrides, message) -> None:
    graph = shipped("wan2.1_t2v_1.3B_pila_lamo")
    with pytest.raises(EvaluationError, match=message):
        arm_graph(graph, overrides, find_inputs(graph))


def test_what_a_graph_leaves_open_is_named(tmp_path: Path) -> None:
    graph = shipped("wan2.1_t2v_1.3B_lamo")
    saver = next(name for name, node in graph.items() if node["class_type"] == "SaveVideo")
    two = {**graph, "90": copy.deepcopy(graph[saver])}
    with pytest.raises(EvaluationError, match=r"2 nodes that save videos .*--output-node"):
        find_inputs(two)
    assert find_inputs(two, output="90").output == "90"
    none = {name: node for name, node in graph.items() if name != saver}
    with pytest.raises(EvaluationError, match="no node that saves a video"):
        find_inputs(none)
    silent = with_overrides(graph, {})
    sampler = next(node for node in silent.values() if node["class_type"] == "KSampler")
    sampler["inputs"].pop("seed")
    with pytest.raises(EvaluationError, match="no sampler with a seed"):
        find_inputs(silent)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"nodes": []}', '{"1": {"inputs": {}}}', "no json"])
def test_a_file_that_is_no_api_graph_says_how_to_export_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"File > Export \(API\)"):
        load_graph(tmp_path / "g.json")
