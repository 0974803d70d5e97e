"""What an objective costs: every one that the trainer knows is measured, as the trainer builds it, and the
peer's beside it.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from latent_physics.benchmarks.cost import objectives


@pytest.fixture
def script(monkeypatch):
    """benchmarks/cost/objectives.py with a narrow model."""
    config = {**objectives.MODEL.config, "num_attention_heads": 2, "attention_head_dim": 16}
    monkeypatch.setattr(objectives, "MODEL", dataclasses.replace(objectives.MODEL, config=config))
    return objectives


def test_every_objective_is_measured(script):
    from latent_physics.training.objectives.parse import KINDS

    assert set(script.RECIPES) == set(KINDS)
    assert set(script.KERNELS[0].variants) == {*KINDS, script.PROJECTOR, script.PEER}
    for name in script.KERNELS[0].variants:
        value = script.prepare(name, "cpu", [4, 4, 6])()
        assert torch.isfinite(value), name
        assert (script.added_operations(name, (4, 4, 6)) is None) == (not script.objective_of(name).blocks)
    assert not script.objective_of("drift").blocks


def test_teacher_sees_a_third_of_a_large_clip(script):
    assert script.teacher_grid((13, 30, 45)) == (24, 10, 15)  # 480 x 720: 160 x 240, patches of 16
    assert script.teacher_grid((13, 10, 15)) == (24, 10, 15)  # 160 x 240 is small enough as it is


def test_peer_has_the_same_value_as_our_trd(script):
    ours, peer = (float(script.prepare(name, "cpu", [4, 4, 6])()) for name in ("trd", script.PEER))
    assert ours == pytest.approx(peer, rel=1e-4)
