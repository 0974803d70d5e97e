"""LaMo and PILA beside what ComfyUI's own nodes do to a MODEL: LoRAs by every loader, guidance and sampling
patches."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import folder_paths
from latent_physics.methods.pila import PilaAdapter, PilaConfig, save_adapter
from latent_physics.nodes import lamo, pila
from latent_physics.nodes.host import files, patching
from safetensors.torch import save_file

import nodes as stock

pytestmark = pytest.mark.comfy

TEXT = 32


def execute(node: Any, **arguments: Any) -> Any:
    with torch.inference_mode():
        return node.execute(**arguments).args


@pytest.fixture
def both(tmp_path, monkeypatch, make_predictor) -> Callable[[Any], Any]:
    """LaMo Guidance and PILA Correction on a MODEL."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop(files.FOLDER, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files.register_folder()
    torch.manual_seed(0)
    adapter = PilaAdapter(PilaConfig(hidden=16, blocks=1, head_width=8, cond_dim=TEXT))
    for parameter in adapter.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(tmp_path / "models" / files.FOLDER / "pila.safetensors", adapter, "toy")
    loaded = execute(pila.LoadPilaAdapter, name="pila.safetensors")[0]

    def apply(model: Any) -> Any:
        guided = execute(
            lamo.LaMoGuidance, model=model, predictor=make_predictor(), strength=25.0, active=1.0
        )[0]
        options = {"strength": 1.0, "top_k": -1, "start": 0.0, "end": 1.0, "labels": {"Fluid": 1.0}}
        return execute(pila.PilaCorrectionNode, model=guided, adapter=loaded, **options)[0]

    return apply


@pytest.fixture
def lora(tmp_path, monkeypatch) -> str:
    """A LoRA of rank 2 on the first block's attention, as this pack exports it."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name in ("q", "k", "v", "o"):
        module = f"diffusion_model.blocks.0.self_attn.{name}"
        state[f"{module}.lora_A.weight"] = torch.randn(2, 128, generator=generator) * 0.3
        state[f"{module}.lora_B.weight"] = torch.randn(128, 2, generator=generator) * 0.3
        state[f"{module}.alpha"] = torch.tensor(2.0)
    save_file(state, tmp_path / "lora.safetensors")
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: str(tmp_path / name))
    return "lora.safetensors"


LOADERS = {
    "Load LoRA": ("LoraLoader", "load_lora", {"clip": None, "strength_clip": 0.0}),
    "Load LoRA (Model)": ("LoraLoaderModelOnly", "load_lora_model_only", {}),
    "Load LoRA (Bypass)": ("LoraLoaderBypass", "load_lora", {"clip": None, "strength_clip": 0.0}),
    "Load LoRA (Bypass, Model)": ("LoraLoaderBypassModelOnly", "load_lora_model_only", {}),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_lora_of_every_loader_acts_before_and_after_the_corrections(
    wan, both, lora, sample, conditioning, loader
):
    """The order of the wires changes nothing, and every part has its say."""
    name, function, options = LOADERS[loader]
    debug = importlib.import_module("comfy_extras.nodes_lora_debug")
    classes = {**vars(debug), **stock.NODE_CLASS_MAPPINGS}

    def load(model: Any) -> Any:
        with torch.inference_mode():
            return getattr(classes[name](), function)(
                model=model, lora_name=lora, strength_model=1.0, **options
            )[0]

    prompts = conditioning(1), conditioning(2)
    plain, tuned, corrected = (sample(model, *prompts) for model in (wan, load(wan), both(wan)))
    before, after = sample(both(load(wan)), *prompts), sample(load(both(wan)), *prompts)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    assert torch.isfinite(before).all()
    assert (before - tuned).abs().max() > 1e-3
    assert (before - corrected).abs().max() > 1e-3
    assert torch.equal(plain, sample(wan, *prompts)), "the model itself is as it was"


PATCHES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ModelSamplingSD3": ("comfy_extras.nodes_model_advanced", "ModelSamplingSD3", {"shift": 3.0}),
    "RescaleCFG": ("comfy_extras.nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}),
    "APG": ("comfy_extras.nodes_apg", "APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}),
    "CFG-Zero*": ("comfy_extras.nodes_cfg", "CFGZeroStar", {}),
    "CFG norm": ("comfy_extras.nodes_cfg", "CFGNorm", {"strength": 1.0}),
    "TCFG": ("comfy_extras.nodes_tcfg", "TCFG", {}),
    "Mahiro": ("comfy_extras.nodes_mahiro", "Mahiro", {}),
    "EasyCache": (
        "comfy_extras.nodes_easycache", "EasyCacheNode",
        {"reuse_threshold": 1000.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PATCHES)
def test_the_corrections_act_beside_every_stock_patch(wan, both, sample, conditioning, name):
    module, attribute, options = PATCHES[name]
    try:
        node = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {name}")

    def patch(model: Any) -> Any:
        with torch.inference_mode():
            if hasattr(node, "execute"):
                return node.execute(model=model, **options).args[0]
            return getattr(node(), node.FUNCTION)(model=model, **options)[0]

    prompts = conditioning(1), conditioning(2)
    alone, corrected = sample(patch(wan), *prompts), sample(both(wan), *prompts)
    before, after = sample(both(patch(wan)), *prompts), sample(patch(both(wan)), *prompts)
    for result in (before, after):
        assert torch.isfinite(result).all()
        assert (result - alone).abs().max() > 1e-3, "the corrections do nothing"
        assert (result - corrected).abs().max() > 0, "the patch does nothing"
    for model in (both(patch(wan)), patch(both(wan))):
        assert len(patching.corrections(model)) == 2
    assert patching.corrections(wan) == []
