"""The command line: a plan, drawn clips, layout, measures, table, claims and doctor; bad input as one
sentence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from latent_physics.evaluation import actions
from latent_physics.evaluation.benchmarks.own import ToyWorld
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.scorers import load_scorers
from latent_physics.evaluation.sources import PipelineSource, load_pipeline
from latent_physics.training.commands.evaluate import main

API = Path(__file__).parents[2] / "workflows" / "api"


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball falls\n\na cup breaks\na flag waves\n")
    return path


def plan_words(out: Path, prompts: Path, *more: str) -> list[str]:
    graph = str(API / "wan2.1_t2v_1.3B_lamo.json")
    return [
        "plan",
        "--out",
        str(out),
        "--benchmark",
        "own",
        "--prompts",
        str(prompts),
        "--graph",
        graph,
        *more,
    ]


def test_every_action_lists_its_options(capsys) -> None:
    assert run(capsys, "--help")[0] == 0
    for action in ("plan", "generate", "layout", "score", "measure", "table", "run", "doctor"):
        with pytest.raises(SystemExit) as ended:
            main([action, "--help"])
        assert ended.value.code == 0
        assert f"latent-physics evaluate {action}" in capsys.readouterr().out
    assert run(capsys)[0] == 2
    assert run(capsys, "rate")[0] == 2


def test_a_plan_says_what_it_amounts_to(tmp_path: Path, prompts: Path, capsys) -> None:
    arms = tmp_path / "arms.toml"
    arms.write_text('[lamo]\n[plain]\n"LaMo Guidance.strength" = 0.0\n')
    words = plan_words(
        tmp_path / "run", prompts, "--arms", str(arms), "--runs", "2", "--seconds-per-clip", "90"
    )
    status, out, err = run(capsys, *words)
    assert status == 0, err
    assert "3 prompts, 2 runs, arms plain, lamo: 12 clips to generate" in out
    assert "At 90 s a clip that is 0.3 hours of one GPU." in out
    assert "the video comes from node" in out


def test_from_plan_to_claim_without_a_scorer(
    tmp_path: Path, prompts: Path, capsys, monkeypatch, drawn
) -> None:
    out = tmp_path / "run"
    assert run(capsys, *plan_words(out, prompts, "--label", "wan"))[0] == 0
    plan = json.loads((out / "plan.json").read_text())
    plan["arms"]["lamo"] = {}
    (out / "plan.json").write_text(json.dumps(plan))
    sources = []

    def source(*arguments, **settings):
        sources.append(drawn(frames=17))
        return sources[-1]

    monkeypatch.setattr(actions, "ComfySource", source)
    status, text, err = run(capsys, "run", "--out", str(out))
    assert status == 0, err
    assert "12 clips made, 0 given up" in text
    assert "| static baseline |" in text
    assert "| wan lamo |" in text
    assert (out / "table.png").is_file()
    status, text, err = run(capsys, "table", "--out", str(out), "--claim", "lamo", "--no-compare")
    assert status in (0, 1)
    assert "motion:" in text
    assert run(capsys, "table", "--out", str(out), "--claim", "pila")[0] == 1
    assert len(sources[0].made) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--runs", "-1"], "runs is -1"),
        (["--prompt-input", "1"], "write NODE.INPUT"),
        (["--label", "a/b"], "part of a folder's name"),
        (["--pipeline", "x.toml"], "either --graph"),
        (["--arms", "/no/arms.toml"], "cannot be read"),
    ],
)
def test_bad_settings_of_a_plan_are_one_sentence(
    tmp_path: Path, prompts: Path, capsys, more, message
) -> None:
    status, _, err = run(capsys, *plan_words(tmp_path / "run", prompts, *more))
    assert status == 1
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "x in .* is no table"),
        ("", "holds no arm"),
        ("[a", "is not TOML"),
        ('[a]\n"1.x" = 1', "no nodes|has no input"),
    ],
)
def test_bad_arms_are_one_sentence(tmp_path: Path, prompts: Path, capsys, text, message) -> None:
    import re

    (tmp_path / "arms.toml").write_text(text)
    status, _, err = run(
        capsys, *plan_words(tmp_path / "run", prompts, "--arms", str(tmp_path / "arms.toml"))
    )
    assert status == 1
    assert re.search(message, err)


def test_the_time_left_counts_from_this_start_and_not_from_a_resumed_share(monkeypatch) -> None:
    import io

    from latent_physics.training.commands.evaluate import Pace
    from latent_physics.training.console import ProgressLine

    clock = iter([0.0, 0.0, 10.0])
    line = ProgressLine("generate", io.StringIO(), every=-1.0)
    shown = []
    line.show = lambda share, text, left: shown.append(left)
    monkeypatch.setattr("latent_physics.training.commands.evaluate.time.monotonic", lambda: next(clock))
    pace = Pace(line)
    pace(0.8, "resumed")
    pace(0.9, "one more tenth")
    assert shown == [float("inf"), pytest.approx(10.0)]


def test_steps_without_what_comes_before_say_so(tmp_path: Path, prompts: Path, capsys) -> None:
    for action in ("generate", "layout", "measure", "table"):
        status, _, err = run(capsys, action, "--out", str(tmp_path / "none"))
        assert status == 1
        assert "evaluate plan" in err
    out = tmp_path / "run"
    assert run(capsys, *plan_words(out, prompts))[0] == 0
    assert "clips are missing" in run(capsys, "layout", "--out", str(out))[2]
    assert "no number to print" in run(capsys, "table", "--out", str(out))[2]
    assert (
        "no server answers at 127.0.0.1:9"
        in run(capsys, "generate", "--out", str(out), "--servers", "127.0.0.1:9")[2]
    )


def test_a_picture_benchmark_needs_a_load_image_node(tmp_path: Path, capsys) -> None:
    csv = tmp_path / "descriptions.csv"
    name = "0001_perspective-left_trimmed-ball"
    csv.write_text(
        "scenario,description,category,generated_video_name\n"
        f"0001_perspective-left_take-1_trimmed-ball.mp4,a ball,Solid,{name}.mp4\n"
    )
    words = plan_words(tmp_path / "run", csv, "--frames", str(tmp_path))
    words[words.index("own")] = "physics-iq"
    assert "has no first frame at" in run(capsys, *words)[2]
    (tmp_path / "0001_switch-frames_anyFPS_perspective-left_trimmed-ball.jpg").write_bytes(b"jpg")
    assert "exactly one Load Image node" in run(capsys, *words)[2]


def test_the_toy_world_is_a_benchmark_with_its_own_scores(filled, make_plan) -> None:
    from latent_physics.evaluation.scoring import Scoring

    prompts = ToyWorld().prompts(Path("5"), {})
    assert len({prompt.text for prompt in prompts}) == 5
    plan = make_plan("toyworld", prompts)
    manifest = filled(plan, frames=33, side=64)
    reading = ToyWorld().read(Scoring(plan=plan, benchmark=ToyWorld(), manifest=manifest))
    assert len(reading.clips) == 20
    assert all(0 <= clip.values["law"] <= 1 for clip in reading.clips)
    with pytest.raises(EvaluationError, match="takes a number"):
        ToyWorld().prompts(Path("many"), {})


def test_doctor_says_what_is_usable_and_what_is_missing(tmp_path: Path, capsys) -> None:
    (tmp_path / "clone" / "VIDEOPHY2").mkdir(parents=True)
    (tmp_path / "clone" / "VIDEOPHY2" / "inference.py").write_text("")
    (tmp_path / "weights").mkdir()
    toml = tmp_path / "scorers.toml"
    toml.write_text(
        f'[videophy2]\npython = "{sys.executable}"\nroot = "{tmp_path}/clone"\ncheckpoint = '
        f'"{tmp_path}/weights"\n'
        f'[videophy]\npython = "{sys.executable}"\nroot = "{tmp_path}/clone"\ndevice = "cpu"\n'
        '[vbench]\npython = "/no/python"\n'
        f'[phygenbench]\npython = "{sys.executable}"\n'
    )
    status, out, _ = run(capsys, "doctor", "--scorers", str(toml))
    lines = dict(line.split(": ", 1) for line in out.strip().splitlines())
    assert status == 1
    assert "decord is not installed" in lines["videophy2"]
    assert "checkpoint" not in lines["videophy2"]
    assert "utils/prepare_data.py does not exist; check `root` of [videophy]" in lines["videophy"]
    assert "states no `checkpoint`" in lines["videophy"]
    assert lines["vbench"] == "there is no interpreter at /no/python"
    assert lines["physics-iq"] == "not configured"
    assert "do not run as they are" in lines["phygenbench"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[vbench]\nroot = "x"', "names no interpreter"),
        ('[vbench]\npython = "p"\ncheckpiont = "x"', "unknown setting 'checkpiont'"),
        ('[vbench]\npython = "p"\nroot = 3', "root of .vbench. in .* is 3, not a str"),
        ("vbench = 1", "names no interpreter"),
    ],
)
def test_a_scorers_file_with_mistakes_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        load_scorers(tmp_path / "s.toml")


class TinyPipe:
    """What a diffusers video pipeline is called with."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.loras: list[str] = []

    def __call__(self, prompt, generator, callback_on_step_end, num_inference_steps, output_type, height=16):
        import torch

        self.calls.append({"prompt": prompt, "seed": generator.initial_seed(), "height": height})
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, None, {})
        frames = torch.rand(5, height, 16, 3, generator=generator).numpy()
        return type("Output", (), {"frames": [frames]})

    def load_lora_weights(self, path, adapter_name):
        self.loras.append(path)

    def set_adapters(self, names, strengths):
        self.loras.append(f"{names} {strengths}")

    def unload_lora_weights(self):
        self.loras.append("unloaded")


