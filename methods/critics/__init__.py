"""Critics: judges of physical plausibility that need no training, and the gate that keeps a still clip from
winning.

A critic has `judge(clip, fps, cond=None) -> Judgement`. What it reads is `critic.reads`: frames `B 3 T H W`
in [0, 1], or a
latent `B C T H W` as the sampler holds it.
"""

from .gate import gate_of_pool, latent_motion, motion_gate, pixel_motion, rank
from .geometry import TrajectoryGeometry
from .judgement import Critic, CriticError, Judgement
from .motion import MotionConsistency
from .surprise import CausalSurprise

__all__ = [
    "CausalSurprise",
    "Critic",
    "CriticError",
    "Judgement",
    "MotionConsistency",
    "TrajectoryGeometry",
    "gate_of_pool",
    "latent_motion",
    "motion_gate",
    "pixel_motion",
    "rank",
]
