"""The loop: losses, resuming, killing, averaging, accumulating, buckets, bad input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.tests.training.finetune.two_processes import run_two
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import DatasetError
from latent_physics.training.loop.checkpoint import fill
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import train
from latent_physics.training.tasks.denoise import drop_prompts
from safetensors.torch import load_file


def quiet() -> ProgressLine:
    return ProgressLine("test", io.StringIO())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.clips(tmp_path_factory.mktemp("clips"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_leaves_checkpoint_log_and_curves_and_changes_what_it_should(mode, data, tmp_path):
    tune = TuneConfig(mode=mode, rank=4, alpha=4)
    run = tiny_run.make_run(tmp_path, data, tune=tune, ema=0.9)
    before = {key: value.clone() for key, value in run.task.backbone.dit.state_dict().items()}
    outcome = train(run, progress=quiet())
    assert (outcome.step, outcome.stopped) == (6, False)
    after = run.task.backbone.dit.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(("lora_" in key) == (mode == "lora") for key in changed)
    assert len(changed) > 10
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "val_denoise" in rows[2]
    assert "val_denoise" not in rows[0]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    state = weights(tmp_path)
    for key, value in state.items():
        if key.startswith("model/"):
            assert (
                not torch.equal(value, state[key.replace("model/", "average/")])
                or "lora_A" in key
                or mode == "full"
            )


def test_training_learns(data, tmp_path):
    """On six clips the loss on fixed noise falls by a quarter."""
    run = tiny_run.make_run(
        tmp_path,
        data,
        tune=TuneConfig(mode="full"),
        steps=60,
        learning_rate=2e-3,
        held_out=0.2,
        validate_every=60,
        save_every=60,
    )
    train(run, progress=quiet())
    rows = read_log(tmp_path / "log.csv")
    early, late = (sum(row["denoise"] for row in part) / len(part) for part in (rows[:10], rows[-10:]))
    assert late < 0.75 * early


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9, "accumulate": 2, "prompt_dropout": 0.5, "warmup": 3, "schedule": "cosine"}]
)
def test_stopping_anywhere_changes_nothing(settings, data, tmp_path):
    """Stop after every step and go on: weights, average, moments and log equal an uninterrupted run's, bit
    for bit."""
    train(tiny_run.make_run(tmp_path / "whole", data, **settings), progress=quiet())
    for _ in range(6):
        stop = StopRequest()
        run = tiny_run.make_run(tmp_path / "parts", data, **settings)
        original = run.task.draw

        def draw(number, generator, stop=stop, original=original):
            stop.asked = True
            return original(number, generator)

        run.task.draw = draw
        outcome = train(run, stop=stop, progress=quiet())
    assert outcome.step == 6
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    drop = {"seconds"}
    logs = [
        [{k: v for k, v in row.items() if k not in drop} for row in read_log(tmp_path / name / "log.csv")]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_accumulation_sees_the_same_clips_as_a_larger_batch(data, tmp_path):
    """Two micro-batches of one clip give the gradient of one batch of the same two clips with the same
    draws."""
    run = tiny_run.make_run(
        tmp_path / "a", data, tune=TuneConfig(rank=4), steps=1, batch=1, accumulate=2, held_out=0
    )
    parts = [run.task.draw(number, torch.Generator().manual_seed(number)) for number in (0, 1)]
    run.task.draw = lambda number, generator: parts[number]
    train(run, progress=quiet())
    both = tiny_run.make_run(tmp_path / "b", data, tune=TuneConfig(rank=4), steps=1, batch=2, held_out=0)
    names = [entry.path.name for entry in both.task.clips.entries]
    whole = both.task.clips.read([names.index(part[0].names[0]) for part in parts])
    joined = (torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts]))
    both.task.draw = lambda number, generator: (whole, *joined)
    train(both, progress=quiet())
    one, other = (read_log(tmp_path / name / "log.csv")[0] for name in "ab")
    for name in ("loss", "denoise", "gradient"):
        assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_buckets_never_mix_sizes_and_every_clip_is_seen(tmp_path):
    folder = tiny_run.clips(tmp_path, shapes=[(3, 4, 4)] * 3 + [(2, 4, 6)] * 2)
    clips = TrainingClips(folder, batch=2, seed=1)
    for epoch in range(3):
        batches = [clips.chosen(number) for number in range(3 * epoch, 3 * epoch + 3)]
        assert {index for batch in batches for index in batch} == set(range(5))
        for batch in batches:
            assert len({clips.entries[index].shape for index in batch}) == 1
    again = TrainingClips(folder, batch=2, seed=1)
    assert [again.chosen(number) for number in (7, 2, 5)] == [clips.chosen(number) for number in (7, 2, 5)]
    assert "3 of 3x4x4, 2 of 2x4x6" in clips.describe().replace(
        "2 of 2x4x6, 3 of 3x4x4", "3 of 3x4x4, 2 of 2x4x6"
    )


def test_dropped_prompts_become_the_empty_one(data):
    batch = TrainingClips(data, batch=2, seed=0).read([0, 1])
    kept = batch.tokens[1].clone()
    null = torch.randn(7, tiny_run.WIDTH)
    drop_prompts(batch, null, torch.tensor([True, False]))
    torch.testing.assert_close(batch.tokens[0], null)
    torch.testing.assert_close(batch.tokens[1, :5], kept)
    assert batch.mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]


def test_a_run_with_other_settings_is_not_continued(data, tmp_path):
    train(tiny_run.make_run(tmp_path, data, steps=2), progress=quiet())
    with pytest.raises(TrainingError, match=r"rate 0\.001 -> 0\.01"):
        train(tiny_run.make_run(tmp_path, data, learning_rate=1e-2), progress=quiet())
    with pytest.raises(TrainingError, match=r"other settings \(tune.rank 4 -> 8"):
        train(
            tiny_run.make_run(tmp_path, data, tune=TuneConfig(rank=8, alpha=8, dropout=0.1)), progress=quiet()
        )
    with pytest.raises(TrainingError, match=r"'a' is \(2,\), here it is \(3,\)"):
        fill({"a": torch.zeros(3)}, {"a": torch.zeros(2)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(TrainingError, match="2 clips a step, this one has 4"):
        train(tiny_run.make_run(tmp_path, data, accumulate=2), progress=quiet())
    outcome = train(tiny_run.make_run(tmp_path, data, steps=3), progress=quiet())
    assert outcome.step == 3


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(data, tmp_path):
    run = tiny_run.make_run(tmp_path, data)
    original = run.task.draw

    def draw(number, generator):
        batch, t, eps = original(number, generator)
        return batch, t, eps * (float("nan") if number == 3 else 1)

    run.task.draw = draw
    with pytest.raises(
        TrainingError, match=r"The denoise loss is nan at step 4; the checkpoint of step 2 is safe: lower"
    ):
        train(run, progress=quiet())
    assert weights(tmp_path)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_full_disk_is_one_sentence_and_the_old_checkpoint_stays(data, tmp_path, monkeypatch):
    from latent_physics.training.loop import checkpoint

    train(tiny_run.make_run(tmp_path, data, steps=2), progress=quiet())
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(TrainingError, match=r"No space left on device; the checkpoint of step 2 is safe"):
        train(tiny_run.make_run(tmp_path, data, steps=4), progress=quiet())
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_bad_data_is_one_sentence(tmp_path, data):
    def folder(name, **kwargs):
        (tmp_path / name).mkdir()
        return tiny_run.clips(tmp_path / name, **kwargs)

    with pytest.raises(DatasetError, match="is not a folder"):
        TrainingClips(tmp_path / "none", batch=1, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no cached clip"):
        TrainingClips(tmp_path / "empty", batch=1, seed=0)
    with pytest.raises(DatasetError, match="--tokens"):
        TrainingClips(folder("bare", tokens=False), batch=1, seed=0).read([0])
    with pytest.raises(DatasetError, match="leaves none to train on"):
        TrainingClips(folder("one", shapes=[(3, 4, 4)]), batch=1, seed=0, held_out=0.1)
    mixed = folder("mixed", shapes=[(3, 4, 4)])
    tiny_run.clips(mixed, shapes=[(3, 4, 4)] * 2, latent_space="wan2.1")
    (mixed / "clip0.safetensors").replace(mixed / "kept.safetensors")
    tiny_run.clips(mixed, shapes=[(3, 4, 4)])
    with pytest.raises(DatasetError, match="mixes latent spaces"):
        TrainingClips(mixed, batch=1, seed=0)
    with pytest.raises(TrainingError, match="latent space toy, the backbone's is wan2"):
        tiny_run.make_run(tmp_path / "out", data, family="wan2.1")
    broken = folder("broken")
    (broken / "clip1.safetensors").write_bytes(b"")
    with pytest.raises(DatasetError, match="run the cache command again"):
        TrainingClips(broken, batch=1, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"ema": 1.0}, "below 1"),
        ({"batch": 0}, "batch is 0"),
        ({"beta1": -0.1}, "beta1 is -0.1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; it must be at least 0"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message, data, tmp_path):
    run = tiny_run.make_run(tmp_path, data)
    for key, value in settings.items():
        setattr(run.config, key, value)
    with pytest.raises(TrainingError, match=message):
        train(run)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_bad_loras_are_one_sentence():
    with pytest.raises(TrainingError, match="ends in 'to_z'; its layers are named like"):
        attach(tiny_run.backbone(), TuneConfig(targets="to_q, to_z"))
    with pytest.raises(TrainingError, match="rank is 0"):
        attach(tiny_run.backbone(), TuneConfig(rank=0))


def test_gradient_checkpointing_and_bf16_train_too(data, tmp_path):
    plain = tiny_run.make_run(tmp_path / "plain", data, steps=2, tune=TuneConfig(rank=4))
    train(plain, progress=quiet())
    lean = tiny_run.make_run(tmp_path / "lean", data, steps=2, tune=TuneConfig(rank=4))
    lean.task.backbone.dit.enable_gradient_checkpointing()
    train(lean, progress=quiet())
    for key, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(value, weights(tmp_path / "lean")[key], rtol=1e-4, atol=1e-6)
    half = tiny_run.make_run(tmp_path / "half", data, steps=2, tune=TuneConfig(rank=4), precision="bf16")
    half.task.backbone.dit.to(torch.bfloat16)
    for value in (value for value in half.task.backbone.dit.parameters() if value.requires_grad):
        value.data = value.data.float()
    half.task.backbone.dtype = torch.bfloat16
    train(half, progress=quiet())
    assert all(
        value.dtype == torch.float32
        for key, value in weights(tmp_path / "half").items()
        if key.startswith("model/")
    )


def test_two_processes_train_one_model(data, tmp_path):
    """Two processes with a clip each take the steps of one process with two micro-batches."""
    code = """
import sys
from pathlib import Path
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.loop.loop import train
run = tiny_run.make_run(Path(sys.argv[1]), Path(sys.argv[2]), steps=3, batch=1, tune=tiny_run.TuneConfig(rank=4))
train(run)
assert run.accelerator.num_processes == 2, run.accelerator.num_processes
print(f"process {run.accelerator.process_index}\\n", end="", flush=True)
"""
    said = run_two(tmp_path / "two.py", code, tmp_path / "two", data)
    assert {"process 0", "process 1"} <= set(said.splitlines())
    train(
        tiny_run.make_run(tmp_path / "one", data, steps=3, batch=1, accumulate=2, tune=TuneConfig(rank=4)),
        progress=quiet(),
    )
    logs = [read_log(tmp_path / name / "log.csv") for name in ("one", "two")]
    for one, two in zip(*logs):
        for name in ("denoise", "gradient"):
            assert one[name] == pytest.approx(two[name], rel=2e-3)
