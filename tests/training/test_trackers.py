"""Rows of the log in accelerate's trackers: a local one of its GeneralTracker class stands for wandb's."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.first_frame import FirstFrame
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.data.batches import Batch
from latent_physics.training.loop import boards
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.validation import moved, pinned
from latent_physics.training.tasks.finetune import FinetuneConfig, check

BEGUN: list = []


@pytest.fixture
def local(monkeypatch):
    """accelerate's "wandb" is a tracker that keeps what it is given."""
    from accelerate import tracking
    from accelerate.utils import LoggerType

    class Local(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "wandb", False, True

        def __init__(self, project: str, **settings) -> None:
            super().__init__()
            self.project, self.settings, self.rows, self.done = project, settings, [], False
            BEGUN.append(self)

        @property
        def tracker(self):
            return self.rows

        def start(self) -> None:
            pass

        def store_init_configuration(self, values) -> None:
            self.values = values

        def log(self, values, step=None, **more) -> None:
            self.rows.append((step, values))

        def finish(self) -> None:
            self.done = True

    BEGUN.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Local)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    return BEGUN


def go(folder, data, steps: int) -> None:
    run = tiny_run.make_run(folder, data, steps=steps, log_with=["wandb"], tensorboard=False)
    train(run, progress=ProgressLine("test", io.StringIO()))


def test_every_row_of_the_log_is_shown_and_a_resumed_run_goes_on_under_its_name(local, tmp_path):
    data = tiny_run.clips(tmp_path / "clips")
    go(tmp_path / "run", data, 3)
    go(tmp_path / "run", data, 5)
    first, second = local
    assert first.project == "latent-physics"
    assert first.settings["name"] == second.settings["name"] == (tmp_path / "run/tracker.txt").read_text()
    assert first.settings["resume"] == "allow"
    assert first.done
    assert second.done
    assert first.values["trainer.steps"] == 3
    assert all(boards.is_plain(value) for value in first.values.values())
    shown = dict(first.rows + second.rows)
    assert list(shown) == [1, 2, 3, 4, 5]
    for row in read_log(tmp_path / "run/log.csv"):
        expected = {boards.title(name): value for name, value in row.items() if name != "step"}
        assert shown[row["step"]] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert "validation/denoise" in shown[3]


def test_two_runs_have_two_names(tmp_path):
    (tmp_path / "a/run").mkdir(parents=True)
    (tmp_path / "b/run").mkdir(parents=True)
    names = {boards.run_name(tmp_path / part / "run", main=True) for part in "ab"}
    assert len(names) == 2
    assert all(name.startswith("run-") for name in names)


def test_a_tracker_that_is_not_installed_or_known_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="log_with names trackio, which is not installed: pip install"):
        check(FinetuneConfig(data=tmp_path, trainer=TrainerConfig(log_with=["trackio"])))
    with pytest.raises(TrainingError, match="log_with is 'neptune'; it must be one of 'wandb' or 'trackio'"):
        check(FinetuneConfig(data=tmp_path, trainer=TrainerConfig(log_with=["neptune"])))


def test_every_tensor_of_a_batch_is_pinned_for_a_gpu_and_none_elsewhere(monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: seen.append(value) or value.clone())
    first = FirstFrame(latent=torch.zeros(1), given=torch.zeros(2))
    batch = Batch(
        names=["a"], latent=torch.ones(3), tokens=torch.ones(4), mask=torch.ones(5),
        features={"key": {"features": torch.ones(6)}}, first=first,
    )  # fmt: skip
    drawn = (batch, torch.ones(7), SimpleNamespace(to=lambda device: None))
    assert pinned(drawn, torch.device("cpu")) is drawn
    assert not seen
    found = pinned(drawn, torch.device("cuda"))
    assert sorted(value.numel() for value in seen) == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(found[0].features["key"]["features"], torch.ones(6))
    assert found[0].first.vision is None
    assert found[2] is drawn[2]
    there = moved(found[:2], torch.device("meta"))
    assert {there[0].latent.device.type, there[0].first.given.device.type, there[1].device.type} == {"meta"}
