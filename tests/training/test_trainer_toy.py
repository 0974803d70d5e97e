"""Sampled toy clips and their scores: what the comparisons of methods stand on."""

from __future__ import annotations

import torch
from latent_physics.toyworld import evaluate
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.backbones.sample import sample
from latent_physics.training.data.toy_prompts import toy_prompts
from latent_physics.training.study.sampling import LATENT, sampled_clips, toy_scores


class Shift:
    """A correction that is easy to recognise."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def correct(self, x0, step):
        return x0 + self.amount


def test_clips_and_scores_are_those_of_the_plain_loop_whatever_the_batch():
    backbone = load_backbone("toy")
    prompts, worlds = toy_prompts(3, seed=4)
    settings = {"steps": 2, "cfg": 2.0, "seed": 7}
    tokens, mask = backbone.embed_prompts(prompts)
    latents = sample(backbone, tokens, mask, LATENT, null=backbone.embed_prompts([""]), **settings)
    expected = backbone.decode_latent(latents).detach()
    clips, seconds = sampled_clips(backbone, prompts, batch=2, **settings)
    assert clips.shape == (3, 3, 33, 64, 64)
    assert seconds > 0
    torch.testing.assert_close(clips, expected, rtol=0, atol=1e-4)
    scores, plain = (
        toy_scores(backbone, prompts, worlds, batch=2, **settings),
        evaluate(clips, worlds, prompts),
    )
    assert all(
        torch.equal(scores[name], getattr(plain, name)) for name in ("law", "adherence", "dynamic_degree")
    )


def test_every_slice_of_the_prompts_gets_its_own_corrections():
    backbone = load_backbone("toy")
    prompts, _ = toy_prompts(3, seed=4)
    asked: list[slice] = []

    def corrections(rows: slice) -> list[Shift]:
        asked.append(rows)
        return [Shift(0.5)] if rows.start == 2 else []

    settings = {"steps": 1, "seed": 7, "batch": 2}
    plain, _ = sampled_clips(backbone, prompts, **settings)
    clips, _ = sampled_clips(backbone, prompts, corrections=corrections, **settings)
    assert asked == [slice(0, 2), slice(2, 4)]
    assert torch.equal(clips[:2], plain[:2])
    assert not torch.allclose(clips[2], plain[2], atol=1e-2)
