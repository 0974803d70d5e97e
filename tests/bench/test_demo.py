"""The demo: its table, its graphs in the real server, and every failure as one sentence with a log."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from latent_physics.devtools import background, demo
from latent_physics.devtools.server import ComfyServer, output_files
from latent_physics.devtools.shell import BenchError

# The table


def measured_with(shifts: tuple[float, ...]) -> dict[demo.Arm, demo.Measured]:
    base = [0.2, 0.4, 0.6, 0.8]
    scores = [{name: [value + shift for value in base] for name in demo.SCORES} for shift in shifts]
    return {
        arm: demo.Measured(scores=found, seconds=[1.0, 2.0, 3.0, 4.0])
        for arm, found in zip(demo.ARMS, scores)
    }


def test_table_holds_means_and_paired_differences() -> None:
    header, *rows = demo.table_of(measured_with((0.0, 0.125, -0.25)), batch=2)
    assert header.split() == ["law", "adherence", "dynamic", "degree", "s/clip"]
    unguided, first, first_gain, second, second_gain = rows
    assert unguided.split() == ["unguided", *["0.500"] * 3, "2.50"]
    assert first.startswith(demo.ARMS[1].name)
    assert first[36:].split() == [*["0.625"] * 3, "2.50"]
    assert second[36:].split() == [*["0.250"] * 3, "2.50"]
    head = f"{'  less unguided':36}"
    assert first_gain == head + f"{'+0.125 [+0.125, +0.125]':>26}" * 3
    assert second_gain == head + f"{'-0.250 [-0.250, -0.250]':>26}" * 3


def test_interval_of_the_table_is_over_prompts() -> None:
    """Four clips of a prompt that are all alike say no more than one of them."""

    def gains(clips: np.ndarray, batch: int) -> str:
        scores = [{name: (clips * factor).tolist() for name in demo.SCORES} for factor in (0.0, 1.0)]
        found = {arm: demo.Measured(scores=part, seconds=[1.0]) for arm, part in zip(demo.ARMS, scores)}
        return list(demo.table_of(found, batch))[-1]

    prompts = np.random.default_rng(3).normal(size=12)
    assert gains(np.repeat(prompts, 4), 4) == gains(prompts, 1)
    assert gains(np.repeat(prompts, 4), 1) != gains(prompts, 1)


# The graphs


@pytest.mark.server
@pytest.mark.parametrize("arm", demo.ARMS, ids=lambda arm: arm.name)
def test_every_row_of_the_table_is_sampled_scored_and_kept(server: ComfyServer, arm: demo.Arm) -> None:
    graph = demo.clip_graph(arm, "collision", "two balls collide", seed=3, batch=1, steps=1)
    assert ("guidance" in graph) == (arm.predictor is not None)
    entry = server.run(server.with_defaults(graph))
    table = json.loads(entry["outputs"]["table"]["text"][0])
    for name in demo.SCORES:
        assert len(table[name]) == 1
        assert 0 <= table[name][0] <= 1
    assert demo.seconds_of(entry) > 0
    (file,) = [item for node, item in output_files(entry) if node == "file"]
    assert server.path_of(file).stat().st_size > 1000


@pytest.mark.server
def test_every_world_can_be_scored(server: ComfyServer) -> None:
    known = server.object_info()["LatentPhysicsLawScore"]["input"]["required"]["world"]
    menu = known[0] if isinstance(known[0], list) else known[1]["options"]
    assert set(demo.WORLDS) <= set(menu)


@pytest.mark.server
def test_heatmap_is_drawn_over_a_clip(server: ComfyServer, tmp_path: Path) -> None:
    from PIL import Image

    pictures = []
    for step in range(9):
        frame = np.full((64, 96, 3), 40, dtype=np.uint8)
        frame[20:40, 8 * step : 8 * step + 20] = 220
        pictures.append(Image.fromarray(frame))
    path = server.base / "input" / "moving-square.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
    options = argparse.Namespace(out=tmp_path)
    run = demo.Demo(server, options)
    run.keep(run.run(demo.heatmap_graph(path.name)), "file", "heatmaps/moving-square")
    assert run.files == [tmp_path / "heatmaps" / "moving-square.webp"]
    with Image.open(run.files[0]) as drawn:
        assert drawn.n_frames == 9
        assert drawn.size == (192, 192)


@pytest.mark.server
def test_node_that_the_server_does_not_know_is_named(server: ComfyServer) -> None:
    with pytest.raises(
        BenchError, match=r"no node LatentPhysicsAbsent: did its pack load\? Log: .*server\.log"
    ):
        server.with_defaults({"1": demo.node("LatentPhysicsAbsent")})


# What goes wrong

DRIVER = """
import signal, sys
from pathlib import Path
from latent_physics.devtools import background, demo
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as a test run may be one, ignores Ctrl-C
folder = Path(sys.argv[1])
demo.LOG = folder / "server.log"
background.commands = lambda *_: [[sys.executable, str(folder / "training.py"), str(folder)]]
words = ["--comfyui", folder / "comfyui", "--base", folder / "base", "--out", folder / "out", *sys.argv[2:]]
sys.exit(demo.main([str(word) for word in words]))
"""
TRAINS = """
import socket, sys, time
from pathlib import Path
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
Path(sys.argv[1], "port.new").write_text(str(listener.getsockname()[1]))
Path(sys.argv[1], "port.new").rename(Path(sys.argv[1], "port"))
time.sleep(120)
"""
SERVES = """
import http.server, json, os, sys, time
from pathlib import Path
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        known = {name: {"input": {}} for name in Path("nodes.txt").read_text().split()}
        self.answer(200, json.dumps(known))
    def do_POST(self):
        while not Path("../port").is_file():  # the training runs, too
            time.sleep(0.05)
        Path("../queued").touch()
        POST
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def demo_in(folder: Path, root: Path, server: str, *words: str) -> subprocess.Popen[str]:
    """Starts the demo with stand-ins for ComfyUI and for the training."""
    (folder / "comfyui").mkdir()
    (folder / "comfyui" / "main.py").write_text(textwrap.dedent(server))
    kinds = {
        entry["class_type"]
        for path in root.glob("workflows/api/*.json")
        for entry in json.loads(path.read_text()).values()
    }
    (folder / "comfyui" / "nodes.txt").write_text("\n".join(kinds))
    (folder / "training.py").write_text(TRAINS)
    command = [sys.executable, "-c", DRIVER, str(folder), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def training_runs(folder: Path) -> bool:
    """Whether the stand-in still listens on its port, five seconds at most after it was told to stop."""
    port = int((folder / "port").read_text())
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return False
        time.sleep(0.05)
    return True


FAILURES = {
    "dies": (
        'os.write(1, b"RuntimeError: out of memory\\n"); os._exit(7)',
        r"died .exit status 7.: RuntimeError: out of memory",
    ),
    "breaks": ('self.answer(500, "500: it broke")', "ComfyUI answered /prompt with HTTP Error 500"),
    "refuses": (
        'self.answer(400, \'{"error": {"message": "no such\\\\nmodel"}}\')',
        "refused the graph: .*no such",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_is_one_sentence_with_a_log_and_ends_the_training(
    root: Path, tmp_path: Path, failure: str
) -> None:
    post, words = FAILURES[failure]
    process = demo_in(tmp_path, root, SERVES.replace("POST\n", post + "\n"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.count("\n") == 1, errors
    assert re.match(rf"demo: .*{words}.*\. Log: {tmp_path / 'server.log'}\n", errors), errors
    assert not training_runs(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="a program cannot press Ctrl-C for another one there")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminated"]
)
def test_stopped_demo_stops_what_it_started(root: Path, tmp_path: Path, number: int, status: int) -> None:
    process = demo_in(tmp_path, root, SERVES.replace("POST\n", "time.sleep(120)\n"))
    for _ in range(600):
        if (tmp_path / "queued").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    expected = (
        f"demo: stopped; what it made until then is in {tmp_path / 'out'}. Log: {tmp_path / 'server.log'}\n"
    )
    assert errors == (expected if number == signal.SIGINT else "")
    assert not training_runs(tmp_path)


def test_server_that_does_not_start_is_one_sentence(root: Path, tmp_path: Path) -> None:
    process = demo_in(tmp_path, root, "print('ImportError: no av'); raise SystemExit(3)")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    sentence = (
        f"demo: the ComfyUI server died (exit status 3): ImportError: no av. Log: {tmp_path / 'server.log'}\n"
    )
    assert errors == sentence


def test_folder_that_cannot_be_made_is_one_sentence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    process = demo_in(tmp_path, root, "")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("demo: ")
    assert str(tmp_path / "out") in errors
    assert errors.endswith(f"Log: {tmp_path / 'server.log'}\n")
    assert errors.count("\n") == 1


def test_known_causes_and_long_messages_are_one_sentence() -> None:
    full = OSError(28, "No space left on device", "clip.webp")
    assert demo.sentence(full) == f"the disk is full. Log: {demo.LOG}"
    several = BenchError("KSampler failed: ValueError: lag is 40.\nIt must be less. Log: server.log")
    assert (
        demo.sentence(several) == "KSampler failed: ValueError: lag is 40. It must be less. Log: server.log"
    )


@pytest.mark.parametrize("words", [("--clips", "0"), ("--batch", "-1"), ("--batch", "two")])
def test_count_that_is_none_is_named(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse(["--comfyui", "c", "--base", "b", *words])
    assert f"{words[1]} is not a count: give 1 or more" in capsys.readouterr().err


def test_training_that_fails_says_its_own_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ("raise SystemExit('There is no clip in clips.')", "print('second')")
    commands = [[sys.executable, "-c", source] for source in sources]
    monkeypatch.setattr(background, "commands", lambda *_: commands)
    training = background.Training("*", tmp_path, minutes=1, clips=1)
    with pytest.raises(
        BenchError, match=r"training on real clips failed: There is no clip in clips\..* Log: .*training\.log"
    ):
        training.wait()
    training.stop()
    assert "second" not in training.log.read_text()


def test_table_is_printed_although_the_training_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clips took minutes to make; the training may fail for lack of ComfyUI's template packages."""
    monkeypatch.setattr(demo, "ComfyServer", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(demo.Demo, "run_workflows", lambda self: None)
    monkeypatch.setattr(demo.Demo, "draw_heatmaps", lambda self, count: None)
    monkeypatch.setattr(demo.Demo, "measure", lambda self, clips: measured_with((0.0, 0.125, -0.25)))
    failing = [sys.executable, "-c", "raise SystemExit('no clip of the template packages matches')"]
    monkeypatch.setattr(background, "commands", lambda *_: [failing])
    assert demo.main(["--comfyui", "c", "--base", "b", "--out", str(tmp_path / "out"), "--clips", "4"]) == 1
    shown = capsys.readouterr()
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in shown.out
    assert demo.ARMS[1].name in table
    assert "demo: training on real clips failed: no clip of the template packages matches" in shown.err
    assert shown.err.count("\n") == 1
