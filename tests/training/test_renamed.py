"""Former names of settings: taken in flags and recipe files with a note, and read in checkpoints of older
runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import pytest
import torch
from latent_physics.methods.weights import WeightsInfo, load_weights, write_tensors
from latent_physics.training.commands import cli
from latent_physics.training.commands.pila import PilaCommand
from latent_physics.training.commands.predictor import PredictorCommand
from latent_physics.training.console import TrainingError
from latent_physics.training.loop.checkpoint import CHECKPOINT
from latent_physics.training.loop.config import LoopConfig
from latent_physics.training.loop.loop import Loop
from latent_physics.training.loop.processes import OneProcess
from latent_physics.training.loop.task import Run, Task
from latent_physics.training.recipes import load_recipe
from latent_physics.training.renamed import RENAMED, current_name
from latent_physics.training.settings import names
from latent_physics.training.tasks.finetune import FinetuneConfig
from latent_physics.training.tasks.toy.settings import ToyWorldConfig

COMMANDS = (FinetuneConfig, PilaCommand, PredictorCommand, ToyWorldConfig)


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_name_leads_to_a_setting_that_exists_and_is_none_itself(old):
    for new in RENAMED[old]:
        assert any(new in names(command) for command in COMMANDS), new
    assert not [command for command in COMMANDS if old in names(command)]


@pytest.mark.parametrize(
    ("command", "argv", "expected", "notes"),
    [
        (
            FinetuneConfig,
            "--rate 1e-3 --clip=2 --drop_prompt 0.5 --held-out 0.25",
            {"learning_rate": 1e-3, "max_grad_norm": 2.0, "prompt_dropout": 0.5, "held_out": 0.25},
            [
                "--rate is called --learning-rate",
                "--clip is called --max-grad-norm",
                "--drop_prompt is called",
            ],
        ),
        (
            PredictorCommand,
            "--cache a --out b --lr 1e-3 --validation 0.5 --drop-probability 0.25",
            {"learning_rate": 1e-3, "held_out": 0.5, "prompt_dropout": 0.25},
            ["--lr is called --learning-rate", "--validation is called --held-out now"],
        ),
        (
            PilaCommand,
            "--out b --toy-clips 2 --validation 3",
            {"held_out_clips": 3},
            ["--validation is called --held-out-clips now"],
        ),
        (
            ToyWorldConfig,
            "--vae-rate 0.5 --base-rate 0.25",
            {"vae_learning_rate": 0.5, "base_learning_rate": 0.25},
            ["--vae-rate is called --vae-learning-rate"],
        ),
    ],
)
def test_flags_may_be_spelled_as_they_were(command, argv, expected, notes, capsys):
    config = cli.parse(command, argv.split(), prog="test", description="")
    found = asdict(config)
    found |= {
        key: value for inner in found.values() if isinstance(inner, dict) for key, value in inner.items()
    }
    assert {key: found[key] for key in expected} == expected
    said = capsys.readouterr().err
    assert not [note for note in notes if note not in said]


def test_flags_spelled_as_they_are_now_say_nothing(capsys):
    cli.parse(FinetuneConfig, ["--learning-rate", "1e-3"], prog="test", description="")
    assert capsys.readouterr().err == ""


def test_a_recipe_of_ones_own_may_name_settings_as_they_were_called(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"trainer": {"rate": 0.5, "clip": 0.0, "steps": 7}}))
    config = load_recipe(str(path), FinetuneConfig)
    trainer = config.trainer
    assert (trainer.learning_rate, trainer.max_grad_norm, trainer.steps) == (0.5, 0.0, 7)
    assert "note: mine.json: trainer: rate is called learning_rate now." in capsys.readouterr().err


def test_a_setting_that_bears_a_former_name_keeps_it():
    @dataclass
    class Camera:
        rate: float = 1.0
        learning_rate: float = field(default=2.0)

    assert current_name("rate", names(Camera)) == "rate"
    assert current_name("wheels", names(Camera)) == "wheels"


class Line(Task):
    names, latent_space, about = ("error",), "toy", {"recipe": "line"}

    def __init__(self):
        torch.manual_seed(0)
        self.module = Fit()

    def draw(self, number, generator):
        return (torch.randn(8, 3, generator=generator),)

    def fingerprint(self):
        return "points"


class Fit(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

    def forward(self, points):
        return {"error": (super().forward(points) - 1).square().mean()}


def loop(out, **settings) -> Loop:
    config = LoopConfig(**({"steps": 4, "learning_rate": 1e-2, "save_every": 2} | settings))
    return Loop(Run(config=config, task=Line(), out=out, accelerator=OneProcess(accumulate=1)))


def as_an_older_version_wrote_it(path) -> None:
    """Rewrites a checkpoint with the former names of the loop's settings."""
    tensors, info = load_weights(path, "training_checkpoint")
    former = {"learning_rate": "rate", "final_share": "final_rate", "max_grad_norm": "clip"}
    trainer = {former.get(key, key): value for key, value in info.recipe["trainer"].items()}
    assert set(former.values()) <= trainer.keys()
    recipe = {**info.recipe, "trainer": trainer}
    write_tensors(
        path,
        tensors,
        WeightsInfo(kind=info.kind, latent_space=info.latent_space, config=info.config, recipe=recipe),
    )


def test_a_run_of_an_older_version_is_resumed_to_the_same_weights(tmp_path):
    loop(tmp_path / "whole").go()
    whole, _ = load_weights(tmp_path / "whole" / CHECKPOINT, "training_checkpoint")
    loop(tmp_path / "parts", steps=2).go()
    as_an_older_version_wrote_it(tmp_path / "parts" / CHECKPOINT)
    loop(tmp_path / "parts").go()
    parts, _ = load_weights(tmp_path / "parts" / CHECKPOINT, "training_checkpoint")
    assert whole.keys() == parts.keys()
    assert not [key for key, value in whole.items() if not torch.equal(value, parts[key])]


def test_a_former_setting_of_another_value_is_seen_on_resuming(tmp_path):
    loop(tmp_path, steps=2).go()
    as_an_older_version_wrote_it(tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.01 -> 0\.5"):
        loop(tmp_path, learning_rate=0.5)
