"""Every row of PILA's ablation tables: it builds, samples, trains, has its file, and changes what it says."""

import dataclasses
from functools import partial

import pytest
import torch
from latent_physics.methods.labels.taxonomy import label_batch, label_vector
from latent_physics.methods.pila import (
    TOY,
    PilaAdapter,
    PilaConfig,
    PilaCorrection,
    PilaSettings,
    expert_maps,
    load_adapter,
    save_adapter,
)
from latent_physics.methods.pila.encoder import count
from latent_physics.methods.pila.losses.objective import physics_loss
from latent_physics.methods.pila.residuals import FAMILIES, TERMS
from latent_physics.methods.pila.trace import PilaSnapshot
from latent_physics.methods.step import SamplingStep
from latent_physics.methods.weights import WeightsError
from latent_physics.tests.training.tiny_pila import QUICK, SMALL, run
from latent_physics.training.study.ablations import ABLATIONS, ablation, build
from latent_physics.training.tasks.pila.stages import FULL

LABELS = label_batch([["Fluid", "Thermal"], ["Rigid Body", "Collision"]])


def adapter(name, trained=True):
    torch.manual_seed(0)
    module = ABLATIONS[name].adapter(SMALL)
    for parameter in module.parameters() if trained else ():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def step(sigma=0.5):
    generator = torch.Generator().manual_seed(1)
    x0, noise = (
        torch.randn(2, 4, 5, 8, 7, generator=generator),
        torch.randn(2, 4, 5, 8, 7, generator=generator),
    )
    level = torch.full((2,), sigma)
    noisy, cond = (1 - sigma) * x0 + sigma * noise, torch.randn(2, 6, generator=generator)
    return x0, SamplingStep(noisy=noisy, sigma=level, gain=level, index=2, count=10, cond=cond)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_builds_samples_and_starts_by_changing_nothing(name):
    x0, now = step()
    settings = PilaSettings(labels=label_vector(["Fluid", "Collision"]))
    assert torch.equal(PilaCorrection(adapter(name, trained=False), settings).correct(x0, now), x0)
    changed = PilaCorrection(adapter(name), settings).correct(x0, now)
    assert torch.isfinite(changed).all()
    assert torch.equal(changed, x0) == (name == "no_flow_correction")


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_trains(name):
    config = dataclasses.replace(QUICK, observable_steps=1, recovery_steps=5)
    training = run(config=config, method=ABLATIONS[name])
    training.run()
    assert all(torch.isfinite(p).all() for p in training.adapter.parameters())
    assert (len(training.task.stages) == 1) == (not ABLATIONS[name].staged)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_survives_its_file_which_names_its_architecture(name, tmp_path):
    module, path = adapter(name), tmp_path / "adapter.safetensors"
    save_adapter(path, module, "toy", {"method": name})
    loaded, info = load_adapter(path, build=build)
    x0, now = step()
    assert torch.equal(loaded.correct(x0, now), module.correct(x0, now))
    assert info.config["architecture"] == ABLATIONS[name].architecture == loaded.architecture
    if loaded.architecture != "PilaAdapter":
        with pytest.raises(WeightsError, match="an ablation"):
            load_adapter(path)


@pytest.mark.parametrize(
    "config", [TOY, PilaConfig(), PilaConfig(hidden=96, channels=4, cond_dim=512, decoder_blocks=2)]
)
def test_the_plain_adapter_has_the_full_methods_size(config):
    with torch.device("meta"):
        plain, full = build("PlainAdapter", config), PilaAdapter(config)
    assert count(plain) == pytest.approx(count(full), rel=0.01)


def physics(name):
    module, (x0, now) = adapter(name), step()
    out = module(x0, now.noisy, now.sigma, now.cond, LABELS)
    return physics_loss(module, out, LABELS, now.sigma, laws=ABLATIONS[name].laws)


def test_laws_of_the_rows():
    assert float(physics("no_residuals").loss) == 0.0
    assert float(physics("proxy_only").loss) > 0
    assert physics("proxy_only").terms == {}
    whole = set(physics("full").terms)
    for family in FAMILIES:
        dropped = whole - set(physics(f"no_{family}").terms)
        assert {TERMS[name.split("/")[0]][name.split("/")[1]].family for name in dropped} == {family}


def test_routes_fields_and_experts_of_the_rows():
    x0, now = step()
    outputs = {}
    for name in ("full", "no_routing", "no_moe_operator", "no_afe", "no_kinematic_anchor"):
        outputs[name] = adapter(name)(x0, now.noisy, now.sigma, now.cond, LABELS)
    assert torch.equal(outputs["no_routing"].routing.weights, torch.full((2, 8), 0.125))
    assert len(outputs["no_routing"].updates) == 8
    assert torch.equal(outputs["no_moe_operator"].refined, outputs["no_moe_operator"].bank)
    assert not torch.equal(outputs["full"].refined, outputs["full"].bank)
    for name, tied in (("full", True), ("no_kinematic_anchor", False), ("no_afe", False)):
        fields = outputs[name].fields  # with the anchor the strain is that of the velocity
        strain = (fields["u"][..., 2:] - fields["u"][..., :-2])[:, 0] / 2
        assert torch.allclose(fields["eps"][:, 0, ..., 1:-1], strain, atol=1e-4) == tied, name
    snapshot = PilaSnapshot(0, now.noisy, x0, now.sigma, now.cond)
    for name in ("no_moe_operator", "plain_adapter"):
        with pytest.raises(ValueError, match="without experts"):
            expert_maps(adapter(name), snapshot)
    for name in ("no_afe", "plain_adapter"):
        with pytest.raises(ValueError, match="no fields to show"):
            adapter(name).estimate(x0, now.sigma)


def test_random_labels_keep_their_number():
    drawn = ABLATIONS["random_label"].relabel(LABELS, torch.Generator().manual_seed(0))
    assert drawn.sum(dim=1).tolist() == [2, 2]
    assert torch.equal(FULL.relabel(LABELS, torch.Generator()), LABELS)


def test_unknown_rows_and_architectures_are_refused():
    with pytest.raises(ValueError, match="plain_adapter"):
        ablation("everything")
    with pytest.raises(ValueError, match="UniformRouter"):
        build("Everything", SMALL)
    assert isinstance(ABLATIONS["no_pde"].laws, partial)
