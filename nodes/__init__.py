"""What an artist wires. A node unpacks ComfyUI's types, calls one method, packs the result."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class LatentPhysicsExtension(ComfyExtension):
    """Every node of the pack, in the order of the menu."""

    async def on_load(self) -> None:
        from .host import encoders, files

        files.register_folder()
        encoders.register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import alignment, lamo, pila, prompt, toyworld, train

        return [*toyworld.NODES, *lamo.NODES, *train.NODES, *prompt.NODES, *pila.NODES, *alignment.NODES]
