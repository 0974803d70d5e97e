import dataclasses

import pytest
import torch
from latent_physics.methods.pila import (
    CATEGORIES,
    PilaAdapter,
    PilaConfig,
    PilaOutput,
    label_batch,
    residual_terms,
)
from latent_physics.methods.pila.experts import RECIPES
from latent_physics.methods.pila.losses import masks as masking
from latent_physics.methods.pila.losses.objective import (
    TERM_NAMES,
    AdaptiveWeights,
    PhysicsLoss,
    coupling_loss,
    largest_sigma,
    physics_loss,
    ramp,
)
from latent_physics.methods.pila.losses.recovery import (
    FREE_SLOTS,
    dead_slots,
    observable_loss,
    phase_weights,
    recovery_losses,
    spread_guards,
)

SMALL = PilaConfig(channels=4, hidden=16, blocks=1, head_width=8, cond_dim=6)
LABELS = label_batch([["Fluid", "Thermal"], ["Rigid Body", "Collision"], []])
SIZE = (5, 7, 8)


def trained(config=SMALL):
    torch.manual_seed(0)
    module = PilaAdapter(config)
    for parameter in module.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, velocity, target = (torch.randn(3, 4, *SIZE, generator=generator) for _ in range(3))
    return x0, velocity, target, torch.tensor([0.3, 0.6, 0.9]), torch.randn(3, 6, generator=generator)


def run(module, labels=LABELS, **options):
    x0, velocity, _, sigma, cond = batch()
    return module(x0, velocity, sigma, cond, labels, **options)


def physics(module, labels=LABELS, **options):
    return physics_loss(module, run(module, labels), labels, batch()[3], **options)


def test_equation_7_by_hand():
    module = trained()
    out = run(module)
    got = physics_loss(module, out, LABELS, batch()[3])
    per_sample = []
    for b in range(3):
        active = [k for k in range(8) if out.routing.selected[b, k] and LABELS[b, k] > 0]
        if not active:
            continue
        total = sum(float(out.routing.weights[b, k]) for k in active)
        value = 0.0
        for k in active:
            fields = module.read(out.expert_bank(k, torch.tensor([b])), RECIPES[CATEGORIES[k]])
            terms = residual_terms(fields, CATEGORIES[k])
            value += float(out.routing.weights[b, k]) / total * float(sum(terms.values()) / len(terms))
        per_sample.append(value)
    assert len(per_sample) == got.samples == 2
    assert float(got.loss) == pytest.approx(sum(per_sample) / 2, rel=1e-4)


def test_samples_without_labels_or_with_too_much_noise_do_not_count():
    module = trained()
    only = physics(module, sigma_max=0.4)
    assert only.samples == 1
    assert {name.split("/")[0] for name in only.terms} <= {"Fluid", "Thermal"}
    none = physics(module, sigma_max=0.1)
    assert none.samples == 0
    assert float(none.loss) == 0.0
    assert float(physics(module, torch.zeros(3, 8)).loss) == 0.0


def test_gradients_of_the_physics_loss_flow_only_where_they_should():
    module = trained()
    physics(module).loss.backward()
    touched = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    roots = {name.split(".")[0] for name in touched}
    assert {"encoder", "afe", "experts"} <= roots
    assert "router" not in roots  # routing weights are detached: no reward for the easiest law
    assert "decoder" not in roots
    labelled = {str(k) for k in range(8) if LABELS[:, k].any()}
    assert {name.split(".")[1] for name in touched if name.startswith("experts.")} == labelled


def test_gradients_of_the_flow_loss_reach_router_and_decoder_but_not_the_backbone():
    module = trained()
    x0, velocity, target, sigma, cond = batch()
    x0.requires_grad_(True)
    velocity.requires_grad_(True)
    out = module(x0, velocity, sigma, cond, LABELS)
    none = physics_loss(module, out, torch.zeros(3, 8), sigma)
    coupling_loss(module, out, velocity, target, sigma, none, step=0).loss.backward()
    assert x0.grad is None
    assert velocity.grad is None
    for root in ("router", "decoder", "encoder", "afe", "experts", "condition", "level"):
        assert any(
            p.grad is not None and p.grad.abs().sum() > 0 for p in getattr(module, root).parameters()
        ), root


