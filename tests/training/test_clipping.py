"""Gradients of a group with a norm of its own are clipped apart from the others'."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.console import TrainingError
from latent_physics.training.data import features
from latent_physics.training.loop import processes
from latent_physics.training.loop.config import LoopConfig, TrainerConfig
from latent_physics.training.loop.optim import make_optimizer
from latent_physics.training.loop.processes import OneProcess
from latent_physics.training.loop.stepper import Plain
from latent_physics.training.loop.task import ParameterGroup
from torch import nn


def clipped(apart: float) -> tuple[float, list[float]]:
    """Norm that is logged, and norms that are left of gradients of 5, 12 and 50."""
    values = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for value, gradient in zip(values, ([3.0, 4.0], [12.0, 0.0], [30.0, 40.0])):
        value.grad = torch.tensor(gradient)
    groups = [
        ParameterGroup(parameters=values[:2], learning_rate=1.0),
        ParameterGroup(parameters=values[2:], learning_rate=1.0, max_grad_norm=apart),
    ]
    config = LoopConfig(max_grad_norm=1.3)
    task = SimpleNamespace(module=nn.ParameterList(values))
    stepper = Plain(OneProcess(), task, make_optimizer(groups, config), groups, config)
    return stepper.clip(), [float(value.grad.norm()) for value in values]


def test_a_group_of_its_own_norm_neither_shrinks_the_others_nor_is_shrunk_by_them():
    norm, left = clipped(apart=2.0)
    assert norm == pytest.approx(13.0)
    assert left == pytest.approx([0.5, 1.2, 2.0], rel=1e-4)


def test_without_one_all_are_scaled_together():
    norm, left = clipped(apart=0.0)
    assert norm == pytest.approx((169 + 2500) ** 0.5)
    assert left == pytest.approx([1.3 * value / norm for value in (5, 12, 50)], rel=1e-4)


def test_the_projectors_are_that_group(tmp_path):
    data = tiny_run.clips(tmp_path)
    objectives = {"repa": nn.Linear(2, 2)}
    objectives["repa"].settings = None
    run = tiny_run.make_run(tmp_path / "run", data, objectives=nn.ModuleDict(objectives))
    model, projectors = run.task.groups(TrainerConfig(projector_max_grad_norm=0.5))
    assert (model.max_grad_norm, projectors.max_grad_norm) == (0.0, 0.5)
    assert {id(value) for value in projectors.parameters} == set(map(id, objectives["repa"].parameters()))


def test_deepspeed_clips_all_together_and_says_so(monkeypatch):
    monkeypatch.setattr(processes, "deepspeed", lambda accelerator: True)
    monkeypatch.setattr(processes, "configure_deepspeed", lambda accelerator, **settings: {})
    with pytest.raises(TrainingError, match="DeepSpeed clips all gradients together"):
        clipped(apart=2.0)


def entry(frames: int) -> SimpleNamespace:
    return SimpleNamespace(info=SimpleNamespace(frames=frames, width=4, height=2))


def test_the_size_of_features_is_said_after_the_first_and_a_full_disk_before_the_rest(tmp_path, monkeypatch):
    (tmp_path / "first").write_bytes(b"0" * 2**20)
    said: list[str] = []
    progress = SimpleNamespace(say=said.append)
    missing = [entry(10), entry(10), entry(20)]
    free = {"free": 3 * 2**20}
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(**free))
    features.room_for(missing, tmp_path / "first", "videomae", 1, progress)
    (words,) = said
    assert words.startswith("videomae's features of 3 clips take 4.0 MiB in half precision")
    free["free"] -= 1
    with pytest.raises(TrainingError, match=r"take 4\.0 MiB in .*, which has 3\.0 MiB left; give another"):
        features.room_for(missing, tmp_path / "first", "videomae", 1, progress)
