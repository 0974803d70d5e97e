"""Stochastic samplers keep the ODE's marginals; GRPO's and DiffusionNFT's gradients are those of their
definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods.policy import (
    advantages,
    combine_rewards,
    ddim_step,
    flow_step,
    log_probability,
    nft_loss,
    optimality,
    policy_loss,
    velocity_kl,
    x_kl,
)
from scipy.stats import kstest

MEAN, SCALE = 0.7, 0.4
"""Data of the analytic problem: N(MEAN, SCALE^2)."""


def exact_velocity(x, sigma):
    """E[noise - x0 | x] for x = (1 - sigma) x0 + sigma noise with Gaussian data."""
    variance = ((1 - sigma) * SCALE) ** 2 + sigma**2
    centred = x - (1 - sigma) * MEAN
    x0 = MEAN + (1 - sigma) * SCALE**2 / variance * centred
    return sigma / variance * centred - x0


def exact_v(x, alpha_bar):
    """E[sqrt(ab) noise - sqrt(1 - ab) x0 | x] of a variance-preserving process."""
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    variance = (signal * SCALE) ** 2 + noise**2
    centred = x - signal * MEAN
    x0 = MEAN + signal * SCALE**2 / variance * centred
    return signal * noise / variance * centred - noise * x0


def run_flow(kind, noise_level, steps=200, count=20_000):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=generator)
    for index in range(steps):
        sigma, following = 1 - index / steps, 1 - (index + 1) / steps
        x = flow_step(kind, x, exact_velocity(x, sigma), sigma, following, noise_level).draw(generator)
    return x


@pytest.mark.parametrize(("kind", "level"), [("Flow-SDE", 0.7), ("Dance-SDE", 0.3), ("ODE", 0.0)])
def test_stochastic_samplers_end_in_the_data(kind, level):
    """Kolmogorov-Smirnov on 20,000 samples. A sampler whose noise is not paid back is caught by the same test
    below."""
    found = kstest(run_flow(kind, level).flatten().numpy(), "norm", args=(MEAN, SCALE))
    assert found.statistic < 0.015


def test_cps_keeps_the_noise_level_and_narrows_the_data():
    """Its coefficients are kept, not its marginals: what is drawn anew has forgotten which point of the data
    it came from."""
    generator = torch.Generator().manual_seed(0)
    point, sigma, following = 0.3, 0.8, 0.5
    noise = torch.randn(20_000, 1, generator=generator)
    x = (1 - sigma) * point + sigma * noise
    drawn = flow_step("CPS", x, noise - point, sigma, following, 0.8).draw(generator)
    assert (
        kstest(drawn.flatten().numpy(), "norm", args=((1 - following) * point, following)).statistic < 0.015
    )
    for steps in (10, 200):
        assert run_flow("CPS", 0.8, steps).std() < 0.9 * run_flow("ODE", 0.0, steps).std()


def test_noise_that_is_not_paid_back_is_told_from_the_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    for index in range(200):
        sigma, following = 1 - index / 200, 1 - (index + 1) / 200
        step = flow_step("Flow-SDE", x, exact_velocity(x, sigma), sigma, following, 0.7)
        ode = flow_step("ODE", x, exact_velocity(x, sigma), sigma, following, 0.0)
        x = ode.mean + step.std * torch.randn(x.shape, generator=generator)
    assert kstest(x.flatten().numpy(), "norm", args=(MEAN, SCALE)).statistic > 0.05


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_noise_ends_in_the_data(eta):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    powers = torch.linspace(0, math.pi / 2, 201).sin().square().clamp(1e-6, 1).tolist()
    for now, after in pairwise(powers):
        x = ddim_step(x, exact_v(x, now), now, after, eta).draw(generator)
    assert kstest(x.flatten().numpy(), "norm", args=(MEAN, SCALE)).statistic < 0.015


@pytest.mark.parametrize("kind", ["Flow-SDE", "Dance-SDE", "CPS"])
def test_no_noise_is_the_usual_sampler(kind):
    x, velocity = torch.randn(2, 2, 3, 4, 4, 4).unbind(0)
    step = flow_step(kind, x, velocity, 0.8, 0.6, 0.0)
    torch.testing.assert_close(step.mean, x + velocity * (0.6 - 0.8))
    assert step.std == 0
    assert torch.equal(step.draw(), step.mean)


def test_no_eta_is_ddim():
    x, v = torch.randn(2, 2, 3, 4, 4, 4).unbind(0)
    data, noise = 0.6 * x - 0.8 * v, 0.6 * v + 0.8 * x
    torch.testing.assert_close(ddim_step(x, v, 0.36, 0.64, 0.0).mean, 0.8 * data + 0.6 * noise)


def test_flow_grpos_own_form_of_the_step_is_the_same():
    """Its paper writes the drift out: x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt."""
    x, v = torch.randn(2, 1, 2, 2, 2, 2).unbind(0)
    sigma, after, a = 0.7, 0.55, 0.7
    s, dt = a * math.sqrt(sigma / (1 - sigma)), after - sigma
    mean = x * (1 + s**2 * dt / (2 * sigma)) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    step = flow_step("Flow-SDE", x, v, sigma, after, a)
    torch.testing.assert_close(step.mean, mean)
    assert step.std == pytest.approx(s * math.sqrt(-dt))
    first = flow_step("Flow-SDE", x, v, 1.0, 0.9, a)
    assert first.std == pytest.approx(a * math.sqrt(1 / 0.1) * math.sqrt(0.1))


def test_log_probability_is_that_of_torchs_normal():
    x, v = torch.randn(2, 3, 2, 2, 4, 4).unbind(0)
    step = flow_step("Dance-SDE", x, v, 0.5, 0.4, 0.3)
    following = step.draw(torch.Generator().manual_seed(1))
    expected = torch.distributions.Normal(step.mean, step.std).log_prob(following).flatten(1).mean(1)
    torch.testing.assert_close(log_probability(step, following), expected)
    with pytest.raises(ValueError, match="no probability"):
        log_probability(flow_step("ODE", x, v, 0.5, 0.4, 0.3), following)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: flow_step("SDE", x, x, 0.5, 0.4, 1), "choose one of Flow-SDE"),
        (lambda x: flow_step("ODE", x, x, 0.4, 0.5, 1), "must fall"),
        (lambda x: ddim_step(x, x, 0.5, 0.4, 1), "must rise"),
        (lambda x: advantages(torch.ones(3, 1)), "at least 2 clips"),
        (lambda x: advantages(torch.tensor([[1.0, math.nan]])), "1 rewards are not finite"),
        (lambda x: combine_rewards({"a": torch.ones(1, 2)}, {"a": 1.0}, "mean"), "sum or gdpo"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 1, 1, 1))


def test_advantages_are_centred_and_scaled_in_each_group():
    rewards = torch.tensor([[0.1, 0.3, 0.2, 0.6], [5.0, 5.0, 5.0, 5.0]])
    found = advantages(rewards)
    centred = rewards[0].double() - rewards[0].double().mean()
    torch.testing.assert_close(found[0], (centred / (centred.square().mean().sqrt() + 1e-4)).float())
    assert found[1].tolist() == [0, 0, 0, 0]  # equal rewards teach nothing
    whole = advantages(rewards, global_std=True)
    torch.testing.assert_close(whole[0], (centred / (rewards.double().std(correction=0) + 1e-4)).float())
    assert advantages(torch.tensor([[0.0] * 99 + [1.0]]), clamp=2.0).max() == 2.0


@given(shift=st.floats(-10, 10), scale=st.floats(0.5, 20), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_rewards_zero_does_not_matter_and_hardly_its_unit(shift, scale, seed):
    rewards = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(advantages(rewards * scale + shift), advantages(rewards), rtol=5e-3, atol=5e-3)


def test_each_reward_counts_by_its_weight_when_normalised_by_itself():
    rewards = {"law": torch.rand(2, 4), "motion": 1000 * torch.rand(2, 4)}
    weights = {"law": 1.0, "motion": 0.5}
    apart = combine_rewards(rewards, weights, "gdpo")
    joined = advantages(rewards["law"]) + 0.5 * advantages(rewards["motion"])
    torch.testing.assert_close(apart, joined / joined.std(correction=0))
    together = combine_rewards(rewards, weights, "sum")
    torch.testing.assert_close(together, advantages(rewards["law"] + 0.5 * rewards["motion"]))
    wide, narrow = advantages(rewards["motion"]), advantages(rewards["law"])
    assert (together - wide).abs().max() < (together - narrow).abs().max()  # summed, the wide range rules


def test_joined_advantages_have_one_size_however_many_rewards_and_whatever_the_weights():
    """GDPO's last step: without it, weights of a tenth would learn at a tenth of the rate, and the clamp
    would hold for no sum."""
    draw = torch.Generator().manual_seed(0)
    rewards = {name: torch.rand(6, 8, generator=draw) for name in "abcd"}
    rewards |= {"a": rewards["a"] ** 40}
    for value in rewards.values():
        value[0] = 0.5  # a group without spread
    found = combine_rewards(rewards, dict.fromkeys("abcd", 1.0), "gdpo")
    assert found.std(correction=0) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(combine_rewards(rewards, dict.fromkeys("abcd", 0.01), "gdpo"), found)
    assert found[0].eq(0).all()
    assert combine_rewards(rewards, dict.fromkeys("abcd", 9.0), "gdpo", clamp=1.5).abs().max() == 1.5
    rounding = {name: 0.5 + 6e-8 * torch.randint(2, (6, 8), generator=draw) for name in "ab"}
    assert combine_rewards(rounding, {"a": 1.0, "b": 1.0}, "gdpo").abs().max() < 0.02
    assert combine_rewards(rounding, {"a": 0.0, "b": 0.0}, "gdpo").eq(0).all()


def test_ratio_is_one_before_the_first_update_and_the_loss_is_minus_the_advantage():
    new = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    found = policy_loss(new, new.detach(), advantage, 1e-3)
    assert found.ratio.tolist() == [1, 1, 1]
    assert found.clip_fraction == 0
    assert found.approx_kl == 0
    found.loss.backward()
    torch.testing.assert_close(new.grad, -advantage / 3)


def test_a_ratio_beyond_the_clip_range_pulls_only_back():
    new = torch.tensor([0.1, 0.1, -0.1, -0.1], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = policy_loss(new, torch.zeros(4), advantage, 0.01)
    found.loss.backward()
    assert found.clip_fraction == 1
    # Good and already likelier, bad and already less likely: no gradient. The other two are pulled back.
    assert new.grad[0] == 0
    assert new.grad[3] == 0
    torch.testing.assert_close(new.grad[1:3], torch.tensor([math.exp(0.1), -math.exp(-0.1)]) / 4)


def test_the_gradient_is_that_of_a_brute_force_policy_gradient_on_two_steps():
    """E[A sum log p] differentiated through torch's distributions, for a policy of one number that shifts the
    velocity."""
    generator = torch.Generator().manual_seed(0)
    start, reward_of = torch.randn(64, 1, generator=generator), (lambda x: -(x - 1).square().flatten())
    theta = torch.tensor(0.2, requires_grad=True)

    def step(x, sigma, after):
        return flow_step("Flow-SDE", x, exact_velocity(x, sigma) + theta, sigma, after, 0.7)

    with torch.no_grad():
        middle = step(start, 0.9, 0.5).draw(generator)
        final = step(middle, 0.5, 0.1).draw(generator)
    advantage = advantages(reward_of(final).view(8, 8)).flatten()
    moves = [(start, middle, 0.9, 0.5), (middle, final, 0.5, 0.1)]
    ours = sum(
        policy_loss(new := log_probability(step(x, a, b), y), new.detach(), advantage, 0.1).loss
        for x, y, a, b in moves
    )
    (found,) = torch.autograd.grad(ours, theta)
    score = torch.zeros(())
    for x, y, sigma, after in moves:
        s, dt = 0.7 * math.sqrt(sigma / (1 - sigma)), after - sigma
        velocity = exact_velocity(x, sigma) + theta
        mean = x + (velocity + s**2 / (2 * sigma) * (x + (1 - sigma) * velocity)) * dt
        score = (
            score
            - (advantage * torch.distributions.Normal(mean, s * math.sqrt(-dt)).log_prob(y).flatten()).mean()
        )
    (expected,) = torch.autograd.grad(score, theta)
    torch.testing.assert_close(found, expected)


def test_kl_is_zero_at_the_reference_and_that_of_two_gaussians_elsewhere():
    x, v = torch.randn(2, 2, 2, 2, 2, 2).unbind(0)
    step, other = (flow_step("Dance-SDE", x, velocity, 0.5, 0.4, 0.3) for velocity in (v, v + 0.1))
    assert x_kl(step, step) == 0
    assert velocity_kl(v, v) == 0
    normals = [torch.distributions.Normal(s.mean, s.std) for s in (step, other)]
    torch.testing.assert_close(x_kl(step, other), torch.distributions.kl_divergence(*normals).mean())
    torch.testing.assert_close(velocity_kl(v + 0.1, v), torch.tensor(0.005), rtol=1e-4, atol=1e-6)


def test_nft_moves_towards_good_clips_and_away_from_bad_ones():
    old, target = torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    velocity = old.clone().requires_grad_()
    nft_loss(velocity, old, target, torch.tensor([1.0, 0.0])).backward()
    good, bad = velocity.grad.flatten().tolist()
    assert good < 0 < bad  # a step against the gradient brings the good one nearer to its target
    assert good == -bad
    neutral = old.clone().requires_grad_()
    nft_loss(neutral, old, target, optimality(torch.zeros(2))).backward()
    assert neutral.grad.abs().max() == 0


def test_nft_at_certainty_is_flow_matching():
    """r = 1 and strength 1: v+ is the policy itself, and the loss that of fine-tuning on the clips."""
    velocity, old, target = torch.randn(3, 2, 2, 2, 2, 2).unbind(0)
    torch.testing.assert_close(
        nft_loss(velocity, old, target, torch.ones(2)), (velocity - target).square().mean()
    )
    assert optimality(torch.tensor([-9.0, 0.0, 5.0])).tolist() == [0, 0.5, 1]
