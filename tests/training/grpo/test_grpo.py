"""`latent-physics grpo` on the toy backbone: what it samples, learns, logs, and what it refuses."""

from __future__ import annotations

import json
import math
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from latent_physics.methods.critics import CriticError
from latent_physics.tests.training.finetune.two_processes import run_two
from latent_physics.tests.training.grpo.tiny_policy import make_config, run
from latent_physics.training.console import ProgressLine, TrainingError
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.optim import trainable
from latent_physics.training.loop.processes import OneProcess
from latent_physics.training.loop.task import Paused
from latent_physics.training.recipes import load_recipe, names
from latent_physics.training.tasks.companions import Prompts
from latent_physics.training.tasks.grpo import http, rewards, rollouts
from latent_physics.training.tasks.grpo.prompts import prompt_files
from latent_physics.training.tasks.grpo.rewards import Reward, RewardSettings
from latent_physics.training.tasks.grpo.run import make_companions, make_task, prompts_of
from latent_physics.training.tasks.grpo.settings import GrpoConfig, accumulation, check
from safetensors.torch import load_file


def make(config: GrpoConfig):
    """The task of a run, with its first iteration still to sample."""
    config = replace(config, trainer=replace(config.trainer, accumulate=accumulation(config, 1)))
    progress = ProgressLine("grpo")
    accelerator = OneProcess()
    words = prompts_of(config)
    companions = make_companions(config, words, progress)
    companions.gather(accelerator)
    task = make_task(config, words, companions, accelerator, progress)
    task.placed(accelerator)
    task.module.train()
    return task


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run of three steps with a distance from the reference, and what it left."""
    config = make_config(
        tmp_path_factory.mktemp("grpo"), steps=3, kl_beta=0.1, validate_every=3, samples=1,
        watch=["dynamic_degree"],
    )  # fmt: skip
    run(config)
    return config, read_log(config.out / "log.csv")


def test_before_the_first_update_the_ratio_is_exactly_one_and_the_distance_zero(learned):
    first = learned[1][1]
    assert first["step"] == 1
    assert first["ratio_min"] == first["ratio_mean"] == first["ratio_max"] == 1.0
    assert first["kl_loss"] == first["approx_kl"] == first["clipfrac"] == 0.0
    assert first["grad_norm"] > 0


def test_every_iteration_is_sampled_by_the_policy_that_learns(learned):
    """With one update an iteration the ratio stays 1, while the distance from the reference grows."""
    assert all(row["ratio_min"] == row["ratio_max"] == 1.0 for row in learned[1][1:])
    assert learned[1][3]["kl_loss"] > 0


def test_the_model_is_evaluated_before_the_first_step(learned):
    before, after = learned[1][0], learned[1][-1]
    assert (before["step"], after["step"]) == (0, 3)
    assert before["eval_reward_motion"] != after["eval_reward_motion"]


def test_the_log_has_the_metrics_of_the_field_and_the_samples_a_caption(learned):
    config, rows = learned
    expected = {
        "policy_loss", "kl_loss", "approx_kl", "clipfrac", "ratio_mean", "reward_avg", "reward_motion",
        "reward_dynamic_degree", "zero_std_ratio", "grad_norm", "eval_reward_avg", "eval_reward_motion",
        "eval_reward_dynamic_degree",
    }  # fmt: skip
    assert expected <= {key for key, value in rows[-1].items() if not math.isnan(value)}
    written = sorted(path.name for path in (config.out / "samples").iterdir())
    assert written == ["000000-0.mp4", "000003-0.mp4"]


def test_the_gradient_is_that_of_a_policy_gradient_written_anew(tmp_path):
    """sum over clips and steps of -A d log N(after; mean, std), the Flow-SDE step from its definition."""
    config = make_config(tmp_path)
    task = make(config)
    parameters = trainable(task.module)
    accumulate = task.config.trainer.accumulate
    for micro in range(accumulate):
        losses = task.module(*task.draw(micro, torch.Generator().manual_seed(0)))
        (losses["policy_loss"] / accumulate).backward()
    found = {name: value.grad.clone() for name, value in parameters.items()}
    task.module.zero_grad()
    made, sampler, backbone = task.iteration, task.collector.sampler, task.backbone
    tokens, mask = task.collector.prompts.batch(made.chosen)
    for turn in range(2):
        now, after = (sampler.times[made.first + turn + k].item() for k in range(2))
        x = made.states[turn]
        v = backbone.predict(x, torch.full((len(x),), now), tokens, mask)
        spread = config.noise_level**2 * now / (1 - (now if now < 1 else after))
        x0, eps = x - now * v, x + (1 - now) * v
        score = -eps / now  # of x = (1 - t) x0 + t eps
        mean = x - (now - after) * ((eps - x0) - 0.5 * spread * score)
        normal = torch.distributions.Normal(mean, math.sqrt(spread * (now - after)))
        density = normal.log_prob(made.states[turn + 1]).flatten(1).mean(1)
        (-(made.advantages * density).mean() / 2).backward()
    for name, value in parameters.items():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-8)
    assert max(value.abs().max() for value in found.values()) > 1e-6


class Equal(Reward):
    """Likes every clip alike."""

    def measure(self, clips):
        return torch.full((len(clips.prompts), 1), 0.3)


def test_groups_of_equal_rewards_change_nothing_and_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rewards.KINDS, "law", (RewardSettings, Equal))
    config = make_config(tmp_path, rewards=["law"], steps=1)
    task = make(config)
    before = {name: value.detach().clone() for name, value in trainable(task.module).items()}
    run(config)
    after = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(value, after[f"model/{name}"]) for name, value in before.items())
    _, row = read_log(tmp_path / "log.csv")
    assert row["zero_std_ratio"] == 1.0
    assert row["grad_norm"] == 0.0


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_a_run_resumed_inside_an_iteration_ends_as_one_that_was_not_stopped(tmp_path, algorithm):
    """Two updates an iteration: a stop after the first makes the old policy sample again."""
    kind = {"algorithm": algorithm, "gradient_step_per_epoch": 2, "group_size": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(make_config(whole, steps=4, **kind))
    for steps in (1, 3, 4):
        run(make_config(parts, steps=steps, **kind))
    one, other = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one if key.startswith("model/"))
    rows = read_log(whole / "log.csv")
    if algorithm == "grpo":
        assert rows[1]["ratio_max"] == 1.0 != rows[2]["ratio_max"]


TWO = """
import sys
from pathlib import Path
from latent_physics.tests.training.grpo.tiny_policy import make_config, run
run(make_config(Path(sys.argv[1]), global_std=True, learning_rate=1e-3))
"""


def test_two_processes_with_a_group_each_take_the_steps_of_one_with_two(tmp_path):
    run(make_config(tmp_path / "one", global_std=True))
    run_two(tmp_path / "two.py", TWO, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for key in one:
        if key.startswith("model/"):
            torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-6)
    rows = [read_log(tmp_path / name / "log.csv")[-1] for name in ("one", "two")]
    assert rows[0]["reward_avg"] == pytest.approx(rows[1]["reward_avg"], rel=1e-5)


def test_a_window_lies_within_its_range_and_moves(tmp_path):
    task = make(make_config(tmp_path, num_inference_steps=8, sde_steps=[1, 5]))
    windows = {tuple(task.collector.window(number)) for number in range(40)}
    assert windows == {(1, 2), (2, 3), (3, 4), (4, 5)}


def test_prompts_are_all_shown_before_one_comes_again(tmp_path):
    task = make(make_config(tmp_path))
    shown = [index for number in range(4) for index in task.collector.prompts_of(number)]
    assert sorted(shown) == list(range(8)) != shown


def test_clips_of_a_group_share_their_first_noise_if_asked_and_differ_all_the_same(tmp_path):
    task = make(make_config(tmp_path, same_initial_noise=True, sde_steps=[0, 1]))
    made = task.collector.collect(0)
    first = made.states[0][:4]
    assert torch.equal(first[0], first[3])
    assert not torch.equal(made.clips[0], made.clips[3])
    apart = make(make_config(tmp_path, sde_steps=[0, 1])).collector
    apart.accelerator = OneProcess()
    assert not torch.equal(*apart.collect(0).states[0][:2])


# --- rewards ------------------------------------------------------------------------------------------------


@contextmanager
def judge(answer):
    """A local program that scores clips; answer: what it makes of the request, or an HTTP status."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found = answer(asked)
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            if not isinstance(found, int):
                self.wfile.write(json.dumps(found).encode())

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_judge_behind_http_gets_films_and_prompts_and_may_fail_once(monkeypatch):
    monkeypatch.setattr(http, "WAIT", 0.0)
    frames = torch.rand(2, 3, 9, 64, 64)
    with judge(lambda asked: 503 if len(asked) == 1 else {"scores": [0.25, 0.5]}) as (url, asked):
        found = http.judge_by_http(url, frames, ["a ball", "a ring"], 8.0)
    assert found.tolist() == [0.25, 0.5]
    assert len(asked) == 2
    assert [clip["prompt"] for clip in asked[1]["clips"]] == ["a ball", "a ring"]
    assert asked[1]["clips"][0]["fps"] == 8.0
    assert len(asked[1]["clips"][0]["video"]) > 100


