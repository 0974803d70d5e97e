"""Noise ranges and distributions, loss weights, and what two experts learn."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.task import Run
from latent_physics.training.tasks.denoise import DenoisingTask
from latent_physics.training.tasks.experts import expert_of, finetune_experts
from latent_physics.training.tasks.finetune import FinetuneConfig
from latent_physics.training.tasks.finetune import check as check_finetune
from latent_physics.training.tasks.noise import PRESETS, NoiseConfig, Times, resolved


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def wan():
    return tiny_run.backbone()


@pytest.fixture(scope="module")
def cog():
    return tiny_run.backbone("cogvideox")


@pytest.mark.parametrize("family", ["wan", "cog"])
def test_without_settings_the_familys_own_times_are_drawn(family, request):
    backbone = request.getfixturevalue(family)
    assert torch.equal(Times(backbone).draw(64, seeded()), backbone.sample_t(64, seeded()))


def test_sigmoid_with_the_familys_shift_is_wans_own_distribution(wan):
    """diffusers' density and our formula draw the same numbers."""
    found = Times(wan, NoiseConfig(timestep_sampling="sigmoid")).draw(64, seeded())
    assert torch.allclose(found, wan.sample_t(64, seeded()))


@pytest.mark.parametrize("scheme", ["uniform", "logit_normal", "sigmoid", "mode"])
def test_distributions_have_the_means_of_their_formulas(scheme, wan):
    """Integrals over each density's definition, shift 1."""
    config = NoiseConfig(timestep_sampling=scheme, logit_mean=0.5, logit_std=0.8, shift=1.0)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    normal = math.sqrt(2) * torch.erfinv(2 * grid - 1)
    expected = {
        "uniform": grid,
        "logit_normal": (0.5 + 0.8 * normal).sigmoid(),
        "sigmoid": normal.sigmoid(),
        "mode": 1 - grid - 1.29 * ((math.pi * grid / 2).cos() ** 2 - 1 + grid),
    }[scheme].mean()
    found = Times(wan, config).draw(40_000, seeded()).double().mean()
    assert abs(found - expected) < 0.006


def test_shift_moves_odds_of_noise_by_its_factor(wan):
    """sigma = s u / (1 + (s - 1) u) is the same as odds times s."""
    plain, shifted = (
        Times(wan, NoiseConfig(timestep_sampling="uniform", shift=shift)).draw(64, seeded()).double()
        for shift in (1.0, 5.0)
    )
    odds = 5 * plain / (1 - plain)
    assert torch.allclose(shifted, odds / (1 + odds), atol=1e-6)


@pytest.mark.parametrize("family", ["wan", "cog"])
def test_times_stay_in_their_range_and_keep_the_distributions_shape(family, request):
    backbone = request.getfixturevalue(family)
    times = Times(backbone, NoiseConfig(min_t=0.4, max_t=0.7))
    found = times.share(times.draw(20_000, seeded()))
    assert found.min() >= 0.4
    assert found.max() <= 0.7
    everything = times.share(backbone.sample_t(200_000, seeded(1)))
    inside = everything[(everything >= 0.4) & (everything <= 0.7)]
    assert abs(found.mean() - inside.mean()) < 0.005


def test_presets_divide_the_noise_between_the_experts():
    for kind in ("t2v", "i2v"):
        high, low = (resolved(NoiseConfig(noise_preset=f"wan2.2-{kind}-{end}")) for end in ("high", "low"))
        assert high.min_t == low.max_t == {"t2v": 0.875, "i2v": 0.9}[kind]
        assert (high.max_t, low.min_t) == (1.0, 0.0)
    assert resolved(NoiseConfig(noise_preset="wan2.1-480p", shift=2.0)).shift == 2.0
    assert all(resolved(NoiseConfig(noise_preset=name)).shift for name in PRESETS if name != "none")


def test_min_snr_is_the_definitions_ratio(cog):
    """min(SNR, 5) / (SNR + 1) in float64, from alpha_bar's own definition."""
    t = torch.tensor([0, 300, 700, 998])
    alpha = cog.alpha_bar[t]
    snr = alpha / (1 - alpha)
    found = Times(cog, NoiseConfig(loss_weighting="min_snr")).weight(t).double()
    assert torch.allclose(found, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1), rtol=1e-3)


