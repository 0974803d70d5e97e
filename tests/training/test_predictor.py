"""Predictor training: the loss it descends, the noise it sees, and that stopping, killing and a full disk
change nothing."""

from __future__ import annotations

import csv
import itertools
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods.lamo import load_predictor, predictor_loss
from latent_physics.methods.weights import read_info
from latent_physics.training import console
from latent_physics.training.commands.predictor import main
from latent_physics.training.console import StopRequest, TrainingError
from latent_physics.training.data.clip import ClipInfo, DatasetError, write_clip
from latent_physics.training.data.clips import Clips
from latent_physics.training.data.pairs import Pairs, PairSet
from latent_physics.training.loop import loop
from latent_physics.training.loop.log import Log, _running_mean, read_log
from latent_physics.training.settings import check
from latent_physics.training.tasks import predictor
from latent_physics.training.tasks.predictor import (
    RECIPES,
    PredictorConfig,
    PredictorTraining,
    augment,
    noise_levels,
    train_predictor,
)
from PIL import Image

TINY = PredictorConfig(
    width=8,
    blocks=1,
    batch=4,
    steps=12,
    learning_rate=1e-2,
    warmup=2,
    ema=0.9,
    every=5,
    lag=2,
    held_out=0.25,
    device="cpu",
    shift=1.0,
)


