"""Train Physics LoRA in the real server: a folder is trained on, a run goes on, and stock nodes use and save
what it puts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from latent_physics.devtools.server import ComfyServer, PromptRejected
from safetensors.torch import load_file

from .test_train_folder import folder  # noqa: F401

pytestmark = pytest.mark.server
TRAIN = "LatentPhysicsTrainPhysicsLora"


def graph(**changes: Any) -> dict[str, Any]:
    """A folder -> the toy MODEL's LoRA -> a sampled clip, and a file. None takes an input away."""
    inputs = {
        "model": ["1", 0], "drift": 0.4, "steps": 2, "learning_rate": 1e-3, "rank": 2, "noise": "none",
        "seed": 0, "run": "", "batch": 1, "minutes": 0.0, "checkpointing": True, "vae": ["1", 2],
        "clip": ["1", 1], "folder": "tiny_clips", "width": 32, "height": 32, "frames": 9,
    }  # fmt: skip
    inputs = {name: value for name, value in {**inputs, **changes}.items() if value is not None}
    size = {"width": 32, "height": 32, "length": 9, "batch_size": 1}
    sampling = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    wires = {"model": ["4", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["5", 0]}
    return {
        "1": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "2": {"class_type": TRAIN, "inputs": inputs},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a large red ball falls"}},
        "4": {
            "class_type": "LoraModelLoader",
            "inputs": {"model": ["1", 0], "lora": ["2", 0], "strength_model": 1.0, "bypass": False},
        },
        "5": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
        "6": {"class_type": "KSampler", "inputs": {**wires, **sampling, "denoise": 1.0}},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        "9": {"class_type": "SaveLoRA", "inputs": {"lora": ["2", 0], "prefix": "loras/tiny"}},
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }


def test_a_folder_becomes_a_lora_that_is_used_saved_and_goes_on(
    server: ComfyServer,
    folder: Path,  # noqa: F811
) -> None:
    outputs = server.run(graph(run="tiny run"))["outputs"]
    (info,) = outputs["10"]["text"]
    assert "2 clips to train on" in info
    assert "2 steps" in info
    assert "broken.mp4 cannot be decoded" in info
    assert len(outputs["8"]["images"]) == 9
    assert (server.base / "output" / "latent_physics" / "tiny run" / "checkpoint.safetensors").is_file()
    (saved,) = (server.base / "output" / "loras").glob("tiny*.safetensors")
    assert sum(name.endswith("lora_A.weight") for name in load_file(saved)) == 60
    listed = server.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert saved.name in str(listed)
    (info,) = server.run(graph(run="tiny run", steps=3))["outputs"]["10"]["text"]
    assert "3 steps" in info
    assert not [path for path in (server.base / "temp").glob("latent_physics_*") if path.is_dir()]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run": "../out"}, "cannot be the run's folder name"),
        ({"folder": "gone"}, "has no folder 'gone'"),
        ({"vae": None}, "wire the vae"),
        ({"folder": None}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_trained_on_is_told_when_queued(
    server: ComfyServer,
    folder: Path,  # noqa: F811
    changes: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(PromptRejected) as refused:
        server.queue(graph(**changes))
    errors = refused.value.reply["node_errors"]["2"]["errors"]
    assert all(sentence in error["details"] for error in errors), errors
