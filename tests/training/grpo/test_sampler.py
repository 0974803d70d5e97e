"""The policy as a sampler: the plain sampler without noise, the same probabilities in rollout and update, and
clips that do not depend on their neighbours."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.policy import log_probability
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.backbones.sample import sample
from latent_physics.training.tasks.grpo.sampler import Sampler, roll_out

SHAPE = (3, 4, 4)
CPU = torch.device("cpu")


def prompt(family: str, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = 226 if family == "cogvideox" else 5
    tokens = torch.randn(rows, length, tiny_run.WIDTH, generator=torch.Generator().manual_seed(3))
    return tokens, torch.ones(rows, length, dtype=torch.bool)


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    drawn = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
    return torch.stack([torch.randn(16, *SHAPE, generator=one) for one in drawn])


def generators(rows: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + row) for row in rows]


def made(family: str, kind: str, **settings) -> Sampler:
    backbone = tiny_run.backbone(family)
    attach(backbone, TuneConfig(rank=4, alpha=8))
    return Sampler(backbone=backbone, steps=4, kind=kind, **settings)


@pytest.mark.parametrize(("family", "kind"), [("toy", "Flow-SDE"), ("toy", "CPS"), ("cogvideox", "DDIM-eta")])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_noise_it_is_the_plain_sampler(family: str, kind: str, guidance: float) -> None:
    null = tuple(value[:1] * 0 + 1 for value in prompt(family, 1))
    sampler = made(family, kind, guidance=guidance, null=null)
    words = prompt(family, 2)
    found = roll_out(sampler, noise(2), words, range(0), generators(range(2)), CPU)
    plain = sample(sampler.backbone, *words, SHAPE, steps=4, cfg=guidance, null=null, seed=0)
    torch.testing.assert_close(found.clips, plain, rtol=1e-4, atol=1e-4)
    assert found.states == found.log_probabilities == []
    quiet = made(family, kind, guidance=guidance, null=null, noise_level=0.5)
    noisy = roll_out(quiet, noise(2), words, range(1, 3), generators(range(2)), CPU)
    assert not torch.allclose(noisy.clips, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("toy", "Flow-SDE"), ("toy", "Dance-SDE"), ("toy", "CPS"), ("cogvideox", "DDIM-eta")],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_an_update_finds_exactly_the_probabilities_of_the_rollout(family: str, kind: str, bf16: bool) -> None:
    sampler = made(family, kind, noise_level=0.5)
    words = prompt(family, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = roll_out(sampler, noise(2), words, range(1, 3), generators(range(2)), CPU)
    assert len(found.states) == 3
    for place, index in enumerate((1, 2)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = sampler.output(found.states[place], index, words)
            step = sampler.step(found.states[place], out, index, stochastic=True)
            again = log_probability(step, found.states[place + 1])
        assert again.requires_grad
        assert (again.detach() - found.log_probabilities[place]).exp().tolist() == [1.0, 1.0]


def test_noise_of_a_clip_does_not_depend_on_its_neighbours() -> None:
    sampler, words = made("toy", "Flow-SDE", noise_level=0.7), prompt("toy", 2)
    both = roll_out(sampler, noise(2), words, range(0, 2), generators(range(2)), CPU)
    alone = roll_out(
        sampler, noise(2)[1:], tuple(w[1:] for w in words), range(0, 2), generators(range(1, 2)), CPU
    )
    torch.testing.assert_close(both.clips[1:], alone.clips, rtol=1e-4, atol=1e-4)
