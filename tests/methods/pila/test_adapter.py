import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from latent_physics.methods.pila import (
    CATEGORIES,
    PilaAdapter,
    PilaConfig,
    PilaCorrection,
    PilaSettings,
    PilaTrace,
    expert_maps,
    label_vector,
    load_adapter,
    save_adapter,
)
from latent_physics.methods.pila.decoder import sigma_gate, unshrunk
from latent_physics.methods.pila.encoder import ResidualBlock, count, normalised
from latent_physics.methods.pila.experts import RECIPES, OperatorExpert
from latent_physics.methods.step import SamplingStep
from latent_physics.methods.weights import WeightsError, WeightsInfo, save_weights
from latent_physics.tests.methods.pila.recipes import recipe_mask

SMALL = PilaConfig(channels=4, hidden=16, blocks=1, head_width=8, cond_dim=6)
VERSION_2 = {**dataclasses.asdict(SMALL), "architecture": "PilaAdapter", "version": 2}
VERSION_1 = {
    "channels": 4, "hidden": 16, "blocks": 1, "head_width": 8, "cond_dim": 6, "top_k": 4, "label_bias": 2.0,
    "temperature": 2.0,
    "gate": "quadratic", "gate_floor": 0.05, "correction_limit": 10.0, "tie_duplicates": True,
    "expert_sees_feature": False,
    "decoder_sees_feature": False,
    "ablation": {"plain_adapter": False, "afe": True, "routing": True, "residuals": True,
    "drop_families": []},
}  # fmt: skip
"""A configuration as files carried it before they had a version."""


