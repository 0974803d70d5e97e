"""Former names of settings. Flags and recipe files may still use them, with a note; checkpoints of older runs
are read by them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

RENAMED: dict[str, tuple[str, ...]] = {
    "rate": ("learning_rate",),
    "lr": ("learning_rate",),
    "projector_rate": ("projector_learning_rate",),
    "vae_rate": ("vae_learning_rate",),
    "base_rate": ("base_learning_rate",),
    "final_rate": ("final_share",),
    "clip": ("max_grad_norm",),
    "drop_prompt": ("prompt_dropout",),
    "drop_probability": ("prompt_dropout",),
    "validation": ("held_out", "held_out_clips"),
}
"""Former name -> its names now, a share before a number of clips: settings have one of them."""


def current_name(name: str, known: Collection[str]) -> str:
    """The name now of a setting, among the `known` ones; `name` itself if it is known or never was a name."""
    if name in known:
        return name
    return next((new for new in RENAMED.get(name, ()) if new in known), name)


def current_names(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """`values` under the names of now; a value under a name of now wins over one under a former name."""
    found = {current_name(key, known): value for key, value in values.items()}
    return found | {key: value for key, value in values.items() if key in known}


def current_flags(argv: list[str], known: Collection[str]) -> list[str]:
    """A command line with `--former-name` replaced by `--name`; says so once per flag, on stderr."""
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        old = flag[2:].replace("-", "_")
        new = current_name(old, known)
        if flag.startswith("--") and new != old:
            note(flag, flagged(new))
            word = flagged(new) + equals + value
        words.append(word)
    return words


def flagged(name: str) -> str:
    """A setting's name as a flag."""
    return "--" + name.replace("_", "-")


def note(old: str, new: str) -> None:
    """Says that a name is a former one, on stderr."""
    print(f"note: {old} is called {new} now.", file=sys.stderr)
