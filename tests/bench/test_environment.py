"""The environment: what is installed, when it is installed again, and what a failure says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from latent_physics.devtools import environment, shell
from latent_physics.devtools.comfyui import Installation
from latent_physics.devtools.shell import BenchError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone with an environment and a ComfyUI."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("# pins\ncomfy-kitchen==0.2.26\nSciPy==1.17.1\n")
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "requirements.txt").write_text("comfy_kitchen==0.2.10\nscipy\nav>=14 # video\n")
    return tmp_path


def installation(clone: Path, own: bool = False) -> Installation:
    return Installation(clone / "comfy", "1.2.3", own)


def test_our_pins_win_over_a_release_and_the_users_installation_wins_over_ours(clone: Path) -> None:
    wanted, pins = environment.requirements_for(clone, installation(clone))
    assert wanted.splitlines() == ["comfy_kitchen", "scipy", "av>=14 # video"]
    assert "comfy-kitchen==0.2.26" in pins.splitlines()
    wanted, pins = environment.requirements_for(clone, installation(clone, own=True))
    assert "comfy_kitchen==0.2.10" in wanted.splitlines()
    assert pins.splitlines() == ["# pins", "SciPy==1.17.1"]


def test_second_run_installs_nothing_until_something_changes(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(environment, "run_logged", lambda command, **_: calls.append(command))
    environment.install(clone, Path("python"), installation(clone))
    environment.install(clone, Path("python"), installation(clone))
    assert len(calls) == 1
    assert {"torch", "torchvision", "torchaudio", f"{clone}[train,dev]"} <= set(calls[0])
    (clone / "constraints.txt").write_text("comfy-kitchen==0.2.27\n")
    environment.install(clone, Path("python"), installation(clone))
    assert len(calls) == 2


def test_failed_installation_is_repeated(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_works = False
    calls = []

    def pip(command: list, **_: object) -> None:
        calls.append(command)
        if not environment_works:
            raise BenchError("no")

    monkeypatch.setattr(environment, "run_logged", pip)
    with pytest.raises(BenchError):
        environment.install(clone, Path("python"), installation(clone))
    environment_works = True
    environment.install(clone, Path("python"), installation(clone))
    assert len(calls) == 2


def test_environment_that_does_not_start_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        environment, "run_logged", lambda command, **_: calls.append([str(part) for part in command])
    )
    python = environment.make(tmp_path)
    assert calls == [[sys.executable, "-m", "venv", "--clear", str(tmp_path / ".venv")]]
    assert python.is_relative_to(tmp_path / ".venv")


def test_too_small_a_disk_is_found_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shell.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1.5 * shell.GIGABYTE)
    )
    with pytest.raises(BenchError, match=r"needs about \d\.0 GB, and .* has 1\.5 GB free"):
        environment.make(tmp_path)
    assert not (tmp_path / ".venv").exists()


PIP_SAYS = {
    "OSError: [Errno 28] No space left on device": "the disk is full",
    "WARNING: Retrying ... Failed to establish a new connection: [Errno -3] Temporary failure in name "
    "resolution\n"
    "ERROR: No matching distribution found for torch==2.11.0": "the package index cannot be reached",
    "ERROR: No matching distribution found for torch==2.11.0": "no version that fits this Python",
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS "
    "FILE.": "does not have the pinned hash",
    "something\nERROR: never seen before\n": "ERROR: never seen before",
}


@pytest.mark.parametrize("output", PIP_SAYS, ids=range(len(PIP_SAYS)))
def test_failed_command_is_one_sentence_with_its_cause_and_log(tmp_path: Path, output: str) -> None:
    log = tmp_path / "logs" / "pip.log"
    with pytest.raises(BenchError) as caught:
        shell.run_logged(
            [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"],
            what="installing packages",
            log=log,
        )
    sentence = rf"installing packages failed: .*{re.escape(PIP_SAYS[output])}.*\. Log: {re.escape(str(log))}"
    assert re.fullmatch(sentence, str(caught.value))
    assert output.strip() in log.read_text()


def test_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"making it failed: .*no-such-program"):
        shell.run_logged([tmp_path / "no-such-program"], what="making it", log=tmp_path / "log")
