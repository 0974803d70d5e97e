"""The eight worlds, one file each, in the order of PILA's categories."""

from __future__ import annotations

from .base import Scene, World
from .collision import Collision
from .compressible_flow import CompressibleFlow
from .elastic import Elastic
from .fluid import Fluid
from .optical import Optical
from .phase_change import PhaseChange
from .rigid_body import RigidBody
from .thermal import Thermal

WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        RigidBody(),
        Elastic(),
        Fluid(),
        CompressibleFlow(),
        Collision(),
        PhaseChange(),
        Thermal(),
        Optical(),
    )
}

__all__ = ["WORLDS", "Scene", "World"]