def adapter(config=SMALL, trained=True):
    torch.manual_seed(0)
    module = PilaAdapter(config)
    if trained:
        for name, parameter in module.named_parameters():
            if "net" in name and parameter.abs().sum() == 0:
                torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def step(batch=2, channels=4, size=(5, 6, 7), sigma=0.5, index=2, count=10, cond=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(batch, channels, *size, generator=generator)
    noisy = (1 - sigma) * x0 + sigma * torch.randn(x0.shape, generator=generator)
    level = torch.full((batch,), sigma)
    embedding = torch.randn(batch, 6, generator=generator) if cond else None
    return x0.to(dtype), SamplingStep(
        noisy=noisy.to(dtype), sigma=level, gain=level, index=index, count=count, cond=embedding
    )


def test_parameter_counts_of_the_full_size():
    with torch.device("meta"):
        full = PilaAdapter()
    assert count(full.encoder) == 3_157_120
    assert count(full.encoder) + count(full.afe) + count(full.level) == pytest.approx(3.27e6, rel=1e-3)
    assert count(full.experts) == pytest.approx(7.26e6, rel=1e-3)
    assert count(full.decoder) == pytest.approx(0.910e6, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_and_an_untrained_adapter_are_bit_identical(dtype):
    x0, now = step(dtype=dtype)
    assert PilaCorrection(adapter(), PilaSettings(strength=0.0)).correct(x0, now) is x0
    result = adapter(trained=False).correct(x0, now)
    assert result.dtype == dtype
    assert torch.equal(result, x0)
    assert not torch.equal(adapter().correct(x0, now), x0)


def test_the_correction_is_the_velocity_correction_of_equation_10():
    module = adapter()
    x0, now = step(sigma=0.4)
    labels = label_vector(["Thermal"])
    velocity = (now.noisy - x0) / 0.4
    out = module(x0, velocity, now.sigma, now.cond, labels)
    gate = 0.05 + 0.95 * 0.6**2
    expected = now.noisy - 0.4 * (velocity + 0.7 * gate * out.delta)
    got = PilaCorrection(module, PilaSettings(labels=labels, strength=0.7)).correct(x0, now)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_sigma_gate_values_of_the_specification():
    sigma = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    torch.testing.assert_close(
        sigma_gate(sigma), torch.tensor([1, 0.658, 0.392, 0.202, 0.088, 0.05]), atol=5e-4, rtol=0
    )
    torch.testing.assert_close(sigma_gate(sigma, "linear", 0.3)[[0, -1]], torch.tensor([1.0, 0.3]))
    with pytest.raises(ValueError, match="quadratic"):
        sigma_gate(sigma, "cubic")


@settings(deadline=None, max_examples=10)
@given(
    some.integers(1, 3),
    some.integers(1, 6),
    some.integers(3, 8),
    some.integers(3, 8),
    some.integers(0, 8),
    some.booleans(),
)
def test_any_size_any_top_k_with_and_without_a_prompt(batch, frames, height, width, top_k, cond):
    x0, now = step(batch, size=(frames, height, width), cond=cond)
    result = PilaCorrection(adapter(), PilaSettings(top_k=top_k)).correct(x0, now)
    assert result.shape == x0.shape
    assert torch.isfinite(result).all()


def test_samples_of_a_batch_do_not_see_one_another():
    module = adapter()
    x0, now = step(batch=3)
    labels = torch.stack([label_vector(["Fluid"]), label_vector(["Optical"]), label_vector([])])
    whole = PilaCorrection(module, PilaSettings(labels=labels)).correct(x0, now)
    for b in range(3):
        one = SamplingStep(noisy=now.noisy[b : b + 1], sigma=now.sigma[b : b + 1], gain=now.gain[b : b + 1],
        index=2, count=10,
                           cond=now.cond[b : b + 1])  # fmt: skip
        alone = PilaCorrection(module, PilaSettings(labels=labels[b])).correct(x0[b : b + 1], one)
        torch.testing.assert_close(whole[b : b + 1], alone, atol=1e-5, rtol=1e-4)


def test_one_prompt_and_one_sigma_stand_for_the_whole_batch():
    module = adapter()
    x0, now = step(batch=2)
    shared = dataclasses.replace(now, sigma=now.sigma[:1], gain=now.gain[:1], cond=now.cond[:1])
    spread = dataclasses.replace(now, cond=now.cond[:1].repeat(2, 1))
    assert torch.equal(module.correct(x0, shared), module.correct(x0, spread))


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_expert_updates_its_recipe_and_nothing_else(category):
    expert = OperatorExpert(category, 16)
    torch.nn.init.normal_(expert.net[-1].weight)
    update = expert(torch.randn(2, 32, 3, 4, 5), torch.randn(2, 16))
    touched = update.abs().sum(dim=(0, 2, 3, 4)) > 0
    assert torch.equal(touched, recipe_mask(category))


def test_duplicates_stay_tied_after_refinement():
    x0, now = step()
    refined = adapter()(x0, now.noisy, now.sigma, top_k=8).refined
    pairs = [(8, 9), (10, 11), (12, 13), (14, 15), (28, 31), (0, 2), (24, 26)]
    assert all(torch.equal(refined[:, a], refined[:, b]) for a, b in pairs)


def test_refined_bank_is_the_weighted_sum_of_updates():
    module = adapter()
    x0, now = step()
    out = module(x0, now.noisy, now.sigma, now.cond, label_vector(["Fluid"]))
    expected = out.bank.clone()
    for index, (samples, update) in out.updates.items():
        for place, b in enumerate(samples.tolist()):
            expected[b] += out.routing.weights[b, index] * update[place]
            torch.testing.assert_close(
                out.expert_bank(index, samples[place : place + 1])[0], out.bank[b] + update[place]
            )
    torch.testing.assert_close(out.refined, expected)
    assert sum(len(samples) for samples, _ in out.updates.values()) == 2 * 4


def test_the_decoder_can_read_the_feature_and_be_deeper():
    config = dataclasses.replace(SMALL, decoder_sees_feature=True, decoder_blocks=3)
    module, (x0, now) = adapter(config), step()
    out = module(x0, now.noisy, now.sigma, now.cond)
    assert out.feature.shape == (2, 16, 5, 6, 7)
    assert count(module.decoder) - count(adapter().decoder) == 16 * 16 + 2 * count(ResidualBlock(16, 16))
    blind = module.decoder(out.refined, out.cond, now.noisy, torch.zeros_like(out.feature))
    assert not torch.allclose(blind, out.delta)
    assert (
        adapter()(x0, now.noisy, now.sigma, now.cond).feature is None
    )  # by default the bank is all it reads


@pytest.mark.parametrize(
    ("chosen", "sigma", "index", "acts"),
    [
        ({}, 0.5, 0, True),
        ({"start": 0.2}, 0.5, 1, False),
        ({"start": 0.2}, 0.5, 2, True),
        ({"end": 0.3}, 0.5, 3, False),
        ({"stage": "high noise"}, 0.9, 3, True),
        ({"stage": "high noise"}, 0.8, 3, False),
        ({"stage": "low noise"}, 0.8, 3, True),
        ({"stage": "low noise"}, 0.875, 3, False),
        ({"stage": "low noise", "boundary": 0.9}, 0.89, 3, True),
    ],
)
def test_where_the_correction_acts(chosen, sigma, index, acts):
    x0, now = step(sigma=sigma, index=index)
    result = PilaCorrection(adapter(), PilaSettings(**chosen)).correct(x0, now)
    assert torch.equal(result, x0) != acts


def test_trace_records_steps_and_starts_over_with_a_new_run():
    trace = PilaTrace(keep_snapshots=True)
    correction = PilaCorrection(adapter(), PilaSettings(labels=label_vector(["Fluid"]), trace=trace))
    for _ in range(2):
        for index in range(8):
            x0, now = step(sigma=1.0 - index / 8, index=index, count=8)
            correction.correct(x0, now)
    assert trace.index == list(range(8))
    assert all(math.isclose(sum(w), 1.0, rel_tol=1e-5) for w in trace.weights)
    assert trace.ratio[-1] > trace.ratio[0] > 0  # the gate opens as noise falls
    assert [kept.index for kept in trace.snapshots] == [1, 3, 5, 7]


def test_expert_maps_show_selected_experts_only():
    trace = PilaTrace(keep_snapshots=True)
    module = adapter()
    x0, now = step(index=9)
    PilaCorrection(module, PilaSettings(top_k=3, trace=trace)).correct(x0, now)
    maps = expert_maps(module, trace.snapshots[0], top_k=3)
    assert maps.shape == (2, 8, 5, 6, 7)
    assert ((maps.sum(dim=(2, 3, 4)) > 0).sum(dim=1) == 3).all()


def test_an_adapter_survives_its_file(tmp_path):
    module, path = (
        adapter(dataclasses.replace(SMALL, gate="linear", gate_floor=0.3)),
        tmp_path / "pila.safetensors",
    )
    save_adapter(path, module, "toy", {"steps": 3})
    loaded, info = load_adapter(path)
    assert (info.kind, info.latent_space, info.recipe) == ("pila_adapter", "toy", {"steps": 3})
    assert loaded.config == module.config
    x0, now = step()
    assert torch.equal(loaded.correct(x0, now), module.correct(x0, now))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_files_that_do_not_fit_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "pila.safetensors"
    state = adapter().state_dict()
    for config, words in [
        ({"hidden": 17}, "multiple of 8"),
        ({"speed": 3}, "cannot be built"),
        ({"hidden": 24}, "tensors"),
        ({"version": 3}, "version is 3; this pack reads 1 to 2"),
        ({"architecture": "PlainAdapter"}, "an ablation"),
    ]:
        save_weights(
            path, state, WeightsInfo(kind="pila_adapter", latent_space="toy", config={**VERSION_2, **config})
        )
        with pytest.raises(WeightsError, match=words):
            load_adapter(path)
    save_weights(path, state, WeightsInfo(kind="motion_predictor", latent_space="toy", config={}))
    with pytest.raises(WeightsError, match="holds a motion_predictor"):
        load_adapter(path)
    with pytest.raises(WeightsError, match="does not exist"):
        load_adapter(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": 20}, "20"),
        ({"top_k": 9}, "0 to 8"),
        ({"gate": "cubic"}, "cubic"),
        ({"gate_floor": 2.0}, "2.0"),
        ({"label_bias": 0.0}, "label bias"),
    ],
)
def test_bad_sizes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **change)


