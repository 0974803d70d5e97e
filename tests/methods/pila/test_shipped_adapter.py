"""The adapter that comes with the pack: what it is told changes what it does."""

import dataclasses
from itertools import combinations
from pathlib import Path

import latent_physics
import pytest
import torch
from latent_physics.methods.labels.taxonomy import CATEGORIES, label_vector
from latent_physics.methods.lamo import pool_tokens
from latent_physics.methods.pila import PilaCorrection, PilaSettings, load_adapter
from latent_physics.methods.step import SamplingStep
from latent_physics.training.backbones.load import load_backbone

WEIGHTS = Path(latent_physics.__file__).parent / "toyworld" / "weights" / "toy_pila.safetensors"
PROMPTS = ("a large red ball thrown to the right", "warm air rises over a candle")


@pytest.fixture(scope="module")
def shipped():
    return load_adapter(WEIGHTS)


@pytest.fixture(scope="module")
def step():
    """A noisy toy latent, its estimate, and the pooled embeddings of two prompts."""
    tokens, mask = load_backbone("toy", parts=["text"]).embed_prompts(list(PROMPTS))
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 16, 9, 8, 8, generator=generator)
    level, noise = torch.tensor([0.5]), torch.randn(x0.shape, generator=generator)
    noisy, cond = 0.5 * x0 + 0.5 * noise, pool_tokens(tokens, mask)
    return x0, SamplingStep(noisy=noisy, sigma=level, gain=level, index=5, count=20, cond=cond[:1]), cond[1:]


def change(adapter, x0, step, labels=None):
    """What the correction adds, with a label or without."""
    prior = None if labels is None else label_vector(labels)
    return PilaCorrection(adapter, PilaSettings(labels=prior)).correct(x0, step) - x0


def apart(a, b):
    """Difference of two corrections relative to their size."""
    return float((a - b).norm() / a.norm())


def test_every_label_changes_what_the_shipped_adapter_does(shipped, step):
    adapter, (x0, now, _) = shipped[0], step
    changes = {name: change(adapter, x0, now, [name]) for name in CATEGORIES}
    for a, b in combinations(CATEGORIES, 2):
        assert apart(changes[a], changes[b]) > 1e-3, (a, b)


def test_every_label_runs_its_expert_in_the_shipped_adapter(shipped, step):
    adapter, (x0, now, _) = shipped[0], step
    for index, name in enumerate(CATEGORIES):
        out = adapter(x0, now.noisy, now.sigma, now.cond, label_vector([name]))
        assert out.routing.selected[0, index], name
        assert out.updates[index][1].abs().max() > 0, name


def test_another_prompt_changes_what_the_shipped_adapter_does(shipped, step):
    adapter, (x0, now, other) = shipped[0], step
    assert apart(change(adapter, x0, now), change(adapter, x0, dataclasses.replace(now, cond=other))) > 1e-3


def test_the_shipped_adapter_was_trained_by_this_version_and_removes_error(shipped):
    info = shipped[1]
    assert info.config["version"] == 2
    assert shipped[0].config.ungated_penalty == 0.0
    assert info.recipe["val_gain"] > 0.01
