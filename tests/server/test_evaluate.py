"""`latent-physics evaluate` against real servers: killed, resumed, one of two workers gone for good."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from latent_physics.devtools.server import ComfyServer
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.plan import load_plan
from latent_physics.training.__main__ import main

pytestmark = pytest.mark.server
PROMPTS, RUNS = 2, 2
RUN = "import sys; from latent_physics.training.__main__ import main; sys.exit(main(sys.argv[1:]))"


def toy_graph(frames: int = 9, steps: int = 2) -> dict[str, Any]:
    """The toy world in stock nodes; node 10 is LaMo Guidance, wired to nothing until an arm wants it."""
    sampler = {
        "seed": 0,
        "steps": steps,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    guidance = {"strength": 2.0, "active": 0.8, "lag": 0, "max_ratio": 0.0, "full_trace": False}
    size = {"width": 64, "height": 64, "length": frames, "batch_size": 1}
    save = {"filename_prefix": "x", "format": "mp4", "codec": "h264"}
    predictor = {"name": "toy/toy_predictor_order1.safetensors"}
    return {
        "1": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ball", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
        "5": {"class_type": "KSampler", "inputs": {**sampler, **wires}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "CreateVideo", "inputs": {"images": ["6", 0], "fps": 16.0}},
        "8": {"class_type": "SaveVideo", "inputs": {"video": ["7", 0], **save}},
        "9": {"class_type": "LatentPhysicsLoadMotionPredictor", "inputs": predictor},
        "10": {
            "class_type": "LatentPhysicsLaMoGuidance",
            "inputs": {"model": ["1", 0], "predictor": ["9", 0], **guidance},
        },
    }


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """A folder with a plan: 2 prompts, 2 runs, arms plain and lamo."""
    (tmp_path / "graph.json").write_text(json.dumps(toy_graph()), encoding="utf-8")
    (tmp_path / "arms.toml").write_text('[plain]\n[lamo]\n"5.model" = ["10", 0]\n', encoding="utf-8")
    out = tmp_path / "run"
    files = ["--graph", str(tmp_path / "graph.json"), "--arms", str(tmp_path / "arms.toml")]
    size = ["--prompts", str(PROMPTS), "--runs", str(RUNS), "--label", "toy"]
    assert main(["evaluate", "plan", "--out", str(out), "--benchmark", "toyworld", *files, *size]) == 0
    return out


def start(out: Path, servers: list[ComfyServer]) -> subprocess.Popen[bytes]:
    """`evaluate generate` in a process of its own."""
    urls = [server.url for server in servers]
    command = [
        sys.executable,
        "-c",
        RUN,
        "evaluate",
        "generate",
        "--out",
        str(out),
        "--servers",
        *urls,
        "--patience",
        "2",
    ]
    return subprocess.Popen(command)


def lines(out: Path) -> int:
    """Whole lines of the manifest."""
    path = out / "manifest.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Returns once the manifest has `count` lines or the process has ended."""
    deadline = time.monotonic() + 300
    while lines(out) < count and process.poll() is None:
        assert time.monotonic() < deadline, f"{lines(out)} of {count} clips after five minutes"
        time.sleep(0.05)


def test_three_kills_and_a_dead_server_leave_every_clip_once(
    planned: Path, server: ComfyServer, start_server
) -> None:
    second = start_server("other")
    for number in range(3):
        process = start(planned, [server, second])
        wait_for(planned, lines(planned) + 1, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if number == 1:
            second.process.kill()
            second.process.wait()
    assert lines(planned) < PROMPTS * RUNS * 2, "nothing was left to resume"
    assert start(planned, [server, second]).wait(300) == 0

    plan = load_plan(planned)
    manifest = Manifest(planned, "toyworld")
    arms = ["plain", "lamo", "static", "shuffled"]
    expected = {(arm, p.id, run, 0) for arm in arms for p in plan.prompts for run in (1, 2)}
    assert set(manifest.records) == expected
    assert lines(planned) == len(expected)
    assert {path for path in planned.glob("clips/**/*") if path.is_file()} == {
        manifest.file_of(record) for record in manifest.records.values()
    }
    for prompt in plan.prompts:
        for run in (1, 2):
            plain, lamo = (manifest.records[arm, prompt.id, run, 0] for arm in ("plain", "lamo"))
            assert plain.seed == lamo.seed
            assert plain.graph != lamo.graph
            assert (plain.frames, plain.fps, plain.width) == (9, 16.0, 64)
            assert manifest.file_of(plain).read_bytes() != manifest.file_of(lamo).read_bytes()
    assert len({record.seed for record in manifest.records.values()}) == PROMPTS * RUNS
    assert lamo.corrections[0].startswith("LaMoGuidance(strength=2.0")
    assert plain.corrections == ()


def test_no_clip_was_made_twice_by_one_server(planned: Path, server: ComfyServer) -> None:
    process = start(planned, [server])
    wait_for(planned, 2, process)
    process.kill()
    process.wait()
    assert start(planned, [server]).wait(300) == 0
    jobs = {
        record.job
        for record in Manifest(planned, "toyworld").records.values()
        if record.arm in ("plain", "lamo")
    }
    history = server.get_json("/history")
    prefixes = [
        entry["prompt"][2]["8"]["inputs"].get("filename_prefix", "")
        for entry in history.values()
        if "8" in entry["prompt"][2]
    ]
    here = [prefix for prefix in prefixes if prefix.rpartition("/")[2] in jobs]
    assert len(here) == len(set(here)) == PROMPTS * RUNS * 2


def test_a_graph_that_the_server_refuses_is_one_sentence(planned: Path, server: ComfyServer, capsys) -> None:
    plan = json.loads((planned / "plan.json").read_text())
    plan["graph"]["1"]["class_type"] = "NoSuchLoader"
    (planned / "plan.json").write_text(json.dumps(plan))
    assert main(["evaluate", "generate", "--out", str(planned), "--servers", server.url]) == 1
    assert "refuses the graph" in capsys.readouterr().err
    assert lines(planned) == 0


def test_a_node_that_fails_is_tried_again_and_then_given_up(
    planned: Path, server: ComfyServer, capsys
) -> None:
    plan = json.loads((planned / "plan.json").read_text())
    plan["prompts"] = plan["prompts"][:1]
    plan["runs"] = 1
    plan["arms"] = {"plain": {}, "lamo": {"5.latent_image": ["11", 0], "11": failing_node()}}
    (planned / "plan.json").write_text(json.dumps(plan))
    assert (
        main(["evaluate", "generate", "--out", str(planned), "--servers", server.url, "--retries", "1"]) == 1
    )
    assert "given up: lamo, prompt 1" in capsys.readouterr().out
    assert {key[0] for key in Manifest(planned, "toyworld").records} == {"plain", "static", "shuffled"}


def failing_node() -> dict[str, Any]:
    """A stock node that validates and then fails: latents of another number of channels."""
    return {"class_type": "EmptyLatentAudio", "inputs": {"seconds": 4.0, "batch_size": 1}}
