"""ComfyUI-LatentPhysics: make video diffusion respect physics.

ComfyUI calls `comfy_entrypoint` and serves `WEB_DIRECTORY`. ComfyUI is imported inside the function, so that
the same tree is an ordinary Python package (`latent_physics`) for the training scripts and the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"
__version__ = "0.1.0"


async def comfy_entrypoint() -> ComfyExtension:
    from .nodes import LatentPhysicsExtension

    return LatentPhysicsExtension()