def test_bad_input_is_refused_in_a_sentence():
    module = adapter()
    x0, now = step()
    with pytest.raises(ValueError, match="adapter needs"):
        module.correct(torch.randn(1, 16, 3, 4, 4), now)
    with pytest.raises(ValueError, match="prompt embedding"):
        module.correct(x0, dataclasses.replace(now, cond=torch.randn(2, 5)))
    with pytest.raises(ValueError, match="at least 3x3"):
        module.correct(*step(size=(3, 2, 8)))
    with pytest.raises(ValueError, match="NaN"):
        module.correct(torch.full_like(x0, float("nan")), now)
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        PilaSettings(start=0.7, end=0.2)
    with pytest.raises(ValueError, match="high noise"):
        PilaSettings(stage="both")
    with pytest.raises(ValueError, match="labels have shape"):
        PilaSettings(labels=torch.zeros(7))
    with pytest.raises(ValueError, match="branch is 'negative'"):
        PilaSettings(branch="negative")


def test_recipes_name_the_slots_their_residuals_read():
    from latent_physics.methods.pila.residuals import residual_terms

    for category, slots in RECIPES.items():
        widths = {"d": 2, "u": 2, "eps": 4, "sigma": 4, "j": 2}
        fields = {name: torch.randn(1, widths.get(name, 1), 5, 7, 7) for name in slots}
        assert residual_terms(fields, category)


