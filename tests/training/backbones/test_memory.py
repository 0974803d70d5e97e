"""Memory of loading a model file, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from latent_physics.training.backbones.stored import StoredTensor, stored_tensors
from latent_physics.training.console import TrainingError
from safetensors.torch import save_file

RESIDENT = """
import resource, sys, threading, time
import torch
from latent_physics.training.backbones.load import load_backbone

def warm():
    import diffusers, accelerate, safetensors.torch
    diffusers.WanTransformer3DModel(num_attention_heads=1, num_layers=1, ffn_dim=64)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

warm()
peak, running = [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)
before = resident()
thread = threading.Thread(target=watch)
thread.start()
dtype = getattr(torch, sys.argv[2])
backbone = load_backbone("wan", {"dit": sys.argv[1]}, parts=("dit",), dtype=dtype)
running[0] = False
thread.join()
used = sum(p.numel() * p.element_size() for p in backbone.dit.parameters())
print(peak[0] - before, used)
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """About 250 MB of a Wan transformer in bfloat16, under native names."""
    from diffusers import WanTransformer3DModel
    from latent_physics.training.backbones.keys import WAN_DIT, to_native

    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=8, num_layers=10, ffn_dim=4096, text_dim=1024)
    state = {
        name: torch.full(value.shape, 0.01, dtype=torch.bfloat16)
        for name, value in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("model") / "dit.safetensors"
    save_file(to_native(state, WAN_DIT), path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_model_file_is_in_memory_once_and_in_the_runs_format(model_file, dtype):
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(model_file), dtype], capture_output=True, text=True, check=True
    )
    peak, used = map(int, done.stdout.split())
    assert model_file.stat().st_size > 200e6
    assert used == pytest.approx(model_file.stat().st_size * (1 if dtype == "bfloat16" else 2), rel=0.02)
    assert used * 0.9 < peak < used * 1.3, peak / used


def test_a_stored_tensor_is_read_in_the_format_asked_for(tmp_path):
    value = torch.randn(3, 4)
    save_file({"a": value, "n": torch.arange(3)}, tmp_path / "x.safetensors", metadata={"k": "v"})
    found, metadata = stored_tensors(tmp_path / "x.safetensors")
    assert metadata == {"k": "v"}
    assert (found["a"].shape, found["a"].ndim, found["a"].dtype) == ((3, 4), 2, torch.float32)
    assert torch.equal(found["a"].read(), value)
    assert torch.equal(found["a"].read(torch.bfloat16), value.bfloat16())
    assert found["n"].tolist() == [0, 1, 2]


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match=r"^x\.safetensors is not a readable safetensors file"):
        stored_tensors(tmp_path / "x.safetensors")
    assert StoredTensor(path=tmp_path, name="a", shape=(), dtype=None).ndim == 0
