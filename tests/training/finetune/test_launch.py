"""`accelerate launch` with the config files in training/recipes: two processes on the CPU end where one
process ends."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.tests.training.finetune.two_processes import finished, free_port
from latent_physics.training import recipes
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import ProgressLine
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import train
from latent_physics.training.tasks.export import ExportConfig, export
from safetensors.torch import load_file

RECIPES = Path(recipes.__file__).parent
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
without_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="deepspeed, an optional extra, is not installed")


def launch(recipe: str, *arguments: object) -> list[str]:
    """Lines that two processes print, started as the recipe's first line says, with --num_processes 2."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(RECIPES / f"{recipe}.yaml"),
    ]
    command += [
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
        str(Path(__file__).with_name("launched.py")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = finished([*command, *map(str, arguments)], environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("recipe", "mode", "said"),
    [
        ("ddp", "lora", "MULTI_CPU {} of 2, sharded: False"),
        ("fsdp2", "full", "FSDP {} of 2, sharded: True"),
        pytest.param("zero2", "full", "DEEPSPEED {} of 2, sharded: False", marks=without_deepspeed),
    ],
)
def test_two_processes_stop_go_on_and_end_where_one_ends(recipe, mode, said, tmp_path):
    """Weights, their average and the log after two steps, a new start from the checkpoint, and a third; and
    the export."""
    data = tmp_path / "data"
    data.mkdir()
    tiny_run.clips(data)
    for steps in (2, 3):
        lines = launch(recipe, tmp_path / "two", data, steps, mode)
        assert {said.format(0), said.format(1)} <= set(lines), lines
    one = tiny_run.make_run(
        tmp_path / "one", data, steps=3, batch=1, accumulate=2, ema=0.5, tune=TuneConfig(mode=mode, rank=4)
    )
    train(one, progress=ProgressLine("test", io.StringIO()))
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("two", "one"))
    for key in (key for key in theirs if key.startswith(("model/", "average/"))):
        # AdamW turns rounding noise into a step where a gradient is all but zero; a step is 1e-3.
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=0, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    rows = [read_log(tmp_path / name / "log.csv") for name in ("two", "one")]
    for two, alone in zip(*rows, strict=True):
        for name in ("loss", "gradient"):
            assert two[name] == pytest.approx(alone[name], rel=1e-4), (two["step"], name)
    assert rows[0][-1]["val_denoise"] == pytest.approx(rows[1][-1]["val_denoise"], rel=1e-4)
    files = [load_file(export(ExportConfig(run=tmp_path / name, dtype="float32"))) for name in ("two", "one")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.allclose(value, files[1][key], atol=1e-4) for key, value in files[0].items())


def test_the_deepspeed_recipe_is_zero_2():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "zero2.yaml"))
    assert config.distributed_type == "DEEPSPEED"
    assert config.deepspeed_config["zero_stage"] == 2
    assert config.deepspeed_config["offload_optimizer_device"] == "none"


@pytest.mark.skipif(DEEPSPEED, reason="deepspeed is installed")
def test_without_deepspeed_its_recipe_is_refused_in_one_sentence():
    from accelerate.commands.launch import launch_command, launch_command_parser

    arguments = ["--config_file", str(RECIPES / "zero2.yaml"), "--num_processes", "2", "training"]
    with pytest.raises(ImportError, match=r"DeepSpeed is not installed.*pip"):
        launch_command(launch_command_parser().parse_args(arguments))
