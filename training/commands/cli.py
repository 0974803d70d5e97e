"""The border of every command: a typed config becomes a command line, and a failure becomes one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from ..console import TrainingError
from ..renamed import current_flags
from ..settings import names

Config = TypeVar("Config")


def parse(
    config: type[Config],
    argv: list[str],
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Reads `argv` into the dataclass `config`; --help lists its fields with their docstrings. Fields of
    nested dataclasses are options like the others. `defaults` replaces defaults of single fields. Former
    names of options are taken with a note.

    tyro's own `overridable_config_cli` would make a subcommand of every recipe, where `--recipe` stands
    anywhere among the options, may be a JSON file, and decides defaults (`recipes.recipe_name`).

    Raises TrainingError where tyro is missing; argparse-style errors and --help end the process (SystemExit).
    """
    try:
        import tyro
    except ImportError as error:
        hint = "pip install tyro, or all that training needs: pip install -e '.[train]'"
        raise TrainingError(f"{prog} needs tyro, which is not installed: {hint}") from error
    default = config(
        **{field.name: tyro.MISSING for field in fields(config) if _required(field)} | dict(defaults or {})
    )
    flat = (tyro.conf.OmitArgPrefixes,)
    argv = current_flags(argv, names(config))
    return tyro.cli(config, args=argv, prog=prog, description=description, default=default, config=flat)


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def run_command(command: Callable[[], int], *errors: type[BaseException]) -> int:
    """Runs `command`, returns its exit status. TrainingError, OSError and `errors` become one line and status
    1."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a console's code page, cp1252 say, need not have every letter of a file's name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except (TrainingError, OSError, *errors) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