def moving(count: int = 8, frames: int = 7, channels: int = 3, seed: int = 0) -> list[torch.Tensor]:
    """Clips of a bump that moves by one position a frame, `C T 6 6`; the direction is the first channel's
    sign."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for clip in range(count):
        way = 1 if clip % 2 else -1
        start = torch.randn(channels, 6, 6, generator=generator)
        start[0] = start[0].abs() * way
        clips.append(torch.stack([start.roll(way * step, dims=2) for step in range(frames)], dim=1))
    return clips


def dataset(**changes) -> Clips:
    clips = moving(**changes)
    generator = torch.Generator().manual_seed(1)
    return Clips.from_tensors(clips, torch.randn(len(clips), 5, generator=generator))


def save_folder(folder: Path, clips: Clips) -> Path:
    folder.mkdir()
    for index in range(len(clips)):
        info = ClipInfo(
            source=f"{index}.mp4", source_hash=f"hash{index}", key="k", caption="c", caption_from="file",
            window=0, last=True,
            start=0.0, frames=25, width=48, height=48, fps=8.0,
        )  # fmt: skip
        write_clip(
            folder / f"clip-{index}.safetensors", clips.latents[index], clips.conds[index], info, "toy"
        )
    return folder


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_predictor(path)[0].state_dict()


# -- pairs ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    lag=st.integers(1, 3),
    order=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_pairs_are_all_there_and_right(lengths, lag, order, seed):
    """A latent whose value is 100 clip + frame, so that every pair says where it came from."""
    latents = [
        torch.full((1, n, 1, 1), 100.0 * c) + torch.arange(n).view(1, n, 1, 1) for c, n in enumerate(lengths)
    ]
    clips = Clips.from_tensors(latents, torch.arange(len(lengths))[:, None].float())
    expected = {
        (100 * c + i, 100 * c + i + lag) for c, n in enumerate(lengths) for i in range(order - 1, n - lag)
    }
    if not expected:
        with pytest.raises(DatasetError, match=f"need at least {lag + order}"):
            PairSet(clips, range(len(lengths)), lag, order)
        return
    pairs = PairSet(clips, range(len(lengths)), lag, order)
    assert len(pairs) == len(expected)
    batch = pairs.batch(range(len(pairs)))
    assert {(int(a), int(b)) for a, b in zip(batch.frame, batch.after)} == expected
    assert [int(f) // 100 for f in batch.frame] == [int(c) for c in batch.cond]
    if order == 2:
        assert (batch.before == batch.frame - 1).all()
    else:
        assert batch.before is None
    epoch = [int(f) for step in range(len(pairs)) for f in pairs.at_step(step, 1, seed).frame]
    assert sorted(epoch) == sorted(a for a, _ in expected)  # one epoch sees each pair once
    fresh = PairSet(clips, range(len(lengths)), lag, order)
    assert torch.equal(
        fresh.at_step(3, 2, seed).frame, pairs.at_step(3, 2, seed).frame
    )  # a function of (step, seed)


def test_windows_of_one_film_stay_on_one_side():
    clips = dataset()
    clips.groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    for seed in range(10):
        train, held = clips.split(0.25, seed)
        assert sorted(train + held) == list(range(8))
        assert len(held) == 2
        assert len({clips.groups[i] for i in held}) == 1
    assert clips.split(0.25, 3) == clips.split(0.25, 3)
    assert len({tuple(clips.split(0.25, seed)[1]) for seed in range(20)}) > 1
    assert clips.split(0, 0)[1] == []


# -- augmentation and loss -----------------------------------------------------------------------------------


def test_augmentation_is_the_papers():
    count = 4000
    zero = torch.zeros(count, 1, 4, 4)
    levels = torch.tensor([0.25, 0.75])
    config = replace(TINY, noise_probability=0.5, prompt_dropout=0.2, order=2)
    pairs = Pairs(frame=zero + 3, before=zero - 1, after=zero, cond=torch.zeros(count, 1))
    frame, before, dropped = augment(pairs, config, levels, torch.Generator().manual_seed(0))
    noise, noise_before = frame - 3, before + 1  # the signal is not scaled down
    spread = noise.flatten(1).std(dim=1)
    clean = spread == 0
    assert clean.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (noise_before[clean] == 0).all()  # both frames are noised, or none
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.03)
    power = noise[~clean].square().mean().item()
    assert power == pytest.approx((0.25**2 + 0.75**2) / 2, rel=0.05)  # sigma uniform over the levels
    low = noise[~clean].flatten(1).std(dim=1) < 0.5
    assert low.float().mean() == pytest.approx(0.5, abs=0.05)
    same_level = noise_before[~clean].flatten(1).std(dim=1)
    assert np.corrcoef(spread[~clean], same_level)[0, 1] > 0.7  # one sigma for both frames
    assert abs((noise * noise_before).mean()) < 0.02  # with noise of its own
    off = augment(
        pairs, replace(config, noise_probability=0.0, prompt_dropout=0.0), levels, torch.Generator()
    )
    assert torch.equal(off[0], pairs.frame)
    assert not off[2].any()


def test_noise_levels_are_the_schedulers():
    import diffusers

    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(noise_levels("wan2.1", 3.0), flow.sigmas.flip(0).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noise_levels("toy", 1.0), torch.arange(1, 1001) / 1000)
    for space, shift in (("cogvideox", 3.0), ("cogvideox1.5", 1.0)):
        ddim = diffusers.CogVideoXDDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            snr_shift_scale=shift,
            rescale_betas_zero_snr=True,
        )
        expected = (1 - ddim.alphas_cumprod).clamp(min=0).sqrt().float()
        torch.testing.assert_close(noise_levels(space), expected, rtol=1e-4, atol=1e-4)


def test_one_step_is_adamw_on_eq_7():
    """The first step, done by hand with autograd: same batch, no noise, no dropped prompt."""
    config = replace(
        TINY,
        noise_probability=0.0,
        prompt_dropout=0.0,
        max_grad_norm=1e9,
        ema=0.0,
        warmup=1,
        schedule="constant",
    )
    training = PredictorTraining(dataset(), config)
    twin = PredictorTraining(dataset(), config).task
    pairs = training.task.pairs.at_step(0, config.batch, config.seed)
    training.run(lambda report: False)
    assert training.step == 1
    optimizer = torch.optim.AdamW(
        twin.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    predicted, change = twin.model(pairs.frame, pairs.cond), pairs.after - pairs.frame
    predictor_loss(predicted, change).backward()
    optimizer.step()
    ours = training.averaged().state_dict()  # ema 0: the weights themselves
    for name, theirs in twin.model.state_dict().items():
        torch.testing.assert_close(ours[name], theirs, msg=name)


def test_dropped_prompts_reach_the_null_prompt_and_only_they():
    for probability, moved in ((1.0, True), (0.0, False)):
        training = PredictorTraining(dataset(), replace(TINY, prompt_dropout=probability, weight_decay=0.0))
        training.run(lambda report: report.step < 4)
        assert bool(training.task.model.null_prompt.abs().sum() > 0) is moved


def unexplained_variance(prediction: torch.Tensor, change: torch.Tensor) -> float:
    """MSE(f, D) / Var(D), both `N C H W`; inf where D does not vary."""
    spread = predictor.variance(change)
    return (prediction - change).square().mean().item() / spread if spread > 1e-12 else math.inf


def test_unexplained_variance():
    change = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + torch.arange(3).view(
        1, 3, 1, 1
    )
    means = change.mean(dim=(0, 2, 3), keepdim=True).expand_as(change)
    assert unexplained_variance(change, change) == 0
    assert unexplained_variance(means, change) == pytest.approx(1)
    assert unexplained_variance((change + means) / 2, change) == pytest.approx(0.25, rel=1e-5)
    assert unexplained_variance(change, torch.ones_like(change)) == math.inf


@pytest.mark.parametrize("order", [1, 2])
def test_held_out_figures_are_those_of_each_noise_level_and_of_each_pair(order):
    """Against the network asked by hand, on the pairs that both orders have: i from 1."""
    training = PredictorTraining(dataset(), replace(TINY, order=order, steps=4, every=4, batch=7))
    training.run()
    task, model, found = training.task, training.averaged(), training.loop.found
    held, numbers = task.held, task.numbers
    change = held.after - held.frame
    assert numbers.min() == 1

    def asked(frame, before, part=slice(None)):
        return model(frame[part], held.cond[part], None if order == 1 else frame[part] - before[part])

    clean = asked(held.frame, held.before)
    assert found["unexplained"] == pytest.approx(unexplained_variance(clean, change), rel=1e-4)
    for i in numbers.unique().tolist():
        part = numbers == i
        expected = unexplained_variance(clean[part], change[part])
        assert found[f"unexplained_pair_{i}"] == pytest.approx(expected, rel=1e-4)
    noisy = [found[f"unexplained_{level}"] for level in ("0.3", "0.6", "0.9")]
    assert found["unexplained_noisy"] == pytest.approx(sum(noisy) / 3)
    rough = []
    for seed in range(20):  # other noise, so the same figure up to chance
        torch.manual_seed(seed)
        frame = held.frame + 0.6 * torch.randn(held.frame.shape)
        before = None if order == 1 else held.before + 0.6 * torch.randn(held.frame.shape)
        rough.append(unexplained_variance(asked(frame, before), change))
    assert found["unexplained_0.6"] == pytest.approx(sum(rough) / 20, rel=0.05)
    assert recipe_figures(training) == {name: value for name, value in found.items() if name != "val_loss"}


def recipe_figures(training):
    return {name: value for name, value in training.recipe().items() if str(name).startswith("unexplained")}


def test_orders_are_measured_on_the_same_pairs():
    one, two = (PredictorTraining(dataset(), replace(TINY, order=order)).task for order in (1, 2))
    assert torch.equal(one.numbers, two.numbers)
    assert torch.equal(one.held.after, two.held.after)


def test_it_learns_and_order_2_sees_the_direction():
    """Bumps of either direction that look alike: one frame cannot tell them apart, two can."""
    generator = torch.Generator().manual_seed(3)
    clips = []
    for clip in range(24):
        start = torch.randn(2, 6, 6, generator=generator)
        clips.append(
            torch.stack([start.roll((1 if clip % 2 else -1) * step, dims=2) for step in range(7)], dim=1)
        )
    data = Clips.from_tensors(clips, cond_dim=2)
    config = replace(
        TINY, width=24, blocks=2, steps=250, batch=16, lag=1, learning_rate=5e-3, every=250, ema=0.95
    )
    config = replace(config, noise_probability=0.0, weight_decay=0.0)
    result = {}
    for order in (1, 2):
        training = PredictorTraining(data, replace(config, order=order))
        training.run()
        start, end = training.log.rows[0]["unexplained"], training.loop.found["unexplained"]
        assert start == pytest.approx(1, abs=0.02)  # it starts as the constant zero
        result[order] = end
    assert result[1] < 0.9
    assert result[2] < 0.6 * result[1]


# -- the run -------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(tmp_path):
    reports = []
    data = dataset()
    model = train_predictor(data, TINY, reports.append, folder=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        ["checkpoint.safetensors", "curves.png", "log.csv", "motion_predictor.safetensors"]
    )
    loaded, info = load_predictor(tmp_path / "run" / "motion_predictor.safetensors", latent_space="toy")
    assert info.kind == "motion_predictor"
    assert info.config == {
        "channels": 3,
        "cond_dim": 5,
        "width": 8,
        "blocks": 1,
        "order": 1,
        "prompted": True,
        "lag": 2,
    }
    assert info.recipe["step"] == 12
    assert 0 < info.recipe["unexplained"] < 2
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report.step for report in reports] == list(range(1, 13))
    assert reports[-1].fraction == 1
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(13))
    assert [row["step"] for row in rows if row["unexplained"]] == ["0", "5", "10", "12"]
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.size[0] > 600
        assert len(image.convert("RGB").getcolors(10**6)) > 20  # lines and letters


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_that_generalise_best_are_kept(keep):
    """A learning rate that wrecks the weights after a good start."""
    seen = {}
    training = PredictorTraining(
        dataset(), replace(TINY, keep=keep, steps=40, every=2, ema=0.0, schedule="constant")
    )

    def wreck(report):
        if report.step % 2 == 0:
            seen[report.step] = report.found["unexplained_noisy"]
        if report.step == 20:
            training.loop.stepper.optimizer.param_groups[0]["base"] = 1.0

    training.run(wreck)
    best = min(seen, key=seen.get)
    assert seen[40] > seen[best]
    recipe = training.recipe()  # what the file's metadata says
    assert recipe["kept_step"] == (best if keep == "best" else 40)
    assert recipe["unexplained_noisy"] == pytest.approx(seen[best if keep == "best" else 40])
    model, held = training.averaged(), training.task.held
    measured = unexplained_variance(model(held.frame, held.cond), held.after - held.frame)
    assert measured == pytest.approx(recipe["unexplained"], rel=1e-5)


def test_the_average_is_what_is_saved_and_it_is_an_average():
    training = PredictorTraining(dataset(), replace(TINY, ema=0.5, keep="last"))
    expected = {key: value.clone() for key, value in training.task.model.state_dict().items()}

    def follow(report):
        decay = min(0.5, report.step / (9 + report.step))
        for key, value in training.task.model.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value
        return report.step < 6

    training.run(follow)
    for key, value in training.averaged().state_dict().items():
        torch.testing.assert_close(value, expected[key])
        assert not torch.equal(value, training.task.model.state_dict()[key]) or value.abs().sum() == 0


@pytest.mark.parametrize("order", [1, 2])
def test_stopping_and_going_on_gives_the_same_weights(tmp_path, order):
    config = replace(TINY, order=order)
    train_predictor(dataset(), config, folder=tmp_path / "whole")
    stopped = train_predictor(dataset(), config, lambda report: report.step < 7, folder=tmp_path / "parts")
    assert stopped.width == 8
    assert read_info(tmp_path / "parts" / "motion_predictor.safetensors").recipe["step"] == 7
    train_predictor(dataset(), config, folder=tmp_path / "parts")
    whole, parts = (
        weights_of(tmp_path / name / "motion_predictor.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    rows = []
    for name in ("whole", "parts"):
        log = read_log(tmp_path / name / "log.csv")
        rows.append([{key: value for key, value in row.items() if key != "seconds"} for row in log])
    assert rows[0] == rows[1]


def test_an_exception_of_the_observer_is_passed_on_after_saving(tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(report):
        if report.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        train_predictor(dataset(), TINY, cancel, folder=tmp_path)
    assert PredictorTraining(dataset(), TINY, tmp_path).step == 3


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    def interrupt(report):
        if report.step == 4:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        train_predictor(dataset(), TINY, interrupt, folder=tmp_path, stop=stop)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):  # the second one does not wait
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert PredictorTraining(dataset(), TINY, tmp_path).step in (4, 5)


def test_a_time_budget_ends_the_run_and_lowers_the_learning_rate(tmp_path, monkeypatch):
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(
        loop.time, "monotonic", lambda: next(ticks)
    )  # a clock on which each step takes half a second
    config = replace(TINY, steps=10**6, minutes=10 / 60, every=10**6)
    training = PredictorTraining(dataset(), config, tmp_path)
    training.run()
    assert training.finished
    assert training.step == 20
    _, rates = training.log.column("rate")
    assert rates[-1] < 0.2 * max(rates)
    assert training.log.rows[-1]["unexplained"] == training.loop.found["unexplained"]  # the end is validated
    again = PredictorTraining(dataset(), config, tmp_path)
    assert again.finished  # nothing more to do


def test_more_steps_go_on_and_other_settings_do_not(tmp_path):
    train_predictor(dataset(), TINY, folder=tmp_path)
    longer = PredictorTraining(dataset(), replace(TINY, steps=15), tmp_path)
    assert longer.step == 12
    longer.run()
    assert longer.step == 15
    with pytest.raises(
        TrainingError,
        match=r"other settings \(learning_rate 0\.01 -> 0\.02, width 8 -> 16\): give those again, or",
    ):
        PredictorTraining(dataset(), replace(TINY, width=16, learning_rate=0.02), tmp_path)
    with pytest.raises(TrainingError, match=r"the data is not what the run in .* began with"):
        PredictorTraining(dataset(count=9), TINY, tmp_path)


def test_disk_full_keeps_the_last_checkpoint(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX thing")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report):
        if report.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))

    try:
        with pytest.raises(
            TrainingError,
            match=r"Could not write checkpoint\.safetensors: .*; the checkpoint of step 5 is safe",
        ):
            train_predictor(dataset(), TINY, fill, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert PredictorTraining(dataset(), TINY, tmp_path).step == 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    train_predictor(dataset(), TINY, folder=tmp_path)
    train_predictor(dataset(), TINY, folder=tmp_path / "whole")
    whole, parts = (
        weights_of(path / "motion_predictor.safetensors") for path in (tmp_path, tmp_path / "whole")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_inside_inference_mode():
    """ComfyUI runs nodes under it; weights made there could not be trained."""
    with torch.inference_mode():
        latents = [latent.clone() for latent in moving()]
        model = train_predictor(Clips.from_tensors(latents, torch.ones(8, 5)), replace(TINY, order=2))
    assert not model.output.weight.is_inference()
    assert model.output.weight.abs().sum() > 0


def test_the_hosts_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_predictor(dataset(), replace(TINY, steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_bf16_computes_the_same_to_its_precision():
    losses = {}
    for bf16 in (False, True):
        training = PredictorTraining(dataset(), replace(TINY, bf16=bf16))
        training.run()
        losses[bf16] = training.log.column("loss")[1]
        assert all(value.dtype == torch.float32 for value in training.loop.kept().values())
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


def test_running_out_of_gpu_memory_is_one_sentence(monkeypatch):
    def too_large(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    training = PredictorTraining(dataset(), replace(TINY, held_out=0.0))
    monkeypatch.setattr(training.task.module, "predict", too_large)
    with pytest.raises(
        TrainingError, match=r"GPU's memory does not hold step 1 at batch 4; no checkpoint .*: use a smaller"
    ):
        training.run()


def test_damaged_checkpoints_are_told(tmp_path):
    train_predictor(dataset(), replace(TINY, steps=5), folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a readable safetensors file"):
        PredictorTraining(dataset(), TINY, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    training = PredictorTraining(dataset(), replace(TINY, every=3), tmp_path)
    training.run(lambda report: report.step < 4)
    with torch.no_grad():
        training.task.model.output.weight.fill_(math.nan)
    with pytest.raises(
        TrainingError, match=r"The loss is nan at step 5; the checkpoint of step 4 is safe: lower"
    ):
        training.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clips.from_tensors([]), "no latent"),
        (lambda: Clips.from_tensors([torch.zeros(3, 4, 4)]), r"shape \(3, 4, 4\); it must be C T H W"),
        (lambda: Clips.from_tensors([torch.full((1, 4, 2, 2), math.nan)]), "not finite"),
        (
            lambda: Clips.from_tensors([torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3)]),
            "one training needs one size",
        ),
        (
            lambda: Clips.from_tensors([torch.zeros(1, 4, 2, 2)] * 2, torch.zeros(3, 5)),
            "2 latents and 3 prompt embeddings",
        ),
        (
            lambda: PredictorTraining(dataset(frames=2), TINY),
            "has 2 latent frames; lag 2 and order 1 need at least 3",
        ),
        (lambda: PredictorTraining(dataset(count=1), TINY), "Of 1 clips 1 would be held out"),
        (
            lambda: train_predictor(Clips.from_tensors([torch.ones(1, 5, 2, 2)] * 4), TINY),
            "held-out clips do not move",
        ),
    ],
)
def test_data_that_cannot_be_used(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"lag": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"prompt_dropout": 1.5},
        {"minutes": 0.0},
        {"shift": -1.0},
        {"ema": 2.0},
    ],
)
def test_settings_out_of_range(change):
    ((name, value),) = change.items()
    with pytest.raises(TrainingError, match=rf"{name} is {value}; it must be"):
        PredictorTraining(dataset(), replace(TINY, **change))


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    cache = save_folder(tmp_path / "cache", dataset())
    models = tmp_path / "models" / "latent_physics" / "mine.safetensors"
    arguments = ["--cache", str(cache), "--out", str(tmp_path / "run"), "--recipe", "toy", "--device", "cpu"]
    arguments += ["--width", "8", "--blocks", "1", "--export", str(models)]
    assert main([*arguments, "--steps", "4"]) == 0
    out = capsys.readouterr().out
    assert "8 clips of toy latents, 3 x 6 x 6; 35 pairs to train on" in out
    assert "Finished: 4 steps" in out
    assert "unexplained variance of the change" in out
    assert (
        read_info(models).recipe["learning_rate"] == RECIPES["toy"].learning_rate
    )  # the recipe's own where nothing else was asked for
    assert main([*arguments, "--steps", "6"]) == 0
    assert "Going on from step 4" in capsys.readouterr().out
    assert main([*arguments, "--steps", "6", "--seed", "1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert "seed 0 -> 1" in error[-1]
    assert main([*arguments, "--steps", "2", "--seed", "1", "--fresh"]) == 0
    assert read_info(models).recipe["step"] == 2
    assert main(["--cache", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a single process on Windows")
def test_ctrl_c_on_the_command_saves_and_says_how_to_go_on(tmp_path):
    cache = save_folder(tmp_path / "cache", dataset())
    command = [sys.executable, "-m", "latent_physics.training", "predictor", "--cache", str(cache)]
    command += ["--out", str(tmp_path / "run")]
    command += ["--recipe", "toy", "--steps", "1000000", "--width", "8", "--blocks", "1", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(read_log(tmp_path / "run" / "log.csv")) < 4:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert process.returncode == 130, error
    assert "run the same command to resume" in out
    assert "Traceback" not in error
    assert read_info(tmp_path / "run" / "motion_predictor.safetensors").recipe["step"] > 0


def test_recipes():
    from latent_physics.methods.lamo import MotionFieldPredictor

    sizes = {}
    for name, config in RECIPES.items():
        with torch.device("meta"):
            model = MotionFieldPredictor(16, 4096, width=config.width, blocks=config.blocks)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        check(config)
    assert 9e6 < sizes["full"] < 12e6
    assert sizes["toy"] < 1e6


# -- run folders ---------------------------------------------------------------------------------------------


def test_log_columns_and_running_mean(tmp_path):
    log = Log(tmp_path / "log.csv", ("loss", "val"))
    for step in range(5):
        log.add(step=step, loss=step / 3, **({"val": 1.0} if step % 2 == 0 else {}))
    assert log.column("val") == ([0, 2, 4], [1, 1, 1])
    again = Log(tmp_path / "log.csv", ("loss", "val"), after=2)
    assert [row["step"] for row in again.rows] == [0, 1, 2]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert _running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert [console.clock(value) for value in (7, 185, 7385, math.inf)] == ["7s", "3:05", "2:03:05", "?"]
