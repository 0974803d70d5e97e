"""Compiled blocks, other attention kernels and quantised weights beside the plain transformer."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from latent_physics.tests.training.backbones.test_swap import LAYERS, lora_on, one_pass
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import compute
from latent_physics.training.backbones.compute import ComputeConfig, set_up
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.backbones.swap import swap_blocks
from latent_physics.training.console import TrainingError
from latent_physics.training.plan.model import Model
from latent_physics.training.plan.plan import make_plan
from latent_physics.training.tasks.finetune import FinetuneConfig, check

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao, an optional extra"
)


def differing(settings: dict, swapped: int = 0) -> float:
    """Largest difference of loss and gradients to the plain transformer's, over each one's largest value."""
    expected, backbone = one_pass(lora_on()), lora_on()
    set_up(backbone, ComputeConfig(**settings))
    swap_blocks(backbone.blocks, swapped)
    found = one_pass(backbone)
    assert expected.keys() == found.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max()) for name, value in expected.items()
    )


@pytest.mark.parametrize("swapped", [0, 2])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_blocks_give_the_same_loss_and_gradients(backend, swapped):
    assert differing({"compile": backend}, swapped) < 1e-5


def test_all_blocks_share_what_was_compiled_for_the_first():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    backbone = lora_on()
    for block in backbone.blocks:
        block.forward = torch.compile(block.forward, backend=counter)
    one_pass(backbone)
    assert 1 <= counter.frame_count < LAYERS


def test_another_attention_kernel_gives_the_same_loss_and_gradients():
    assert differing({"attention": "_native_math"}) < 1e-5


def test_every_name_is_one_that_diffusers_knows_and_reaches_every_attention():
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    names = set(compute.Attention.__args__) - {""}
    assert names <= {name.value for name in AttentionBackendName}
    assert not {name for name in names if "sage" in name or "hub" in name}
    backbone = lora_on()
    set_up(backbone, ComputeConfig(attention="_native_math"))
    chosen = [block.attn1.processor._attention_backend for block in backbone.blocks]
    assert {name.value for name in chosen} == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE


def test_hunyuan_video_takes_the_kernel_too_and_gives_the_same():
    """Its own processor stands where diffusers' would be asked."""
    backbone = tiny_run.backbone("hunyuan15", width=1536)
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 32, 2, 4, 4, generator=generator)
    words = torch.randn(1, 5, 1536, generator=generator)
    with torch.no_grad():
        expected = backbone.predict(latent, torch.tensor([0.5]), words)
    set_up(backbone, ComputeConfig(attention="_native_math"))
    chosen = {block.attn.processor._attention_backend.value for block in backbone.blocks}
    assert chosen == {"_native_math"}
    with torch.no_grad():
        found = backbone.predict(latent, torch.tensor([0.5]), words)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_cogvideox_has_no_choice_of_kernels_in_diffusers():
    """If this fails diffusers has learned it, and `check_compute` may let CogVideoX through."""
    backbone = tiny_run.backbone("cogvideox")
    assert not any(hasattr(block.attn1.processor, "_attention_backend") for block in backbone.blocks)


@needs_torchao
@pytest.mark.parametrize("swapped", [0, 2])
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.1), ("float8", 0.5)])
def test_quantised_blocks_are_near_the_plain_ones_and_learn(kind, most, swapped):
    assert 0 < differing({"quantize": kind}, swapped) < most


@needs_torchao
def test_int8_weights_are_nearer_to_the_plain_ones_than_float8_without_scales():
    expected, cast = one_pass(lora_on())["loss"], one_pass(lora_on(fp8=True))["loss"]
    backbone = lora_on()
    set_up(backbone, ComputeConfig(quantize="int8"))
    assert (one_pass(backbone)["loss"] - expected).abs() < (cast - expected).abs()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": "sage"}, "attention is 'sage'; it must be one of '', 'native'"),
        ({"attention": "xformers"}, "xformers is not installed: pip install xformers"),
        ({"attention": "_native_flash"}, "attention is '_native_flash', which needs a CUDA GPU"),
        ({"attention": "native", "backbone": "cogvideox"}, "diffusers' CogVideoX always uses torch's own"),
        ({"compile": "fastest"}, "compile is 'fastest'; it must be one of '', 'inductor'"),
        ({"quantize": "int4"}, "quantize is 'int4'; it must be one of '', 'float8' or 'int8'"),
        ({"quantize": "int8"}, "torchao is not installed: pip install torchao"),
        ({"quantize": "int8", "tune": TuneConfig(mode="full")}, "is for a LoRA"),
        ({"quantize": "int8", "fp8_storage": True}, "fp8_storage and quantize=int8 both store weights"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence_before_anything_is_loaded(
    changes, says, tmp_path, monkeypatch
):
    installed = {"torchao": "both store" in says or "LoRA" in says}
    monkeypatch.setattr(compute, "find_spec", lambda name: installed.get(name) or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=says):
        check(FinetuneConfig(data=tmp_path, **changes))


def test_plan_counts_a_byte_a_weight():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 5, "ffn_dim": 256}
    model = Model("wan", sizes | {"text_dim": 32, "freq_dim": 32})
    config = FinetuneConfig(width=128, height=64, frames=9, tune=TuneConfig(rank=4, alpha=4))
    config.trainer.checkpointing = True
    plain = make_plan(config, model)
    config.quantize = "int8"
    assert make_plan(config, model).step.weights == plain.step.weights - 5 * plain.step.frozen_block * 0.75
