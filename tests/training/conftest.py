"""ComfyUI's own model code, in this process and on the CPU, to compare ours with."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session")
def comfy(comfyui_path):
    """The `comfy` package, importable and told to stay on the CPU."""
    if str(comfyui_path) not in sys.path:
        sys.path.append(str(comfyui_path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.ldm.cogvideo.model
    import comfy.ldm.wan.model
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.sd
    import comfy.utils

    return comfy
