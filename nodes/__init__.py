"""Nodes: an artist's side of the pack. A node unpacks ComfyUI's types, calls one method, packs the result."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class LatentPhysicsExtension(ComfyExtension):
    """Every node of the pack, in the order of the menu."""

    async def on_load(self) -> None:
        from .host import encoders, files

        files.register_folder()
        encoders.register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import (
            alignment,
            best_of_n,
            cogvideox,
            critics,
            heatmaps,
            lamo,
            pila,
            pila_views,
            prompt,
            toyworld,
            train,
            train_lora,
        )

        rooms = (
            toyworld,
            lamo,
            heatmaps,
            train,
            prompt,
            pila,
            pila_views,
            alignment,
            critics,
            best_of_n,
            cogvideox,
            train_lora,
        )
        return [node for room in rooms for node in room.NODES]
