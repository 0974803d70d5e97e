"""Eight small physical worlds, one per PILA category, and the tiny models trained on them.

Each world is a law with fixed constants, a renderer (64 x 64, 33 frames) and prompts; `score` reads from
pixels alone how well a clip keeps the law.
"""

from .data import mixture, sample
from .scores import Scores, adherence, dynamic_degree, evaluate, law_residual, permanence, score
from .worlds import WORLDS

__all__ = [
    "WORLDS",
    "Scores",
    "adherence",
    "dynamic_degree",
    "evaluate",
    "law_residual",
    "mixture",
    "permanence",
    "sample",
    "score",
]