def test_checks_before_sampling():
    correction = PilaCorrection(adapter(), PilaSettings(trace=PilaTrace()))
    correction.check((1, 4, 5, 8, 8))
    correction.check_condition(6)
    correction.settings.trace.index.append(3)
    correction.reset()
    assert correction.settings.trace.index == []
    assert correction.memory_required((2, 4, 5, 8, 8)) == 2 * correction.memory_required((1, 4, 5, 8, 8))
    with pytest.raises(ValueError, match="needs"):
        correction.check((1, 16, 5, 8, 8))
    with pytest.raises(ValueError, match="at least 3x3"):
        correction.check((1, 4, 5, 2, 8))
    with pytest.raises(ValueError, match="reads 6"):
        correction.check_condition(4096)


def test_loading_draws_nothing_from_the_random_generator(tmp_path):
    save_adapter(tmp_path / "pila.safetensors", adapter(), "toy")
    before = torch.random.get_rng_state()
    load_adapter(tmp_path / "pila.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_files_of_version_1_load_and_act_as_their_training_meant(tmp_path):
    """Raw prompt, unbounded router, and the gate that undoes the penalty on the ungated correction."""
    state, path = adapter().state_dict(), tmp_path / "old.safetensors"
    recipe = {"correction_weight": 0.01}
    save_weights(
        path, state, WeightsInfo(kind="pila_adapter", latent_space="toy", config=VERSION_1, recipe=recipe)
    )
    old, _ = load_adapter(path)
    x0, now = step(sigma=0.8)
    raw = adapter(dataclasses.replace(SMALL, normalise_prompt=False, bound_logits=False))
    expected = x0 - (raw(x0, (now.noisy - x0) / 0.8, now.sigma, now.cond).delta) * 0.8 * (
        0.088 + 0.01 / 0.088
    )
    torch.testing.assert_close(old.correct(x0, now), expected, atol=1e-5, rtol=1e-5)
    gone, generic = {"tie_duplicates": False}, {"ablation": {"afe": False}}
    for change, words in [(gone, "tie_duplicates is False"), (generic, "GenericFields")]:
        save_weights(
            path, state, WeightsInfo(kind="pila_adapter", latent_space="toy", config={**VERSION_1, **change})
        )
        with pytest.raises(WeightsError, match=words):
            load_adapter(path)


@pytest.mark.parametrize("sigma", [1.0, 0.8, 0.5])
def test_the_unshrunk_gate_restores_what_a_penalty_took(sigma):
    """dv that minimises |g dv - r|^2 + w |dv|^2, found by gradient descent, gives r again under the unshrunk
    gate."""
    gate, wanted, weight = float(sigma_gate(torch.tensor(sigma))), 0.7, 0.01
    dv = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([dv], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (gate * dv - wanted) ** 2 + weight * dv**2
        value.backward()
        return value

    optimizer.step(loss)
    assert gate * dv.item() == pytest.approx(
        wanted * gate**2 / (gate**2 + weight), rel=1e-6
    )  # 0.2 of it at sigma 1
    assert unshrunk(gate, weight) * dv.item() == pytest.approx(wanted, rel=1e-6)
    assert unshrunk(gate, 0.0) == gate


def test_the_prompt_is_normalised_so_that_small_embeddings_are_read():
    """umT5's pooled embeddings are about 1e-3 in size; another prompt must still change the condition as
    much."""
    cond = torch.randn(3, 6)
    torch.testing.assert_close(normalised(cond), torch.nn.functional.layer_norm(cond, (6,), eps=0.0))
    torch.testing.assert_close(normalised(1e-3 * cond), normalised(cond))
    assert torch.equal(normalised(torch.zeros(1, 6)), torch.zeros(1, 6))
    encoder, level = adapter().condition, torch.zeros(3, 16)
    torch.testing.assert_close(encoder(level, 1e-3 * cond), encoder(level, cond))
    assert (encoder(level, 1e-3 * cond).std(dim=0) > 1e-2).any()
