"""Corrections in the training-side sampler: after CFG, or before it on one branch or both."""

from itertools import pairwise

import pytest
import torch
from latent_physics.methods.lamo import pool_tokens
from latent_physics.training.backbones.sample import sample, schedule


class Field:
    """A flow backbone whose velocity is linear in the latent and the prompt."""

    prediction, shift, latent_channels, device = "flow", 3.0, 2, torch.device("cpu")

    pool = staticmethod(pool_tokens)

    def predict(self, noisy, t, tokens, mask=None):
        return 0.3 * noisy + tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)

    def x0(self, noisy, out, t):
        return noisy - t.view(-1, 1, 1, 1, 1) * out


class Push:
    """Adds a constant, and keeps what it was given."""

    def __init__(self, branch=None):
        self.seen = []
        if branch:
            self.branch = branch

    def correct(self, x0, step):
        self.seen.append(x0.clone())
        return x0 + 0.1


TOKENS, NULL = torch.full((1, 2, 3), 1.0), (torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
MASK = torch.ones(1, 2, dtype=torch.bool)


def drawn(cfg, *corrections, steps=1):
    return sample(Field(), TOKENS, MASK, (2, 3, 3), steps=steps, cfg=cfg, null=NULL, corrections=corrections)


@pytest.mark.parametrize("cfg", [1.0, 2.0, 6.0])
def test_cfg_carries_the_conditional_branch_along(cfg):
    """A step of one: the change of the guided estimate is the correction's times CFG, times 1 with both
    branches or after CFG."""
    plain = drawn(cfg)
    for branch, factor in [("conditional", cfg), ("both", 1.0), ("guided", 1.0), (None, 1.0)]:
        torch.testing.assert_close(drawn(cfg, Push(branch)), plain + factor * 0.1, msg=str(branch))


def test_each_branch_sees_its_own_estimate():
    noise = torch.randn(1, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0)).view(1, 2, 2, 3, 3)
    conditional, empty = noise - (0.3 * noise + 1.0), noise - 0.3 * noise
    for branch, expected in [
        ("conditional", [conditional]),
        ("both", [conditional, empty]),
        ("guided", [empty + 4.0 * (conditional - empty)]),
    ]:
        push = Push(branch)
        drawn(4.0, push)
        for seen, wanted in zip(push.seen, expected, strict=True):
            torch.testing.assert_close(seen, wanted)


def test_corrections_of_a_branch_stack_and_uncorrected_sampling_is_untouched():
    first, second = Push("conditional"), Push("conditional")
    drawn(2.0, first, second, Push(), steps=3)
    torch.testing.assert_close(second.seen[0], first.seen[0] + 0.1)
    x, backbone = torch.randn(1, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0)), Field()
    for now, after in pairwise(schedule(backbone, 3)):
        out, empty = backbone.predict(x, now[None], TOKENS), backbone.predict(x, now[None], NULL[0])
        x0 = backbone.x0(x, empty + 2.0 * (out - empty), now[None])
        x = x0 + (x - x0) * (after / now)
    assert torch.equal(drawn(2.0, steps=3), x)
