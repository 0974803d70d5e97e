"""Train Motion Predictor on a folder of videos, in the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_physics.devtools.server import ComfyServer, PromptRejected
from PIL import Image

pytestmark = pytest.mark.server
TRAIN = "LatentPhysicsTrainMotionPredictor"


@pytest.fixture
def folder(server: ComfyServer) -> Iterator[Path]:
    """Two tiny videos, one with a caption, and a broken one in the server's input folder."""
    place = server.base / "input" / "tiny_clips"
    place.mkdir(parents=True, exist_ok=True)
    for seed in range(2):
        first = np.random.default_rng(seed).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        images = [Image.fromarray(np.roll(first, 2 * step, axis=1)) for step in range(9)]
        images[0].save(
            place / f"clip_{seed}.webp", save_all=True, append_images=images[1:], duration=60, lossless=True
        )
    (place / "clip_0.txt").write_text("a large red ball falls", encoding="utf-8")
    (place / "broken.mp4").write_bytes(b"no film")
    yield place
    for file in place.iterdir():
        file.unlink()
    place.rmdir()


def graph(**changes: Any) -> dict[str, Any]:
    """The toy world's encoders, the node, and its info as text. None takes an input away."""
    inputs = {
        "latent_space": "toy",
        "name": "",
        "recipe": "toy",
        "order": 1,
        "lag": 1,
        "steps": 3,
        "minutes": 0.0,
        "seed": 0,
    }
    inputs |= {
        "batch": 4,
        "vae": ["1", 2],
        "clip": ["1", 1],
        "folder": "tiny_clips",
        "width": 32,
        "height": 32,
        "frames": 9,
    }
    inputs = {name: value for name, value in {**inputs, **changes}.items() if value is not None}
    return {
        "1": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "2": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 32, "height": 32, "length": 9, "batch_size": 1},
        },
        "3": {"class_type": TRAIN, "inputs": inputs},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    }


def test_a_folder_is_trained_on_and_the_broken_clip_named(server: ComfyServer, folder: Path) -> None:
    described = server.object_info()[TRAIN]["input"]
    assert list(described["optional"])[:2] == ["latent", "positive"]
    (info,) = server.run(graph())["outputs"]["4"]["text"]
    assert "2 clips of toy latents" in info
    assert "1 clips were skipped" in info
    assert "broken.mp4 cannot be decoded" in info
    left = (server.base / "temp").glob("latent_physics_*")
    assert not [path for path in left if path.is_dir()]  # previews of other tests are files


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"folder": "../models"}, "cannot be the video folder"),
        ({"folder": "/etc"}, "cannot be the video folder"),
        ({"folder": "gone"}, "has no folder 'gone'"),
        ({"vae": None}, "wire the vae"),
        ({"latent": ["2", 0]}, "two things to learn from"),
        ({"folder": None}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_learned_from_is_told_when_queued(
    server: ComfyServer, folder: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PromptRejected) as refused:
        server.queue(graph(**changes))
    errors = refused.value.reply["node_errors"]["3"]["errors"]
    assert all(sentence in error["details"] for error in errors), errors


def test_first_predictor_trains_where_the_sampling_half_lacks_its_files(
    server: ComfyServer, folder: Path
) -> None:
    """As for the user of another model, who chose that model's VAE and unplugged the text encoder."""
    api = Path(__file__).parents[2] / "workflows" / "api" / "first_predictor.json"
    made = json.loads(api.read_text(encoding="utf-8"))
    (number,) = [number for number, node in made.items() if node["class_type"] == TRAIN]
    inputs = {**made[number]["inputs"], **graph()["3"]["inputs"], "vae": ["toy", 2]}
    del inputs["clip"]
    made["toy"], made[number]["inputs"] = {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}}, inputs
    outputs = server.run(made, partly=True)["outputs"]
    assert number in outputs
    assert any("2 clips of toy latents" in "".join(output.get("text", ())) for output in outputs.values())


@pytest.mark.browser
def test_a_workflow_from_before_the_folder_still_means_the_same(shared_page) -> None:
    """Saved with the first two sockets and the first ten widget values only, as the node once was."""
    folder = Path(__file__).parents[2] / "workflows"
    workflow = json.loads((folder / "toy_train_predictor.json").read_text(encoding="utf-8"))
    (node,) = [node for node in workflow["nodes"] if node["type"] == TRAIN]
    node["inputs"], node["widgets_values"] = node["inputs"][:2], node["widgets_values"][:10]
    node["inputs"][0].pop("shape")
    shared_page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
    shared_page.wait_for_function(
        "(count) => window.app.graph._nodes.length === count", arg=len(workflow["nodes"])
    )
    made = shared_page.evaluate("async () => (await window.app.graphToPrompt()).output")
    twin = json.loads((folder / "api" / "toy_train_predictor.json").read_text(encoding="utf-8"))
    assert made[str(node["id"])]["inputs"] == twin[str(node["id"])]["inputs"]
