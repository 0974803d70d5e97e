"""ComfyUI's own model code, in this process and on the CPU, to compare ours with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def comfy():
    """The `comfy` package of the installation in COMFYUI_PATH, or of the one that dev.py put into .comfyui."""
    path = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "0.30.0")
    if not (path / "comfy").is_dir():
        pytest.skip(f"no ComfyUI at {path}: run dev.py or set COMFYUI_PATH")
    if str(path) not in sys.path:
        sys.path.append(str(path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.ldm.cogvideo.model
    import comfy.ldm.wan.model
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.sd
    import comfy.utils

    return comfy
