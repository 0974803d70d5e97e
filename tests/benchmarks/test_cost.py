"""What guidance costs: the counts agree with arithmetic on small models, every timing runs, the list of
benchmarks is whole.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys

import pytest
import torch
from latent_physics.benchmarks import run
from latent_physics.benchmarks.cost import guidance, models
from latent_physics.benchmarks.cost import seconds as timed

LATENT = (5, 6, 8)
SIZES = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 3}


def small(number: int):
    """A published model at a tiny size: 0 is Wan, 2 and 3 are CogVideoX without and with rotary positions."""
    model = models.MODELS[number]
    config = {**model.config, **SIZES, **({"ffn_dim": 96} if model.family == "wan" else {})}
    return dataclasses.replace(model, config=config, latent=LATENT)


def self_attention_and_layers(number: int) -> tuple[float, float]:
    """Counted operations of one layer, from two models that differ by it, and of what attention alone must
    take in it.
    """
    model = small(number)
    one, three = (models.forward_operations(models.build(model, num_layers=n), LATENT) for n in (1, 3))
    return (three - one) / 2, 4 * model.attended**2 * 64


def test_operations_of_a_wan_layer_are_those_of_its_formula():
    layer, attention = self_attention_and_layers(0)
    tokens, text, width, hidden = 5 * 3 * 4, 512, 64, 96
    products = (
        2 * tokens * (6 * width**2 + 2 * width * hidden) + 2 * text * 2 * width**2
    )  # q k v o, cross q o; cross k v
    assert layer == attention + 4 * tokens * text * width + products


def test_operations_of_a_cogvideox_layer_are_those_of_its_formula():
    for number in (2, 3):
        layer, attention = self_attention_and_layers(number)
        tokens, width = 5 * 3 * 4 + 226, 64
        assert layer == attention + 2 * tokens * (4 + 8) * width**2 + 2 * 2 * 512 * 6 * width


def test_training_takes_three_forward_passes_in_every_layer():
    one, three = (models.build(small(0), num_layers=n) for n in (1, 3))
    counts = (models.forward_operations, models.training_operations)
    forward, training = (count(three, LATENT) - count(one, LATENT) for count in counts)
    assert training == 3 * forward
    assert 0 < models.drift_operations(three, LATENT) < 1e-3 * training


def test_a_correction_counts_the_predictor_twice_for_every_pair():
    sizes = {"width": 16, "blocks": 2, "cond_dim": 8}
    whole, half = (
        models.correction_operations((frames, 6, 8), models.make_predictor(**sizes)) for frames in (6, 4)
    )
    convolutions = 2 * 9 * 6 * 8 * (2 * 16 * 16 + 2 * 2 * 16**2)  # in and out, two blocks of two
    assert whole == pytest.approx(2 * half, rel=0.01)
    assert 2 * 4 * convolutions <= whole < 2.05 * 4 * convolutions


def test_the_average_weighs_the_steps_that_are_guided():
    cost = models.GuidanceCost(step=100.0, correction=10.0, share=0.8)
    assert (cost.active, cost.average) == (pytest.approx(1.1), pytest.approx(1.08))
    assert models.guided_share(50, 0.8) == 0.8
    assert models.guided_share(4, 0.8) == 0.75
    counted = models.guidance_operations(small(0), share=0.5)
    assert counted.active > counted.average > 1


def test_every_way_of_timing_runs():
    predictor = models.make_predictor("cpu", width=8, blocks=1)
    assert timed.correction_by_parts(LATENT, repeats=1, predictor=predictor) > 0
    for number in (0, 2, 3):
        model = small(number)
        for training in (False, True):
            assert timed.transformer_by_parts(model, repeats=1, training=training, tokens=16) > 0
    backbone = models.build(small(0), device="cpu", dtype=torch.bfloat16)
    half = models.make_predictor("cpu", torch.bfloat16, width=8, blocks=1)
    whole = timed.guidance_whole(backbone, LATENT, half, share=0.5, repeats=1)
    assert whole.step > 0
    step, drift = timed.training_whole(backbone, LATENT, repeats=1)
    assert step > 0
    assert drift > 0


def test_a_missed_target_is_said():
    verdict = guidance.verdict
    assert [verdict(1.019, 1.02), verdict(1.021, 1.02), verdict(2.0, None)] == [
        "1.02 (met)",
        "1.02 (missed)",
        "-",
    ]


def test_the_list_names_every_benchmark_that_is_a_command(root):
    folder = root / "benchmarks"
    library = ("run", "kernels/measure")
    commands = {
        path.relative_to(folder).with_suffix("").as_posix().removesuffix("/__main__")
        for path in folder.rglob("*.py")
        if '"__main__"' in path.read_text()
    }
    assert sorted(entry.name for entry in run.BENCHMARKS) == sorted(commands.difference(library))  # each once
    assert "* cost/guidance" in run.listing(run.BENCHMARKS)


def test_earlier_names_are_found():
    assert {entry.old for entry in run.BENCHMARKS if entry.old}.isdisjoint(
        entry.name for entry in run.BENCHMARKS
    )
    for entry in run.BENCHMARKS:
        assert run.find(entry.name) is run.find(entry.old or entry.name) is entry
    assert run.find("") is run.find("drift") is None


def test_documents_name_benchmarks_that_exist(root):
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "benchmarks").rglob("*.py")]
    named = {
        name
        for page in pages
        for name in re.findall(r"dev\.py bench ([a-z][\w/]*)", page.read_text(encoding="utf-8"))
    }
    assert len(named) >= 12
    assert named <= {entry.name for entry in run.BENCHMARKS}
    paths = {
        path
        for page in pages
        for path in re.findall(r"benchmarks/[\w/]+\.py", page.read_text(encoding="utf-8"))
    }
    assert not [path for path in paths if not (root / path).is_file()]


def test_a_failing_benchmark_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    for name, status in (("first", 0), ("second", 3), ("third", 0)):
        done = str(tmp_path / f"{name}.done")
        (tmp_path / f"a_{name}.py").write_text(f"open({done!r}, 'w').close(); raise SystemExit({status})")
    assert run.run({name: f"a_{name}" for name in ("first", "second", "third")}) == ["second"]
    assert all((tmp_path / f"{name}.done").exists() for name in ("first", "second", "third"))
    assert re.search(r"== second\n\(second took \d+ s\)\n", capsys.readouterr().out)
    monkeypatch.setattr(run, "run", lambda modules: ["cost/pila"])
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert capsys.readouterr().err == "\nfailed: cost/pila.\n"