def test_a_frozen_velocity_head_is_transparent():
    module = trained()
    module.afe.u_head.requires_grad_(False)
    physics(module).loss.backward()
    assert all(p.grad is None for p in module.afe.u_head.parameters())
    assert module.afe.scaffold[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_teaches_its_expert_and_the_encoder(category):
    module = trained()
    physics(module, label_batch([[category]] * 3)).loss.backward()
    for part in (module.experts[CATEGORIES.index(category)], module.encoder):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads
        assert all(torch.isfinite(g).all() for g in grads)
        assert sum(g.abs().sum() for g in grads) > 0


def test_equation_11_and_its_schedules():
    module = trained()
    x0, velocity, target, sigma, cond = batch()
    out = module(x0, velocity, sigma, cond, LABELS)
    law = physics_loss(module, out, LABELS, sigma)
    got = coupling_loss(module, out, velocity, target, sigma, law, step=1000)
    gate = (0.05 + 0.95 * (1 - sigma) ** 2).view(-1, 1, 1, 1, 1)
    flow = ((velocity + gate * out.delta - target) ** 2).mean()
    expected = flow + 0.3 * 0.5 * law.loss  # and no penalty on dv
    torch.testing.assert_close(got.loss, expected)
    assert float(got.base) == pytest.approx(float(((velocity - target) ** 2).mean()))
    assert (ramp(0, 2000), ramp(500, 2000), ramp(9999, 2000), ramp(0, 0)) == (0.0, 0.25, 1.0, 1.0)
    assert largest_sigma(0) == pytest.approx(0.4)
    assert largest_sigma(1000) == pytest.approx(0.7)
    assert largest_sigma(5000) == pytest.approx(1.0)


@pytest.mark.parametrize("sigma", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("gate", ["quadratic", "linear"])
def test_the_best_correction_is_the_whole_error_at_every_noise_level(sigma, gate):
    """At g dv = target - v the loss is flat: nothing shrinks the correction where the gate is small."""
    module = trained(dataclasses.replace(SMALL, gate=gate))
    _, velocity, target, _, _ = batch()
    level = torch.full((3,), sigma)
    best = ((target - velocity) / module.gate(level).view(-1, 1, 1, 1, 1)).requires_grad_()
    out = PilaOutput(delta=best, cond=torch.zeros(3, 16))
    result = coupling_loss(module, out, velocity, target, level, PhysicsLoss(torch.zeros(())), step=9999)
    result.loss.backward()
    assert float(result.loss) < 1e-10
    assert best.grad.abs().max() < 1e-8


def test_residuals_are_kept_by_noise_level():
    module, sigma = trained(), batch()[3]
    result = physics(module)
    for category, (levels, values) in result.judged.items():
        labelled = LABELS[:, CATEGORIES.index(category)] > 0
        assert torch.equal(levels, sigma[labelled])
        terms = torch.stack([result.terms[name] for name in TERM_NAMES if name.startswith(f"{category}/")])
        torch.testing.assert_close(values, terms.mean(dim=0))
    assert {"Fluid", "Thermal", "Rigid Body", "Collision"} == set(result.judged)


def test_adaptive_weights_follow_the_median_within_a_factor_of_two():
    weights = AdaptiveWeights()
    assert weights.of("Thermal") == {"heat_transport": 1.0, "thermal_regularity": 1.0}
    names = ["continuity", "momentum", "pressure_regularity", "density_stability"]
    for _ in range(3):
        weights.update({f"Fluid/{name}": torch.tensor([v]) for name, v in zip(names, [0.4, 0.3, 0.2, 1e-9])})
    got = weights.of("Fluid")
    assert got["density_stability"] == 2.0
    assert got["continuity"] == pytest.approx(0.25 / 0.4)  # the median of four is between the middle two
    assert got["pressure_regularity"] == pytest.approx(0.25 / 0.2)
    for small, large, expected in ((0.2, 0.4, (1.5, 0.75)), (1e-9, 0.4, (2.0, 0.5))):
        two = AdaptiveWeights()
        two.update({"Thermal/heat_transport": torch.tensor([small]),
                    "Thermal/thermal_regularity": torch.tensor([large])})  # fmt: skip
        assert tuple(two.of("Thermal").values()) == pytest.approx(expected)
    weights.update({"Fluid/continuity": torch.tensor([1.4])})
    assert float(weights.mean[TERM_NAMES.index("Fluid/continuity")]) == pytest.approx(0.99 * 0.4 + 0.01 * 1.4)
    fixed = AdaptiveWeights(adaptive=False)
    fixed.load_state_dict(weights.state_dict())
    assert set(fixed.of("Fluid").values()) == {1.0}


def test_adaptive_weights_synchronise_over_ranks():
    weights = AdaptiveWeights()
    weights.update(
        {"Thermal/heat_transport": torch.tensor([1.0])}, lambda vector: vector * 0.5
    )  # the other rank saw none
    assert float(weights.mean[TERM_NAMES.index("Thermal/heat_transport")]) == pytest.approx(1.0)


def test_bootstrap_mask_is_its_formula():
    x0, velocity = batch()[:2]
    still = velocity[:, :, :1].expand_as(velocity).clone()
    mask = masking.bootstrap_mask(velocity, x0)
    assert mask.shape == (3, 1, *SIZE)
    assert 0.08 <= float(mask.min()) < float(mask.max()) <= 1.0

    def d(field, dim):
        step = field.diff(dim=dim).abs().mean(1, keepdim=True)
        return torch.cat([step, step.narrow(dim, -1, 1)], dim)

    e = 0.55 * d(velocity, 2) + 0.25 * d(x0, 2) + 0.2 * 0.5 * (d(velocity, 4) + d(velocity, 3))
    e = (e / e.flatten(1).quantile(0.9, dim=1).view(-1, 1, 1, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(mask, 0.08 + 0.92 * e)
    nothing = masking.bootstrap_mask(torch.zeros_like(still), torch.zeros_like(x0))
    assert torch.equal(nothing, torch.full_like(nothing, 0.08))


def test_physical_mask_looks_where_the_labelled_slots_act():
    fields = {name: torch.zeros(2, width, *SIZE) for name, width in [("u", 2), ("T", 1), ("rho", 1)]}
    fields["u"][..., 0:2] = 1.0
    fields["T"][:, :, 3, :, 5] = 1.0
    mask = masking.physical_mask(fields, label_batch([["Thermal"], []]))
    assert mask[0, 0, 2, 3, 5] > 0.5 > mask[0, 0, 0, 3, 4]
    assert torch.equal(mask[1], torch.ones_like(mask[1]))
    fluid = masking.physical_mask(fields, label_batch([["Fluid"], ["Fluid"]]))
    assert fluid[0, 0, 2, 3, 5] == pytest.approx(0.08)  # temperature is not in its recipe


def test_masks_blend_from_ones_to_bootstrap_to_physical():
    bootstrap, physical = torch.full((1, 1, 2, 2, 2), 0.5), torch.full((1, 1, 2, 2, 2), 0.1)
    values = [
        float(masking.blended_mask(step, bootstrap, physical).mean())
        for step in (0, 150, 300, 800, 1300, 9999)
    ]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.3, 0.1, 0.1])


def test_observable_loss_is_zero_for_the_true_flow_and_weighs_by_confidence():
    velocity = torch.randn(1, 2, 4, 5, 5)
    flow = 0.5 * (velocity[:, :, 1:] + velocity[:, :, :-1])
    sure = torch.ones(1, 1, 3, 5, 5)
    assert float(observable_loss(velocity, flow, sure)) == 0.0
    wrong = flow.clone()
    wrong[..., 0] += 3.0
    unsure = sure.clone()
    unsure[..., 0] = 0.0
    assert float(observable_loss(velocity, wrong, sure)) > 0.4
    assert float(observable_loss(velocity, wrong, unsure)) == 0.0


def test_recovery_phases_and_their_weights():
    starts = {"core": 0, "alpha": 800, "T": 800, "j": 1500, "psi": 2100}
    assert phase_weights(0, starts) == ("core", {"core": 1.0})
    newest, weights = phase_weights(874, starts)
    assert newest == "T"
    assert weights == {"core": 0.25, "alpha": 0.5, "T": 0.5}
    assert phase_weights(1700, starts)[1] == {"core": 0.25, "alpha": 0.25, "T": 0.25, "j": 1.0}
    assert phase_weights(2600, starts)[0] == "psi"


@pytest.mark.parametrize("phase", ["core", "alpha", "T", "j", "psi"])
def test_recovery_losses_are_finite_and_train_their_head(phase):
    module = trained()
    x0, _, _, sigma, _ = batch()
    fields = module.estimate(x0, sigma, phase)
    losses = recovery_losses(fields, {phase: 1.0} if phase == "core" else {"core": 0.25, phase: 1.0})
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    head = module.afe.p_rho_head if phase == "core" else module.afe.heads[phase]
    assert sum(p.grad.abs().sum() for p in head.parameters()) > 0


def test_every_free_slot_is_guarded_against_constants():
    """A constant field is charged 1, one that varies enough nothing; pressure is asked for a tenth of
    Bernoulli's."""
    generator = torch.Generator().manual_seed(0)
    varied = {
        name: torch.randn(2, 2 if name == "j" else 1, *SIZE, generator=generator) for name in FREE_SLOTS
    }
    varied["u"] = torch.randn(2, 2, *SIZE, generator=generator)
    assert {name: float(value) for name, value in spread_guards(varied).items()} == dict.fromkeys(
        FREE_SLOTS, 0.0
    )
    flat = {name: torch.full_like(value, 0.3) for name, value in varied.items() if name != "u"} | {
        "u": varied["u"]
    }
    assert {name: round(float(value), 4) for name, value in spread_guards(flat).items()} == dict.fromkeys(
        FREE_SLOTS, 1.0
    )
    for name in FREE_SLOTS:  # and the guard pulls towards variation
        field = (0.3 + 1e-4 * varied[name]).requires_grad_()
        spread_guards({**flat, name: field})[name].backward()
        assert ((field.detach() - field.detach().mean()) * field.grad).sum() < 0, name
    slow = {"u": 0.1 * varied["u"], "p": 1e-2 * varied["p"]}
    assert float(spread_guards(slow)["p"]) == 0.0
    assert float(spread_guards({**slow, "u": varied["u"]})["p"]) > 0.5


def test_dead_slots_are_named():
    spread = {"u": 0.2, "p": 1e-5, "rho": 0.1, "T": 0.001, "psi": 0.2, "d": 0.0}
    assert dead_slots(spread) == ["p", "T"]
    assert dead_slots({**spread, "p": 1e-3}) == ["T"]


def test_recovery_charges_constant_pressure_density_and_phase():
    still = {
        name: torch.full((1, width, *SIZE), 0.5)
        for name, width in [("p", 1), ("rho", 1), ("alpha", 1), ("T", 1)]
    }
    zero = {
        name: torch.zeros(1, width, *SIZE) for name, width in [("u", 2), ("d", 2), ("eps", 4), ("sigma", 4)]
    }
    losses = recovery_losses({**still, **zero}, {"core": 1.0, "alpha": 1.0, "T": 1.0})
    for name in ("core/spread p", "core/spread rho", "alpha/spread alpha", "T/spread T"):
        assert float(losses[name]) == pytest.approx(1.0, abs=1e-4), name
