"""dev.py as a newcomer runs it: by an interpreter without installed packages, and with every failure as one
sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

BARE = [sys.executable, "-E", "-s", "-S"]
# What `prepare` would have made, with a stand-in for ComfyUI and for the environment's programs.
PREPARED = """
import sys
from pathlib import Path
import dev
folder = Path(sys.argv[1])
dev.ROOT = folder
dev.comfyui.ensure = lambda *arguments: None
installation = dev.comfyui.Installation(folder / "comfyui", "1.2.3", own=False)
dev.has_accelerator = lambda python: False  # saves importing torch
dev.prepare = lambda options, rest: dev.Bench(Path(sys.argv[2]), installation, options, rest)
sys.exit(dev.main(sys.argv[3:]))
"""


def run_prepared(
    root: Path, folder: Path, *words: str, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    command = [*BARE, "-c", PREPARED, str(folder), str(python), *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)


def stand_in(folder: Path, source: str) -> None:
    (folder / "comfyui").mkdir()
    (folder / "comfyui" / "main.py").write_text(source)


def test_help_lists_the_commands_without_any_package(root: Path) -> None:
    result = subprocess.run(
        [*BARE, str(root / "dev.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    for name in ("demo", "test", "ui", "bench", "--comfyui", "COMFYUI_PATH"):
        assert name in result.stdout


def test_taken_port_ends_ui_with_a_sentence(root: Path, tmp_path: Path) -> None:
    stand_in(tmp_path, "raise SystemExit('must not be started')")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_prepared(root, tmp_path, "ui", "--port", str(port))
    assert result.returncode == 1
    assert result.stderr.startswith(f"dev.py: port {port} is taken")
    assert result.stderr.count("\n") == 1


UNPREPARED = """
import sys
from pathlib import Path
import dev
dev.ROOT = Path(sys.argv[1])
dev.prepare = lambda options, rest: sys.exit("prepared first")
sys.exit(dev.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ui", "--prot", "1"), "ui does not know --prot 1"),
        (("ui", "--port", "70000"), "there is no port 70000"),
        (("bench", "drfit"), "bench needs the name of a benchmark, one of cost/guidance, "),
        (("demo", "--comfyui", "0.1.0"), "ComfyUI 0.1.0 is not known here"),
        (("test", "--comfyui", "/"), "/ is not a ComfyUI installation"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_installed(
    root: Path, tmp_path: Path, words: tuple, said: str
) -> None:
    command = [*BARE, "-c", UNPREPARED, str(tmp_path), *words]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(f"dev.py: {said}")
    assert result.stderr.count("\n") == 1


def test_dead_server_ends_ui_with_its_last_words_and_its_log(root: Path, tmp_path: Path) -> None:
    stand_in(tmp_path, "print('ImportError: no av'); raise SystemExit(3)")
    result = run_prepared(root, tmp_path, "ui", "--port", "0")
    assert result.returncode == 1
    log = tmp_path / ".bench" / "logs" / "ui.log"
    assert (
        result.stderr == f"dev.py: the ComfyUI server died (exit status 3): ImportError: no av. Log: {log}\n"
    )
    assert log.read_text() == "ImportError: no av\n"


def test_argument_that_ui_does_not_know_is_named(root: Path, tmp_path: Path) -> None:
    result = run_prepared(root, tmp_path, "ui", "--prot", "1")
    assert result.returncode == 1
    assert result.stderr == "dev.py: ui does not know --prot 1: see dev.py --help.\n"


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins for ruff and pytest are shell scripts")
@pytest.mark.parametrize(
    ("lint", "expected"), [(0, "ruff check\npytest"), (1, "ruff check\n")], ids=["clean", "not clean"]
)
def test_test_lints_first_and_hands_its_arguments_to_pytest(
    root: Path, tmp_path: Path, lint: int, expected: str
) -> None:
    for name, status in (("ruff", lint), ("pytest", 5)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $* >> {tmp_path}/calls\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    result = run_prepared(root, tmp_path, "test", "-k", "house", "--maxfail", "1", python=tmp_path / "python")
    calls = (tmp_path / "calls").read_text()
    assert calls.startswith(expected)
    assert calls.endswith("-k house --maxfail 1\n" if lint == 0 else "ruff check\n")
    assert result.returncode == (5 if lint == 0 else 1)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
@pytest.mark.parametrize(
    ("words", "started", "said"),
    [
        (("toyworld/vae", "--clips", "8"), "-m latent_physics.benchmarks.toyworld.vae --clips 8\n", ""),
        (("toy_vae",), "-m latent_physics.benchmarks.toyworld.vae\n", "toy_vae is called toyworld/vae now"),
        (("kernels",), "-m latent_physics.benchmarks.kernels\n", ""),
        (("--list",), "-m latent_physics.benchmarks.run --list\n", ""),
        ((), "-m latent_physics.benchmarks.run\n", ""),
    ],
)
def test_bench_runs_a_benchmark_by_its_name(
    root: Path, tmp_path: Path, words: tuple, started: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $* > {tmp_path}/started\n")
    python.chmod(0o755)
    result = run_prepared(root, tmp_path, "bench", *words, python=python)
    assert (result.returncode, (tmp_path / "started").read_text()) == (0, started)
    assert said in result.stdout + result.stderr


DEMO = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(1)  # a server takes its time
    Path("ended").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, STUBBORN)
signal.signal(signal.SIGTERM, end)
Path("started").touch()
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="a program cannot press Ctrl-C for another one there")
@pytest.mark.parametrize(
    ("sent", "to_all", "stubborn", "status"),
    [
        ([signal.SIGINT], True, False, 1),
        ([signal.SIGINT], False, False, 1),
        ([signal.SIGTERM], False, False, 143),
        ([signal.SIGINT, signal.SIGTERM], False, True, 143),
    ],
    ids=["Ctrl-C", "SIGINT to dev.py alone", "SIGTERM", "SIGTERM after a SIGINT that did not help"],
)
def test_stopped_demo_may_end_what_it_started(
    root: Path, tmp_path: Path, sent: list[int], to_all: bool, stubborn: bool, status: int
) -> None:
    (tmp_path / "devtools").mkdir()
    (tmp_path / "devtools" / "demo.py").write_text(
        DEMO.replace("STUBBORN", "signal.SIG_IGN" if stubborn else "end")
    )
    stand_in(tmp_path, "")
    command = [*BARE, "-c", PREPARED, str(tmp_path), sys.executable, "demo"]
    process = subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "started").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    for number in sent:  # a terminal tells the whole group
        (os.killpg if to_all else os.kill)(process.pid, number)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=30)
    assert (tmp_path / "ended").exists(), errors
    assert process.returncode == status
