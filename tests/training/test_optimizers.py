"""Optimisers by name: what is let in, and that each one's run resumes bit for bit."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.loop.config import LoopConfig
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.optimizers import find_optimizer, optimizer_arguments
from safetensors.torch import load_file
from torch.testing._internal.two_tensor import TwoTensor

OPTIMIZERS = {
    "torch.optim.AdamW": [],
    "torch.optim.SGD": ["momentum=0.9", "nesterov=true"],
    "torch.optim.Adafactor": [],
    "torch.optim.NAdam": [],
    "torch.optim.RAdam": ["eps=1e-7"],
    "torch.optim.RMSprop": ["momentum=0.5"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(name, data, tmp_path):
    def run(folder, steps: int) -> dict[str, torch.Tensor]:
        settings = {"optimizer": name, "optimizer_args": OPTIMIZERS[name], "steps": steps}
        made = tiny_run.make_run(folder, data, tune=TuneConfig(rank=2, alpha=2), **settings)
        train(made, progress=ProgressLine("test", io.StringIO()))
        return load_file(folder / "checkpoint.safetensors")

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 5)
    assert whole.keys() == parts.keys()
    assert any(key.startswith("optimizer/") for key in whole)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_the_usual_one_is_adamw_with_the_settings_it_always_had():
    config = LoopConfig()
    assert find_optimizer(config.optimizer) is torch.optim.AdamW
    assert optimizer_arguments(config) == {"betas": (0.9, 0.95), "weight_decay": 1e-2}


def test_betas_go_only_to_optimisers_that_take_them():
    assert "betas" not in optimizer_arguments(LoopConfig(optimizer="torch.optim.SGD"))


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("os.system", [], "it must be a class of torch.optim"),
        ("torch.optim.lr_scheduler.StepLR", [], "it must be a class of torch.optim"),
        ("torch.optim.LBFGS", [], "it must be a class of torch.optim"),
        ("torch.optim.Optimiser", [], "torch.optim has no optimiser of that name"),
        ("torch.optim.lr_scheduler", [], "torch.optim has no optimiser of that name"),
        ("torch.optim.SGD", ["betas=[0.9,0.99]"], "'betas', which torch.optim.SGD does not take"),
        ("torch.optim.SGD", ["lr=3"], "'lr', which torch.optim.SGD does not take"),
        ("torch.optim.SGD", ["momentum"], "it must be key=value"),
        ("torch.optim.SGD", ["momentum=__import__('os')"], "it must be key=value"),
    ],
)
def test_what_is_no_optimiser_is_refused_in_one_sentence(name, words, says):
    with pytest.raises(TrainingError, match=says):
        optimizer_arguments(LoopConfig(optimizer=name, optimizer_args=words))


@pytest.mark.parametrize(
    "name", ["bitsandbytes.optim.AdamW8bit", "prodigyopt.Prodigy", "torchao.optim.AdamW8bit"]
)
def test_an_optimiser_without_its_package_says_what_to_install(name, monkeypatch):
    import importlib

    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(TrainingError, match=rf"{name.partition('.')[0]} is not installed: pip install"):
        find_optimizer(name)


class InTwoParts(torch.optim.Optimizer):
    """Momentum whose moments are tensors made of two, and whose rate is a tensor: as torchao's are."""

    def __init__(self, params, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            assert isinstance(group["lr"], torch.Tensor)
            for value in group["params"]:
                if value.grad is None:
                    continue
                if not self.state[value]:
                    zeros = torch.zeros_like(value)
                    self.state[value] = {"step": torch.tensor(0.0), "moment": TwoTensor(zeros, zeros.clone())}
                state = self.state[value]
                state["step"] += 1
                state["moment"].a.mul_(0.9).add_(value.grad)
                state["moment"].b.add_(value.grad)
                value.sub_(group["lr"] * (state["moment"].a + state["moment"].b / state["step"]))


def resumed_as_unbroken(name: str, data, folder, rank: int = 2) -> dict[str, torch.Tensor]:
    """The checkpoint of five steps, once with and once without a break after the second: they must agree."""

    def run(out, steps: int) -> dict[str, torch.Tensor]:
        tune = TuneConfig(rank=rank, alpha=2)
        made = tiny_run.make_run(out, data, tune=tune, optimizer=name, steps=steps, learning_rate=1e-2)
        train(made, progress=ProgressLine("test", io.StringIO()))
        return load_file(out / "checkpoint.safetensors")

    whole = run(folder / "whole", 5)
    run(folder / "parts", 2)
    parts = run(folder / "parts", 5)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    return whole


def test_moments_made_of_several_tensors_resume_bit_for_bit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim, "InTwoParts", InTwoParts, raising=False)
    saved = resumed_as_unbroken("torch.optim.InTwoParts", data, tmp_path)
    assert {"optimizer/0/moment/a", "optimizer/0/moment/b", "optimizer/0/step"} <= set(saved)
    assert not torch.equal(saved["optimizer/0/moment/a"], saved["optimizer/0/moment/b"])
    assert saved["optimizer/0/step"] == 5


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao, an optional extra")
@pytest.mark.parametrize("name", ["torchao.optim.AdamW8bit", "torchao.optim.AdamWFp8"])
def test_torchaos_small_moments_resume_bit_for_bit_and_are_small(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    saved = resumed_as_unbroken(name, data, tmp_path, rank=64)
    moments = sum(value.nbytes for key, value in saved.items() if "/exp_avg" in key)
    weights = sum(value.nbytes for key, value in saved.items() if key.startswith("model/"))
    assert weights / 2 < moments < 0.6 * weights