def test_a_pipeline_is_called_with_each_arms_settings(tmp_path: Path, make_plan) -> None:
    from latent_physics.evaluation.generate import generate

    settings = {"source": "tiny", "fps": 8, "call": {"num_inference_steps": 2}}
    arms = {"plain": {}, "lora": {"lora": "x.safetensors", "lora_strength": 0.5}, "large": {"height": 32}}
    plan = make_plan("own", ["a", "b"], arms=arms, pipeline=settings, baselines=False)
    pipe = TinyPipe()
    manifest = Manifest(tmp_path, "own")
    generate(plan, manifest, [PipelineSource(plan, load=lambda settings: pipe)])
    assert [call["prompt"] for call in pipe.calls] == ["a"] * 3 + ["b"] * 3
    assert len({call["seed"] for call in pipe.calls}) == 2
    assert [call["height"] for call in pipe.calls] == [16, 16, 32] * 2
    assert pipe.loras == ["x.safetensors", "['arm'] [0.5]", "unloaded"] * 2
    record = manifest.records["lora", "1", 1, 0]
    assert (record.model, record.lora, record.fps, record.frames) == ("tiny", ("x.safetensors",), 8.0, 5)
    wrong = make_plan("own", ["a"], arms={"plain": {"no_such": 1}}, pipeline=settings, baselines=False)
    with pytest.raises(EvaluationError, match="does not take these settings"):
        generate(wrong, Manifest(tmp_path / "b", "own"), [PipelineSource(wrong, load=lambda settings: pipe)])


def test_a_folder_that_is_no_pipeline_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is no pipeline that diffusers loads"):
        load_pipeline({"source": str(tmp_path), "device": "cpu", "fps": 8})
