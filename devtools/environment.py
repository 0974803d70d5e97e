"""The virtual environment of the bench: `.venv` with pinned versions, made once and left alone while its
stamp fits.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .comfyui import Installation
from .shell import require_space, run_logged, say

STAMP = "latent-physics-stamp"
TORCH = ("torch", "torchvision", "torchaudio")
INSTALLED_SIZE = (
    9.0 if sys.platform.startswith("linux") else 4.0
)  # GB; PyPI's torch for Linux brings CUDA's libraries


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(root: Path) -> Path:
    """Makes `.venv` if it is missing or does not run; returns its interpreter. Raises BenchError."""
    folder = root / ".venv"
    python = python_of(folder)
    if runs(python):
        return python
    require_space(root, INSTALLED_SIZE, "the environment (.venv)")
    say(f"making {folder}")
    log = root / ".bench" / "logs" / "venv.log"
    run_logged(
        [sys.executable, "-m", "venv", "--clear", folder], what="making the virtual environment", log=log
    )
    return python


def runs(python: Path) -> bool:
    """Whether an environment's interpreter and its pip start; not so after the Python it was made from was
    removed.
    """
    try:
        return subprocess.run([str(python), "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def install_builder(root: Path, python: Path) -> None:
    """Installs setuptools, which packages that come as source are built with; torch bounds its version."""
    if stamp_of(root) is None:
        pip_install(root, python, ["setuptools", "-c", str(root / "constraints.txt")], what="setuptools")


def install(root: Path, python: Path, comfyui: Installation) -> None:
    """Installs torch, what ComfyUI asks for and this pack with its extras, unless the stamp says that it has
    been done.
    """
    wanted, pins = requirements_for(root, comfyui)
    stamp = fingerprint(root, wanted, pins)
    if stamp_of(root) == stamp:
        return
    say("installing packages: some minutes the first time, most of them for downloading torch")
    folder = root / ".bench"
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_text(wanted, encoding="utf-8")
    (folder / "constraints.txt").write_text(pins, encoding="utf-8")
    files = ["-r", str(folder / "requirements.txt"), "-c", str(folder / "constraints.txt")]
    (root / ".venv" / STAMP).unlink(missing_ok=True)
    pip_install(
        root, python, ["--no-build-isolation", *TORCH, "-e", f"{root}[train,dev]", *files], what="packages"
    )
    (root / ".venv" / STAMP).write_text(stamp, encoding="utf-8")


def pip_install(root: Path, python: Path, arguments: list[str], *, what: str) -> None:
    # The environment's own pip as a module: a `pip` found on PATH may belong to another Python.
    command = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
    run_logged(command, what=f"installing {what}", log=root / ".bench" / "logs" / f"install-{what}.log")


def requirements_for(root: Path, comfyui: Installation) -> tuple[str, str]:
    """Requirements of a ComfyUI and the pins to install them by, as the texts of two files.

    Our releases all run on one set of versions, so that switching between them installs nothing: ComfyUI's
    own exact pins give way to constraints.txt. In the user's installation it is the other way about: its pins
    win over ours.
    """
    wanted = (comfyui.path / "requirements.txt").read_text(encoding="utf-8")
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    if comfyui.own:
        stated = names_of(line for line in wanted.splitlines() if "==" in line)
        return wanted, "".join(f"{line}\n" for line in pins.splitlines() if not names_of([line]) & stated)
    return re.sub(r"==[^\s;#]+", "", wanted), pins


def names_of(lines: Iterable[str]) -> set[str]:
    """Normalised package names at the start of requirement lines; comments and options have none."""
    found = (re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match.group(1)).lower() for match in found if match}


def fingerprint(root: Path, wanted: str, pins: str) -> str:
    """Changes whenever an installation has to be repeated; the path counts because the pack is installed by
    its path.
    """
    parts = [wanted, pins, (root / "pyproject.toml").read_text(encoding="utf-8"), str(root)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp_of(root: Path) -> str | None:
    try:
        return (root / ".venv" / STAMP).read_text(encoding="utf-8")
    except OSError:
        return None
