"""PILA under DeepSpeed ZeRO-2: two processes on the CPU, stopped within stages, against one process and a run
that was not stopped."""

import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from latent_physics.methods.weights import load_weights, save_weights
from latent_physics.tests.training.tiny_pila import QUICK, SMALL, flat, run
from latent_physics.training.console import StopRequest, TrainingError
from latent_physics.training.loop import loop, processes, shown
from latent_physics.training.loop.checkpoint import CHECKPOINT, KIND, LOG
from latent_physics.training.loop.log import read_log
from latent_physics.training.study.ablations import ABLATIONS
from latent_physics.training.tasks.pila.stages import parts_of
from latent_physics.training.tasks.pila.zero import (
    Handover,
    check_stage,
    hide_unused_groups,
    restore_groups,
    units,
)
from safetensors.torch import load_file

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

LAUNCHED = """
import dataclasses
import os
import sys
from pathlib import Path

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from latent_physics.tests.training import tiny_pila
from latent_physics.training.loop import loop, shown
from latent_physics.training.console import StopRequest

# accelerate shards between GPUs only: it is told that these CPU processes are such. What shards is the real thing.
PartialState._prepare_backend = lambda self, *arguments, **options: ("gloo", DistributedType.MULTI_GPU)
torch.set_num_threads(1)
shown.draw_curves = lambda *arguments: None
accelerator = Accelerator()


def go(name, stop_at):
    config = dataclasses.replace(tiny_pila.QUICK, batch=1)
    training = tiny_pila.run(Path(sys.argv[1]) / name, config, accelerator=accelerator)
    stop = StopRequest()
    training.run(stop, lambda report: setattr(stop, "asked", report.step >= stop_at))
    kind, rank, count = accelerator.distributed_type.value, accelerator.process_index, accelerator.num_processes
    told = f"{kind} {rank} of {count}: {name} {training.total_steps}"
    print(f"{told}\\n", end="", flush=True)


for word in sys.argv[2:]:
    name, stop_at = word.split(":")
    go(name, int(stop_at))
"""


def launch(folder, *words):
    """Starts two processes as zero2.yaml says; each word is a run's name and the step to stop at."""
    (folder / "launched.py").write_text(LAUNCHED)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    recipe = Path(loop.__file__).parents[1] / "recipes" / "zero2.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(recipe),
        "--num_processes",
        "2",
    ]
    command += ["--main_process_port", port, str(folder / "launched.py"), str(folder), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not DEEPSPEED, reason="deepspeed, an optional extra, is not installed")
def test_a_stopped_sharded_run_ends_as_an_unstopped_one_and_as_one_process(tmp_path, monkeypatch):
    """Stopped inside stage B, at its end, and in stage C after encoder and scaffold began to learn."""
    monkeypatch.setattr(shown, "draw_curves", lambda *arguments: None)
    lines = launch(tmp_path, "whole:99", "stopped:7", "stopped:12", "stopped:15")
    assert {f"DEEPSPEED {rank} of 2: stopped 15" for rank in (0, 1)} <= set(lines), lines
    assert [path.name for path in (tmp_path / "stopped" / "deepspeed").iterdir()] == ["000015"]
    lines = launch(tmp_path, "stopped:99")
    assert {f"DEEPSPEED {rank} of 2: stopped 16" for rank in (0, 1)} <= set(lines), lines
    states = [
        {
            key: value
            for key, value in load_file(tmp_path / name / CHECKPOINT).items()
            if key.startswith("model/")
        }
        for name in ("whole", "stopped")
    ]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    one = run(tmp_path / "one")
    begin = flat(one.adapter.state_dict())
    one.run()
    alone, ours = flat(one.adapter.state_dict()), flat(states[0])
    # AdamW turns rounding noise into a step where a gradient is all but zero; a step is 1e-3.
    assert (ours - alone).norm() < 0.1 * (alone - begin).norm()
    for two, row in zip(read_log(tmp_path / "whole" / LOG), read_log(tmp_path / "one" / LOG), strict=True):
        early = row["step"] <= 12
        assert two["loss"] == pytest.approx(row["loss"], rel=1e-4 if early else 2e-3), row["step"]
        assert two["gradient"] == pytest.approx(row["gradient"], rel=1e-4 if early else 2e-2), row["step"]
    with pytest.raises(TrainingError, match="2 DeepSpeed shards"):
        run(tmp_path / "stopped")


@pytest.mark.parametrize("name", ABLATIONS)
def test_units_are_all_that_learns_each_once(name):
    method = ABLATIONS[name]
    adapter = method.adapter(SMALL)
    for stage in ("A1", "B", "C") if method.staged else ("C",):
        for modules in parts_of(adapter, stage, method.staged).values():
            whole = [id(p) for module in modules for p in module.parameters()]
            split = [id(p) for unit in units(modules) for p in unit.parameters()]
            assert sorted(whole) == sorted(split)
    if name not in ("plain_adapter", "no_moe_operator"):
        assert sum(type(unit).__name__ == "OperatorExpert" for unit in units([adapter])) == 8


def test_the_handed_over_number_has_the_gradients_it_was_given():
    module = torch.nn.Linear(3, 2)
    given = [torch.randn(2, 3), torch.randn(2)]
    Handover(module)(list(module.parameters()), given).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), given))


def test_a_group_that_was_not_used_sits_the_step_out():
    """As AdamW itself leaves a parameter without a gradient: weight, moments and count of steps."""
    values = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [{"params": [value], "used": True} for value in values], lr=0.1, weight_decay=0.5
    )
    optimizer.register_step_pre_hook(hide_unused_groups)
    optimizer.register_step_post_hook(restore_groups)
    for used in (True, False):
        optimizer.param_groups[1]["used"] = used
        for value in values:
            value.grad = torch.ones(3)
        optimizer.step()
    assert [group["params"] for group in optimizer.param_groups] == [[values[0]], [values[1]]]
    assert [optimizer.state[value]["step"].item() for value in values] == [2, 1]
    assert values[1].data.min() > values[0].data.max()


def test_launches_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    for stage in (0, 3):
        accelerator = SimpleNamespace(
            state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
        )
        with pytest.raises(TrainingError, match=rf"ZeRO stage {stage}.*zero2.yaml"):
            check_stage(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match=r"launch it with ddp.yaml or zero2.yaml"):
        run(tmp_path)


def test_a_sharded_run_goes_on_without_deepspeed_between_stages_only(tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "draw_curves", lambda *arguments: None)
    training = run(tmp_path, dataclasses.replace(QUICK, every=99))
    stop = StopRequest()
    training.run(stop, lambda report: setattr(stop, "asked", report.step >= 7))
    state, info = load_weights(tmp_path / CHECKPOINT, KIND)
    assert info.recipe["progress"]["shards"] == 0
    for shards, step, refused in ((8, 7, True), (None, 6, False)):
        info.recipe["progress"] |= {"shards": shards, "step": step}
        kept = {key: value for key, value in state.items() if not key.startswith("optimizer/")}
        save_weights(tmp_path / CHECKPOINT, kept, info)
        if refused:
            with pytest.raises(
                TrainingError, match=r"8 DeepSpeed shards and this launch has an optimiser in one piece"
            ):
                run(tmp_path, dataclasses.replace(QUICK, every=99))
        else:
            assert run(tmp_path, dataclasses.replace(QUICK, every=99)).total_steps == 6


def test_missing_shards_are_one_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"000007 is missing"):
        processes.load_shards(None, tmp_path, 7)
