"""The same corrections and the training of a LoRA in an older ComfyUI: a process of its own, since one
process holds one ComfyUI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from latent_physics.devtools import comfyui

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).parents[2]
RELEASE = "0.24.1"
OLDER = comfyui.find(ROOT, RELEASE)


@pytest.mark.skipif(
    OLDER is None, reason=f"needs ComfyUI {RELEASE}: `python3 dev.py test` puts it into .comfyui"
)
def test_corrections_and_a_training_in_an_older_release():
    trained = "test_train_lora.py::test_the_lora_on_the_stock_loader_is_what_was_trained"
    files = [
        str(ROOT / "tests" / "nodes" / name)
        for name in ("test_patching.py", "test_lamo_nodes.py", "test_pila_nodes.py", trained)
    ]
    # The script, not `python -m pytest`: that puts this folder on sys.path, where our nodes/ hides ComfyUI's
    # nodes.py. Compiling takes longer than all the rest, and is torch's business more than the release's.
    pytest_script = str(Path(sys.executable).with_name("pytest"))
    command = [pytest_script, "-p", "no:cacheprovider", "-k", "not torch_compile", *files]
    environment = {**os.environ, "COMFYUI_PATH": str(OLDER.path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout, result.stdout[-2000:]