@pytest.mark.parametrize("answer", [{"scores": [1]}, {"marks": [1, 2]}, {"scores": [1, "x"]}, 500])
def test_a_judge_that_keeps_failing_stops_the_run_with_its_state_saved(monkeypatch, answer):
    monkeypatch.setattr(http, "WAIT", 0.0)
    with judge(lambda asked: answer) as (url, asked), pytest.raises(Paused, match="failed 3 times"):
        http.judge_by_http(url, torch.rand(2, 3, 5, 64, 64), ["a", "b"], 8.0)
    assert len(asked) == 3


def test_a_dead_judge_loses_nothing(tmp_path, monkeypatch):
    """Two steps are made, the judge dies, and the run goes on when it is back."""
    monkeypatch.setattr(http, "WAIT", 0.0)

    def scores(asked):
        count = len(asked[-1]["clips"])
        return {"scores": [number / 7 for number in range(count)]}

    with judge(lambda asked: scores(asked) if len(asked) <= 5 else 500) as (url, _):
        config = make_config(tmp_path, steps=3, rewards=[f"http url={url}"], eval_count=2, save_every=50)
        with pytest.raises(TrainingError, match="start it again"):
            run(config)
    assert load_file(tmp_path / "checkpoint.safetensors")
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [0, 1, 2]


