"""Block swap: no weight differs, and at most one block's weights are on the card at any time."""

from __future__ import annotations

import io
import weakref

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import swap
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.backbones.wan import WanBackbone
from latent_physics.training.commands.plan import main as plan_command
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.loop.loop import train
from latent_physics.training.plan.model import Model
from latent_physics.training.plan.plan import make_plan
from latent_physics.training.tasks.finetune import FinetuneConfig, check
from safetensors.torch import load_file

LAYERS = 4


def lora_on(layers: int = LAYERS, fp8: bool = False) -> WanBackbone:
    """A tiny Wan under a LoRA, checkpointed."""
    dit = tiny.wan_dit(layers=layers, text_dim=32)
    if fp8:
        dit.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    backbone = WanBackbone(latent_space="toy", dit=dit)
    backbone.text_length = 8
    attach(backbone, TuneConfig(rank=2, alpha=2), seed=1)
    for name, value in dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02, generator=torch.Generator().manual_seed(2))
    dit.enable_gradient_checkpointing()
    dit.train()
    return backbone


def one_pass(backbone: WanBackbone) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step."""
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 16, 3, 4, 4, generator=generator)
    words = torch.randn(1, 5, 32, generator=generator)
    with backbone.tap(2) as taps:
        out = backbone.predict(latent, torch.tensor([0.5]), words)
    loss = out.square().mean() + taps[2].tokens.square().mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in backbone.dit.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("count", [1, LAYERS, LAYERS + 9])
def test_loss_and_gradients_are_those_of_blocks_that_stay(count, fp8):
    plain, swapped = lora_on(fp8=fp8), lora_on(fp8=fp8)
    swap.swap_blocks(swapped.blocks, count)
    expected, found = one_pass(plain), one_pass(swapped)
    assert expected.keys() == found.keys()
    assert len(expected) > 1
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_runs_checkpoint_is_the_same_to_the_bit_and_the_frozen_weights_are_what_they_were(tmp_path):
    data = tiny_run.clips(tmp_path / "clips")

    def run(name: str, count: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        made = tiny_run.make_run(tmp_path / name, data)
        backbone = made.task.backbone
        backbone.dit.enable_gradient_checkpointing()
        before = [value.clone() for value in backbone.dit.parameters() if not value.requires_grad]
        blocks = swap.swap_blocks(backbone.blocks, count)
        train(made, progress=ProgressLine("test", io.StringIO()))
        after = [value for value in backbone.dit.parameters() if not value.requires_grad and value.numel()]
        after += [value for block in blocks for value in block.waiting]
        assert sum(v.double().sum() for v in before) == pytest.approx(sum(v.double().sum() for v in after))
        return load_file(tmp_path / name / "checkpoint.safetensors"), after

    (plain, kept), (swapped, _) = run("plain", 0), run("swapped", 2)
    assert kept
    assert plain.keys() == swapped.keys()
    assert all(torch.equal(plain[key], swapped[key]) for key in plain)


def living(monkeypatch, checkpointed: bool) -> tuple[int, int]:
    """Most copies of blocks' weights at once during a step's forward and backward pass, in blocks; and how
    many are left after it."""
    backbone = lora_on()
    if not checkpointed:
        backbone.dit.disable_gradient_checkpointing()
    blocks = swap.swap_blocks(backbone.blocks, LAYERS)
    copies: list[weakref.ref] = []
    most = [0]

    def counted(value: torch.Tensor, device: torch.device) -> torch.Tensor:
        copy = value.clone()  # as another device would hold one
        copies.append(weakref.ref(copy.untyped_storage()))
        most[0] = max(most[0], sum(ref() is not None for ref in copies))
        return copy

    monkeypatch.setattr(swap, "on_device", counted)
    one_pass(backbone)
    sizes = {len(block.places) for block in blocks}
    (size,) = sizes
    return most[0] / size, sum(ref() is not None for ref in copies)


def test_one_blocks_weights_are_on_the_card_at_a_time(monkeypatch):
    assert living(monkeypatch, checkpointed=True) == (1, 0)


def test_without_checkpointing_every_blocks_weights_would_be_kept(monkeypatch):
    most, _ = living(monkeypatch, checkpointed=False)
    assert most > LAYERS / 2


def test_the_module_holds_nothing_of_a_swapped_block_but_what_learns():
    backbone = lora_on()
    whole = sum(value.numel() for value in backbone.blocks[-1].parameters() if not value.requires_grad)
    (block,) = swap.swap_blocks(backbone.blocks, 1)
    assert sum(value.numel() for value in block.waiting) == whole > 0
    held = [value for value in backbone.blocks[-1].parameters() if value.numel()]
    assert held
    assert all(value.requires_grad for value in held)
    assert all(value.numel() for value in backbone.blocks[0].parameters())


def test_an_error_in_a_block_leaves_nothing_on_the_card():
    backbone = lora_on()
    (block,) = swap.swap_blocks(backbone.blocks, 1)
    with pytest.raises(RuntimeError), torch.no_grad():
        backbone.blocks[-1](torch.zeros(1, 2, 3), torch.zeros(1), torch.zeros(1), None)
    assert all(part._parameters[name].numel() == 0 for part, name in block.places)


@pytest.mark.parametrize(
    ("mode", "checkpointing", "says"),
    [
        ("full", True, "^blocks_to_swap is for a LoRA"),
        ("lora", False, "^blocks_to_swap is 3; without checkpointing"),
    ],
)
def test_what_cannot_be_swapped_is_refused_before_anything_is_loaded(mode, checkpointing, says, tmp_path):
    config = FinetuneConfig(data=tmp_path, blocks_to_swap=3, tune=TuneConfig(mode=mode))
    config.trainer.checkpointing = checkpointing
    with pytest.raises(TrainingError, match=says):
        check(config)


def test_plan_takes_swapped_blocks_off_and_puts_one_and_their_way_to_the_card_on(capsys):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 5, "ffn_dim": 256}
    model = Model("wan", sizes | {"text_dim": 32, "freq_dim": 32})
    config = FinetuneConfig(width=128, height=64, frames=9, tune=TuneConfig(rank=4, alpha=4))
    config.trainer.checkpointing = True
    plain = make_plan(config, model)
    config.blocks_to_swap = 3
    found = make_plan(config, model)
    assert plain.peak - found.peak == 2 * plain.step.frozen_block
    assert (plain.fetched, found.fetched) == (0, 2 * 3 * plain.step.frozen_block)
    assert plan_command(["toy-plain", "--mode", "lora", "--blocks-to-swap", "4", "--checkpointing"]) == 0
    assert "GiB  without --blocks-to-swap" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["cogvideox", "wan-5b"])
def test_blocks_of_other_models_can_be_swapped(family):
    def loss(count: int) -> dict[str, torch.Tensor]:
        backbone = tiny_run.backbone(family)
        attach(backbone, TuneConfig(rank=2, alpha=2), seed=1)
        swap.swap_blocks(backbone.blocks, count)
        backbone.dit.enable_gradient_checkpointing()
        backbone.dit.train()
        generator = torch.Generator().manual_seed(3)
        latent = torch.randn(1, backbone.latent_channels, 3, 4, 4, generator=generator)
        words = torch.randn(1, backbone.text_length, tiny_run.WIDTH, generator=generator)
        t = torch.tensor([500 if backbone.prediction == "v" else 0.5])
        out = backbone.predict(latent, t, words)
        out.square().mean().backward()
        grads = {name: p.grad for name, p in backbone.dit.named_parameters() if p.grad is not None}
        return grads | {"out": out.detach()}

    plain, swapped = loss(0), loss(2)
    assert len(plain) > 1
    assert all(torch.equal(plain[name], swapped[name]) for name in plain)
