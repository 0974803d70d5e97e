"""Installing the pack changes nothing: what a graph without our nodes computes is bit-identical without the
pack, with it, after a guided run and after an interrupted guided run, on the same loaded model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from latent_physics.devtools.server import ComfyServer, output_files, was_interrupted

pytestmark = pytest.mark.server

# A stock ComfyUI has no text encoder for the toy world: this gives a fixed embedding to the sampler. `again`
# changes nothing but the graph, so that ComfyUI runs the sampler again instead of taking its result from the
# cache.
FIXED_CONDITIONING = """
import torch

class FixedConditioning:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0}), "again": ("INT", {"default": 0})}}

    def make(self, seed, again):
        tokens = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(seed)) * 0.1
        return ([[tokens, {}]],)

NODE_CLASS_MAPPINGS = {"FixedConditioning": FixedConditioning}
"""


def graph_of(again: int, *, steps: int = 3, sampler: str = "uni_pc", guided: bool = False) -> dict[str, Any]:
    """Samples the toy DiT with stock loaders and saves the latent; `guided` puts LaMo Guidance in between."""
    graph = {
        "model": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "toy_dit.safetensors", "weight_dtype": "default"},
        },
        "positive": {"class_type": "FixedConditioning", "inputs": {"seed": 1, "again": again}},
        "negative": {"class_type": "FixedConditioning", "inputs": {"seed": 2, "again": 0}},
        "latent": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 17, "batch_size": 1},
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": 5,
                "steps": steps,
                "cfg": 3.0,
                "sampler_name": sampler,
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "save": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["sampler", 0], "filename_prefix": "untouched"},
        },
    }
    if guided:
        predictor = {"name": "toy/toy_predictor_order1.safetensors"}
        graph["predictor"] = {"class_type": "LatentPhysicsLoadMotionPredictor", "inputs": predictor}
        graph["guidance"] = {
            "class_type": "LatentPhysicsLaMoGuidance",
            "inputs": {
                "model": ["model", 0],
                "predictor": ["predictor", 0],
                "strength": 100.0,
                "active": 1.0,
            },
        }
        graph["sampler"]["inputs"]["model"] = ["guidance", 0]
    return graph


def latent_of(server: ComfyServer, graph: dict[str, Any]) -> torch.Tensor:
    (file,) = [item for node, item in output_files(server.run(server.with_defaults(graph))) if node == "save"]
    return safetensors.torch.load_file(server.path_of(file))["latent_tensor"]


@pytest.fixture(scope="module")
def servers(start_server, root: Path) -> tuple[ComfyServer, ComfyServer]:
    """A server without the pack and one with it, both with the toy DiT among their diffusion models."""
    made = []
    for pack in (None, "some.other-name_7"):
        server = start_server(pack, nodes={"fixed_conditioning.py": FIXED_CONDITIONING})
        folder = server.base / "models" / "diffusion_models"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "toyworld" / "weights" / "toy_dit.safetensors", folder / "toy_dit.safetensors")
        made.append(server)
    return tuple(made)


def test_unguided_output_is_bit_identical(servers: tuple[ComfyServer, ComfyServer]) -> None:
    without, with_pack = servers
    assert not [name for name in without.object_info() if name.startswith("LatentPhysics")]
    plain = latent_of(without, graph_of(0))
    assert torch.equal(latent_of(with_pack, graph_of(0)), plain), "installing the pack changes a stock graph"

    guided = latent_of(with_pack, graph_of(1, guided=True))
    assert not torch.equal(guided, plain), (
        "guidance does nothing, so the comparison below would prove nothing"
    )
    assert torch.equal(latent_of(with_pack, graph_of(2)), plain), "a guided run leaves something behind"

    prompt = with_pack.queue(with_pack.with_defaults(graph_of(3, steps=2000, sampler="euler", guided=True)))
    wait_for_sampling(with_pack, "/2000")
    with_pack.interrupt()
    assert was_interrupted(with_pack.wait(prompt))
    assert torch.equal(latent_of(with_pack, graph_of(4)), plain), (
        "an interrupted guided run leaves something behind"
    )
    assert torch.equal(latent_of(with_pack, graph_of(5, guided=True)), guided), (
        "a run depends on the one before it"
    )


def wait_for_sampling(server: ComfyServer, steps: str) -> None:
    """Until the server's progress bar shows that some step of this many is done."""
    for _ in range(600):
        lines = server.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        if any(f"{steps} [" in line and f" 0{steps}" not in line for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step of {steps} was done. Log: {server.log}")
