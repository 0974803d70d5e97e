"""What the ComfyUI registry asks of a pack: its own checks pass, its zip is small, and no console chokes on a
source file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ZIP_LIMIT = 25_000_000
"""Bytes; the toy world's weights are most of it."""
PLAIN_TORCH = ("kernels", "methods", "encoders", "toyworld", "training", "tests", "benchmarks")
LEFT_OUT = ("tests/", "benchmarks/", "devtools/", "docs/images/", ".ci/")
NEEDED = (
    "__init__.py",
    "pyproject.toml",
    "requirements.txt",
    "LICENSE",
    "nodes/__init__.py",
    "web/docs/LatentPhysicsLaMoGuidance.md",
)


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def run_tool(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of the environment, without telemetry."""
    tool = Path(sys.executable).with_name(name)
    assert tool.exists(), f"{tool} is missing: python3 dev.py test installs it"
    quiet = {"DO_NOT_TRACK": "1", "HOME": str(cwd / "home"), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [str(tool), *arguments],
        cwd=cwd,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The tracked files as a repository of their own: the tools look at what git knows."""
    names = tracked()
    if not names:
        pytest.skip("the sources are no git checkout: the registry's tools pack what git tracks")
    folder = tmp_path_factory.mktemp("clone") / "pack"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "-A", "-f"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_sources_are_readable_on_every_console() -> None:
    wrong = []
    for name in tracked():
        if name.endswith(".py"):
            for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
                try:
                    line.encode("cp1252")
                except UnicodeEncodeError as error:
                    wrong.append(
                        f"{name}:{number} {line[error.start]!r} is not in cp1252: write it as an escape"
                    )
    assert not wrong, "\n".join(wrong)


def test_the_registrys_validation_passes(clone: Path) -> None:
    found = run_tool("comfy", "--skip-prompt", "--no-enable-telemetry", "node", "validate", cwd=clone)
    assert found.returncode == 0, found.stdout + found.stderr


def test_comfy_tests_lint_finds_nothing_where_comfyui_is_known(clone: Path) -> None:
    """It asks for ComfyUI's own layers and devices. The other rooms are plain torch and must not know ComfyUI
    at all."""
    found = json.loads(run_tool("comfy-test", "lint", "--json", ".", cwd=clone).stdout)
    assert found["results"]["javascript"]["passed"]
    syntax = found["results"]["syntax"]
    assert syntax["passed"] or syntax["error"].startswith("Forbidden patterns"), syntax
    places = re.findall(r"^(\S+\.py):$", syntax.get("details") or "", flags=re.M)
    assert not [place for place in places if place.split("/")[0] not in PLAIN_TORCH], places
    assert "get_torch_device" not in (syntax.get("details") or ""), (
        "a device is named where ComfyUI chooses it"
    )


def test_the_registrys_zip_holds_the_pack_and_not_its_proof(clone: Path) -> None:
    found = run_tool("comfy", "--skip-prompt", "--no-enable-telemetry", "node", "pack", cwd=clone)
    assert found.returncode == 0, found.stdout + found.stderr
    (archive,) = clone.glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert not [name for name in names if name.startswith(LEFT_OUT)]
    assert not set(NEEDED) - set(names)
    assert any(name.startswith("toyworld/weights/") for name in names)
    assert archive.stat().st_size <= ZIP_LIMIT
