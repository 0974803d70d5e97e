"""Official scorers: programs in environments of the user's own, named in one TOML, run on views and resumed
after a crash.

    [videophy]
    python = "/envs/videophy/bin/python"     # interpreter of the scorer's own environment
    root = "/src/videophy"                   # clone of its repository
    checkpoint = "/models/videocon_physics"  # its weights
    environment = { CUDA_VISIBLE_DEVICES = "0" }

Nothing of a scorer is imported here, and nothing of it is a dependency of the pack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields

from .errors import EvaluationError
from .files import read_toml
from .scoring import Scorer


def load_scorers(path: str | os.PathLike[str]) -> dict[str, Scorer]:
    """Scorers of a TOML file by benchmark.

    Raises EvaluationError for unknown settings and values of another type.
    """
    kinds = {
        entry.name: dict if entry.name == "environment" else list if entry.name == "dimensions" else str
        for entry in fields(Scorer)
    }
    found = {}
    for name, values in read_toml(path).items():
        if not isinstance(values, Mapping) or "python" not in values:
            raise EvaluationError(
                f'[{name}] in {path} names no interpreter; write python = "/path/to/its/python".'
            )
        for key, value in values.items():
            if key not in kinds or key == "name":
                known = ", ".join(key for key in kinds if key != "name")
                raise EvaluationError(
                    f"[{name}] in {path} has an unknown setting {key!r}; there are {known}."
                )
            if not isinstance(value, kinds[key]):
                raise EvaluationError(
                    f"{key} of [{name}] in {path} is {value!r}, not a {kinds[key].__name__}."
                )
        values = {**values, "dimensions": tuple(values.get("dimensions", ()))}
        found[name] = Scorer(name=name, **values)
    return found