def test_clips_that_are_not_finite_and_worlds_that_are_none_have_no_reward():
    found = rewards.build(["law"], torch.device("cpu"))
    clips = rewards.Clips(
        latents=torch.full((1, 16, 3, 8, 8), torch.nan), cond=torch.zeros(1, 4), prompts=["a red ball"],
        fps=16.0, latent_fps=4.0, decode=lambda z: torch.zeros(1, 3, 33, 64, 64),
    )  # fmt: skip
    with pytest.raises(CriticError, match="NaN"):
        rewards.measured(found, clips)
    clips.latents, clips.prompts = torch.zeros(1, 16, 3, 8, 8), ["a cat"]
    with pytest.raises(CriticError, match="names no toy world"):
        rewards.measured(found, clips)


def test_the_stillest_clip_of_a_group_gains_nothing_from_a_critic():
    reward = rewards.build(["motion source=toy_predictor_order1"], torch.device("cpu"))["motion"]
    measured = torch.tensor([[0.9, 0.0], [0.5, 1.0], [0.4, 1.2], [0.3, 0.9]])
    assert reward.score(measured, 4).argmax() == 1
    assert reward.score(measured, 4)[0] == 0


def test_a_group_whose_memory_runs_out_is_said_with_the_state_saved(tmp_path, monkeypatch):
    calls = []
    real = rollouts.roll_out

    def limited(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(rollouts, "roll_out", limited)
    with pytest.raises(TrainingError, match="memory does not hold step 3"):
        run(make_config(tmp_path, steps=4, save_every=50))
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [0, 1, 2]
    assert load_file(tmp_path / "checkpoint.safetensors")


# --- what is refused before anything is loaded --------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"group_size": 2}, "group_size is 2"),
        ({"rewards": []}, "no reward to learn from"),
        ({"rewards": ["beauty"]}, "reward 'beauty' is unknown"),
        ({"rewards": ["law weigth=1"]}, "is not a setting of the reward law"),
        ({"noise_level": 0.0}, "no step has a probability"),
        ({"dynamics_type": "DDIM-eta"}, "takes Flow-SDE"),
        ({"num_sde_steps": 3, "sde_steps": [0, 1]}, "num_sde_steps"),
        ({"sde_steps": [2, 9]}, "sde_steps"),
        ({"toy_prompts": 0}, "no prompts"),
        ({"toy_worlds": ["optics"]}, "toy_worlds has 'optics'; choose from"),
        ({"backbone": "wan", "frames": 81, "toy_prompts": 4}, "toy_prompts are for the toy backbone"),
        ({"frames": 10}, "frames is 10"),
        ({"optimizer": "torch.optim.Nothing"}, "has no optimiser of that name"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(tmp_path, more, said):
    with pytest.raises(TrainingError, match=said) as found:
        check(make_config(tmp_path, **more))
    assert "\n" not in str(found.value)


def test_clips_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="unique_sample_num_per_epoch is 2"):
        accumulation(make_config(tmp_path), 4)
    with pytest.raises(TrainingError, match="batch is 3"):
        accumulation(make_config(tmp_path, batch=3), 1)


def test_rewards_that_lack_something_say_what():
    device = torch.device("cpu")
    for text, said in (
        ("surprise", "has no source"),
        ("motion source=nowhere.safetensors", "cannot be loaded"),
        ("http url=file:///etc/passwd", "write http://HOST"),
        ("plugin name=nobody", "no installed package"),
    ):
        with pytest.raises(TrainingError, match=said):
            rewards.build([text], device)


def test_prompts_come_from_a_folder_or_two_files(tmp_path):
    (tmp_path / "train.txt").write_text("a ball\n\na ring\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("a puff\n", encoding="utf-8")
    assert prompt_files(tmp_path, None) == (["a ball", "a ring"], ["a puff"])
    assert prompt_files(tmp_path / "test.txt", None) == (["a puff"], [])
    with pytest.raises(TrainingError, match="no readable file"):
        prompt_files(Path(tmp_path / "none.txt"), None)


def test_padding_of_prompts_is_masked():
    found = Prompts(words=["a", "b"], tokens=[torch.ones(2, 3), torch.ones(5, 3)])
    tokens, mask = found.batch([0, 1])
    assert tokens.shape == (2, 5, 3)
    assert mask.sum(1).tolist() == [2, 5]
    assert torch.equal(found.pooled([0, 1]), torch.ones(2, 3))


@pytest.mark.parametrize("name", names("grpo"))
def test_every_recipe_of_the_pack_is_one_that_runs(name):
    recipe = load_recipe(name, GrpoConfig, "grpo")
    if recipe.backbone != "toy":
        recipe.prompts = Path("prompts")
    check(recipe)
    accumulation(recipe, 1)
