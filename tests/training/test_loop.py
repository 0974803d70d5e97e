"""The one training loop, on a line fitted to points: options that every task has, each against the plain run
or a closed form."""

from __future__ import annotations

import math
import stat
import sys
import threading
from pathlib import Path

import pytest
import torch
from latent_physics.training.console import StopRequest, TrainingError
from latent_physics.training.loop.ahead import drawn_ahead, usual_ahead
from latent_physics.training.loop.config import LoopConfig
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import Loop
from latent_physics.training.loop.optim import ema_update, exchange, rate_factor
from latent_physics.training.loop.processes import OneProcess
from latent_physics.training.loop.task import ParameterGroup, Paused, Phase, Run, Task
from torch import nn


class Lines(nn.Module):
    """Two layers, so that one of them can begin to learn later; dropout draws from torch's own generator."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.drop = nn.Linear(3, 4), nn.Linear(4, 1), nn.Dropout(0.1)

    def forward(self, points):
        found = self.second(self.drop(self.first(points)))
        error = (found - points.sum(1, keepdim=True)).square().mean()
        return {"error": error, "size": found.square().mean()}


class LineTask(Task):
    names, latent_space, about = ("error", "size"), "toy", {"recipe": "line"}
    validation_count = 3

    def __init__(self, phases=(), slow_starts=0):
        self.module, self.phases, self.slow_starts, self.begun = Lines(), phases, slow_starts, []
        self.written = []

    def begin(self, phase):
        self.begun.append(phase)

    def groups(self, config):
        return [
            ParameterGroup(
                parameters=list(self.module.second.parameters()), learning_rate=config.learning_rate
            ),
            ParameterGroup(
                parameters=list(self.module.first.parameters()),
                learning_rate=config.learning_rate / 2,
                starts=self.slow_starts,
            ),
        ]

    def weights(self, step):
        return {"error": 1.0, "size": 0.1}

    def draw(self, number, generator):
        return (torch.randn(8, 3, generator=generator),)

    def draw_validation(self, place, generator):
        return (torch.randn(8, 3, generator=generator),)

    def fingerprint(self):
        return "points"

    def write(self, folder, weights, report):
        self.written.append({name: value.detach().clone() for name, value in weights.items()})


def loop(out=None, task=None, on_step=None, **settings) -> Loop:
    config = LoopConfig(
        **({"steps": 12, "learning_rate": 1e-2, "validate_every": 4, "save_every": 4} | settings)
    )
    accelerator = OneProcess(accumulate=config.accumulate)
    return Loop(
        Run(config=config, task=task or LineTask(), out=out, accelerator=accelerator, on_step=on_step)
    )


def weights(run: Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.trained().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def gone(**settings) -> dict[str, torch.Tensor]:
    run = loop(**settings)
    run.go()
    return weights(run)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_what_is_drawn_ahead_comes_in_order_once_and_not_beyond_the_end(ahead):
    drawn = []

    def draw(number):
        drawn.append(number)
        return number * number

    with drawn_ahead(draw, 3, 9, ahead) as following:
        assert [following() for _ in range(6)] == [9, 16, 25, 36, 49, 64]
    assert drawn == [3, 4, 5, 6, 7, 8]


def test_reading_ahead_changes_no_weight():
    assert same(gone(read_ahead=0, accumulate=2), gone(read_ahead=3, accumulate=2))


def test_the_schedule_is_the_written_one():
    config = LoopConfig(steps=100, warmup=10, schedule="cosine", final_share=0.2)
    assert rate_factor(config, 4, 0.04) == pytest.approx(0.5 * (0.2 + 0.4 * (1 + math.cos(0.04 * math.pi))))
    assert rate_factor(config, 99, 1.0) == pytest.approx(0.2)
    tail = LoopConfig(steps=100, schedule="cosine", final_share=0.0, tail=0.25)
    found = [rate_factor(tail, step, step / 100) for step in (0, 74, 75, 80, 100)]
    assert found == pytest.approx([1, 1, 1, 0.5 * (1 + math.cos(math.pi / 5)), 0])
    assert rate_factor(LoopConfig(warmup=0), 0, 0.0) == 1


def test_the_average_follows_its_formula_and_is_exchanged_bit_for_bit():
    average, values = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, -2.0])}
    ema_update(average, values, 0.9, step=0)
    torch.testing.assert_close(average["a"], torch.tensor([2.8, -1.6]))  # 1/10 of the old one at first
    before = average["a"].clone(), values["a"].clone()
    exchange(average, values)
    assert torch.equal(values["a"], before[0])
    exchange(average, values)
    assert torch.equal(average["a"], before[0])
    assert torch.equal(values["a"], before[1])


def test_validation_measures_the_average_and_leaves_the_weights_alone():
    plain, averaged = loop(), loop(ema=0.9)
    plain.go()
    averaged.go()
    assert same(weights(plain), weights(averaged))
    assert plain.found["val_error"] != averaged.found["val_error"]
    module = Lines().eval()
    module.load_state_dict(averaged.kept())
    points = [torch.randn(8, 3, generator=torch.Generator().manual_seed(place)) for place in range(3)]
    with torch.no_grad():
        expected = sum(module(part)["error"].item() for part in points) / 3
    assert averaged.found["val_error"] == pytest.approx(expected, rel=1e-5)


def test_the_best_weights_are_kept_over_a_stop(tmp_path):
    """A rate that wrecks the weights after step 8; the best validation before it is what is written, also
    after resuming."""

    def wreck(report):
        if report.step == 8:
            run.stepper.optimizer.param_groups[0]["base"] = 5.0
        return report.step < 10

    run = loop(tmp_path, keep="best", on_step=wreck)
    run.go()
    best, found = {name: value.clone() for name, value in run.best.items()}, run.report()
    assert found.kept_step == 8
    task = LineTask()
    again = loop(tmp_path, task, keep="best", steps=16)
    assert same(again.best, best)
    again.go()
    report = again.report()
    rows = {
        int(row["step"]): row["val_error"] for row in read_log(tmp_path / "log.csv") if "val_error" in row
    }
    assert report.kept["val_error"] == pytest.approx(min(rows.values()), rel=1e-4)
    assert same(task.written[-1], again.best)


def test_kept_checkpoints_are_those_of_their_own_steps_and_can_be_gone_on_from(tmp_path):
    """Also where no other checkpoint falls on them; one that is put in the last one's place ends the run at
    the same weights."""
    whole = loop(tmp_path, keep_every=3, accumulate=2, ema=0.5)
    whole.go()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{step:06}.safetensors" for step in (3, 6, 9, 12)]
    (tmp_path / kept[0]).replace(tmp_path / "checkpoint.safetensors")
    again = loop(tmp_path, keep_every=3, accumulate=2, ema=0.5)
    assert again.step == 3
    again.go()
    assert same(weights(whole), weights(again))
    assert same(whole.average, again.average)


def test_phases_have_optimisers_of_their_own_and_groups_begin_late(tmp_path):
    phases = (Phase(name="A", steps=3), Phase(name="B", steps=5))
    task, seen = LineTask(phases, slow_starts=2), []
    begin = {name: value.clone() for name, value in task.module.state_dict().items()}

    def watch(report):
        state = run.stepper.optimizer.state[task.module.second.weight]
        first = torch.equal(task.module.first.weight, begin["first.weight"])
        seen.append((report.step, int(state["step"]) if state else 0, first))

    run = loop(tmp_path, task, on_step=watch)
    run.go()
    assert [steps for _, steps, _ in seen] == [1, 2, 0, 1, 2, 3, 4, 5]
    assert [still for _, _, still in seen[:3]] == [True, True, False]
    assert task.begun == [0, 1]
    assert [row["phase"] for row in read_log(tmp_path / "log.csv")] == [0] * 3 + [1] * 5
    for stop_at in (1, 3, 6):  # inside a phase, between two, after a group began late
        parts = tmp_path / f"{stop_at}"
        loop(parts, LineTask(phases, slow_starts=2), on_step=lambda report, at=stop_at: report.step < at).go()
        resumed = loop(parts, LineTask(phases, slow_starts=2))
        assert resumed.step == stop_at
        resumed.go()
        assert same(weights(resumed), weights(run)), stop_at


def test_gradient_norms_are_those_of_the_weighted_losses_alone(tmp_path):
    run = loop(tmp_path, gradient_norms=2, steps=2)
    run.go()
    rows = read_log(tmp_path / "log.csv")
    assert "gradient error" not in rows[0]
    one = loop(steps=1)
    one.go()
    torch.manual_seed(1)
    outputs = one.task.module.train()(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))
    for name, factor in (("error", 1.0), ("size", 0.1)):
        gradients = torch.autograd.grad(
            factor * outputs[name], list(one.task.module.parameters()), retain_graph=True
        )
        expected = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
        assert rows[1][f"gradient {name}"] == pytest.approx(expected, rel=1e-4)
    assert same(weights(run), gone(steps=2))  # measuring changes nothing


def test_a_time_budget_stops_at_its_fraction(monkeypatch):
    run = loop(minutes=1e-9)
    run.go()
    assert run.step == 1
    assert run.finished


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_checkpoint_may_be_read_by_others(tmp_path):
    loop(tmp_path, steps=1).go()
    assert stat.S_IMODE((tmp_path / "checkpoint.safetensors").stat().st_mode) & 0o444 == 0o444


def test_a_loss_that_is_not_finite_is_found_before_it_changes_anything(tmp_path):
    run, before = loop(tmp_path, save_every=2), {}
    forward = run.task.module.forward

    def broken(points):
        outputs = forward(points)
        if run.step == 2 and torch.is_grad_enabled():
            before.update(weights(run))
            outputs["size"] = outputs["size"] * math.nan
        return outputs

    run.task.module.forward = broken
    with pytest.raises(
        TrainingError, match=r"The size loss is nan at step 3; the checkpoint of step 2 is safe: lower"
    ):
        run.go()
    assert same(weights(run), before)


def test_a_stop_request_ends_after_the_step_at_hand(tmp_path):
    stop = StopRequest()
    run = loop(tmp_path, on_step=lambda report: setattr(stop, "asked", report.step == 5))
    outcome = run.go(stop)
    assert (outcome.step, outcome.stopped) == (5, True)
    assert Path(outcome.checkpoint).is_file()


class LiveTask(LineTask):
    """Draws depend on the weights, and one of them fails."""

    live_draws, norm_name = True, "grad_norm"

    def __init__(self, fails_at: int = -1, error: type[Exception] = Paused) -> None:
        super().__init__()
        self.fails_at, self.error = fails_at, error

    def draw(self, number, generator):
        if number == self.fails_at:
            raise self.error("the reward is gone")
        return (torch.randn(8, 3, generator=generator) + self.module.second.weight.detach().sum(),)


def test_live_draws_see_the_weights_of_their_step():
    """However far ahead the loop may read: the weights of two runs with different read_ahead agree."""
    one, two = (loop(task=LiveTask(), read_ahead=ahead) for ahead in (0, 4))
    one.go()
    two.go()
    assert same(weights(one), weights(two))
    assert "grad_norm" in one.log.rows[-1]
    assert "gradient" not in one.log.rows[-1]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [(Paused, Paused, "reward is gone"), (torch.OutOfMemoryError, TrainingError, "checkpoint of step 6 is")],
)
def test_a_pause_and_a_full_memory_inside_a_step_keep_the_steps_before(tmp_path, error, raised, words):
    """Saved every 4 steps; the seventh step fails in its draw, and the run goes on from the sixth."""
    with pytest.raises(raised, match=words):
        loop(tmp_path / "parts", LiveTask(6, error)).go()
    resumed = loop(tmp_path / "parts", LiveTask())
    assert resumed.step == 6
    resumed.go()
    whole = loop(tmp_path / "whole", LiveTask())
    whole.go()
    assert same(weights(resumed), weights(whole))


def test_nothing_is_read_ahead_on_a_processor_unless_it_is_asked_for():
    threads = []

    class Watched(LineTask):
        def draw(self, number, generator):
            threads.append(threading.current_thread() is threading.main_thread())
            return super().draw(number, generator)

    loop(task=Watched()).go()
    assert all(threads)
    threads.clear()
    loop(task=Watched(), read_ahead=1).go()
    assert not any(threads)
    assert usual_ahead(None, torch.device("cuda", 1)) == usual_ahead(None, torch.device("mps")) == 1
    assert usual_ahead(0, torch.device("cuda")) == 0