def test_hubers_error_is_torchs_at_the_squares_scale(wan):
    out, target = torch.randn(2, 16, 3, 4, 4) * 2, torch.randn(2, 16, 3, 4, 4)
    found = Times(wan, NoiseConfig(huber=0.7)).error(out, target)
    expected = 2 * torch.nn.functional.huber_loss(out, target, reduction="none", delta=0.7).mean((1, 2, 3, 4))
    assert torch.allclose(found, expected)
    assert torch.allclose(Times(wan).error(out, target), (out - target).square().mean((1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("noise", "backbone", "says"),
    [
        ({"min_t": 0.8, "max_t": 0.5}, "wan", "min_t is 0.8 and max_t 0.5; min_t must be the smaller"),
        ({"noise_preset": "wan2.2-t2v-high", "max_t": 0.5}, "wan", "min_t must be the smaller"),
        ({"shift": 3.0}, "cogvideox", "shift is 3"),
        ({"loss_weighting": "min_snr"}, "wan", "use none"),
        ({"min_t": -0.1}, "wan", "min_t is -0.1; it must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_loaded(noise, backbone, says, tmp_path):
    config = FinetuneConfig(data=tmp_path, backbone=backbone, noise=NoiseConfig(**noise))
    with pytest.raises(TrainingError, match=says):
        check_finetune(config)


def test_a_range_that_is_never_drawn_is_said(wan):
    with pytest.raises(TrainingError, match="no time falls between"):
        Times(wan, NoiseConfig(min_t=0.0, max_t=1e-9)).draw(1, seeded())


def test_validation_splits_the_error_by_noise(tmp_path):
    data = tiny_run.clips(tmp_path / "data", shapes=((3, 4, 4),) * 12)
    train(
        tiny_run.make_run(tmp_path / "run", data, held_out=0.5), progress=ProgressLine("test", io.StringIO())
    )
    row = read_log(tmp_path / "run" / "log.csv")[-1]
    found = {name: value for name, value in row.items() if name.startswith("val_denoise ")}
    assert found
    assert min(found.values()) <= row["val_denoise"] <= max(found.values())


def test_each_expert_learns_its_range_only(tmp_path):
    """Two LoRAs of one toy model on the two sides of 0.6: each lowers the error on its own side, and by more
    than the other one does there."""
    data = tiny_run.clips(tmp_path / "data", shapes=((3, 4, 4),) * 4)
    errors = {side: trained_errors(tmp_path, data, side) for side in ("none", "high", "low")}
    for side, other in (("high", "low"), ("low", "high")):
        assert errors[side][side] < 0.8 * errors["none"][side]
        assert errors[side][side] < 0.95 * errors[other][side]


def trained_errors(folder, data, side: str) -> dict[str, float]:
    """Error on the training clips in each range after training in one of them ("none": before it)."""
    made = tiny_run.backbone()
    attach(made, TuneConfig(rank=8, alpha=8), 0)
    clips = TrainingClips(data, batch=4, seed=0)
    ranges = {"high": NoiseConfig(min_t=0.6), "low": NoiseConfig(max_t=0.6)}
    config = TrainerConfig(
        steps=60, batch=4, held_out=0.0, tensorboard=False, save_every=60, learning_rate=1e-2
    )
    task = DenoisingTask(made, clips, noise=ranges.get(side, NoiseConfig()))
    if side != "none":
        train(Run(config=config, task=task, out=folder / side), progress=ProgressLine("test", io.StringIO()))
    batch, found = clips.read(range(4)), {}
    for name, noise in ranges.items():
        times, generator = Times(made, noise), seeded(9)
        with torch.no_grad():
            losses = [
                task.module(
                    batch, times.draw(4, generator), torch.randn(batch.latent.shape, generator=generator)
                )
                for _ in range(16)
            ]
        found[name] = sum(loss["denoise"].item() for loss in losses) / len(losses)
    return found


def experts(tmp_path, **changes) -> FinetuneConfig:
    config = TrainerConfig(steps=1, held_out=0.0, tensorboard=False)
    settings = {"noise": NoiseConfig(noise_preset="wan2.2-t2v-high"), "tune": TuneConfig(rank=2, alpha=2)}
    return FinetuneConfig(recipe="both-high", out=tmp_path / "run", trainer=config, **settings | changes)


def test_both_experts_come_out_of_one_command(tmp_path):
    high, low = (tiny.native_files(tmp_path / name)["dit"] for name in ("high_file", "low_file"))
    data = tiny_run.clips(tmp_path / "data", latent_space="wan2.1", width=4096)
    outcome, _ = finetune_experts(experts(tmp_path, data=data, dit=high, dit_low=low))
    assert not outcome.stopped
    found = sorted(
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").glob("*/*lora*")
    )
    assert found == ["high/both-high-lora.safetensors", "low/both-low-lora.safetensors"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"dit": None}, "it goes with --dit"), ({"noise": NoiseConfig()}, "which names their boundary")],
)
def test_experts_without_a_file_or_a_boundary_are_refused(changes, says, tmp_path):
    with pytest.raises(TrainingError, match=says):
        finetune_experts(experts(tmp_path, **{"dit": tmp_path / "a", "dit_low": tmp_path / "b"} | changes))


def test_the_second_expert_needs_no_masks_and_both_files_are_looked_at_first(tmp_path):
    """The low-noise one reads the clips that the other cached with their masks; a file that is none ends the
    command before the high-noise one is trained."""
    config = experts(
        tmp_path, dit=tiny.native_files(tmp_path / "high")["dit"], dit_low=tmp_path / "no.safetensors",
        videos=[tmp_path], masks=tmp_path, vae=tmp_path / "vae", text=tmp_path / "text",
        noise=NoiseConfig(noise_preset="wan2.2-t2v-high", mask_min_value=0.1),
    )  # fmt: skip
    low = expert_of(config, "low")
    assert (low.data, low.masks, low.dit) == (tmp_path / "run" / "high" / "cache", None, config.dit_low)
    assert low.noise.mask_min_value == 0.1
    check_finetune(replace(low, dit=config.dit))
    with pytest.raises(TrainingError, match=r"no\.safetensors is not a readable safetensors file"):
        finetune_experts(config)
    assert not (tmp_path / "run").exists()
