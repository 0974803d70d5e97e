"""Where nodes find weights: the model folder `models/latent_physics`, and the toy files that come with the
pack."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...methods.weights import WeightsError, WeightsInfo, read_info

FOLDER = "latent_physics"
EXTENSIONS = {".safetensors"}
SHIPPED_PREFIX = "toy/"
SHIPPED_FOLDER = Path(__file__).resolve().parents[2] / "toyworld" / "weights"


def register_folder() -> None:
    """Makes `models/latent_physics` a model folder. May be called again; keeps what extra_model_paths.yaml
    added."""
    folder = Path(folder_paths.models_dir) / FOLDER
    with suppress(
        OSError
    ):  # a read-only installation can still use the shipped files and extra_model_paths.yaml
        folder.mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (
        paths,
        set(extensions) | EXTENSIONS,
    )  # else every file is listed


def list_files(kind: str) -> list[str]:
    """Names for a loader's menu: files of `kind` in the model folder, then the shipped ones as "toy/...".

    Files of another kind are left out; files that cannot be read stay in, so that choosing one says what is
    wrong with it.
    """
    register_folder()
    own = [name for name in folder_paths.get_filename_list(FOLDER) if _kind(_own_path(name)) in (kind, None)]
    shipped = [name for name, path in _shipped().items() if _kind(path) == kind and name not in own]
    return own + shipped


def find_file(name: str) -> Path:
    """The path of a name from `list_files`. Raises WeightsError where it does not exist or lies outside the
    folders."""
    register_folder()
    path = _own_path(name) or _shipped().get(name)
    if path is None:
        raise WeightsError(
            f"{name} is not in models/{FOLDER}: put the .safetensors file there, or choose another one."
        )
    return path


def is_there(name: str) -> bool:
    """Whether a name from `list_files` has a file."""
    register_folder()
    return (_own_path(name) or _shipped().get(name)) is not None


def file_info(name: str) -> WeightsInfo:
    """The metadata of a name from `list_files`, read anew. Raises WeightsError where the file is missing or
    cannot be read."""
    return read_info(find_file(name))


def fingerprint(name: str | None) -> str:
    """Changes when the file does, so that ComfyUI loads it again."""
    return state_of(name, find_file)


def state_of(name: str | None, find: Callable[[str], Path]) -> str:
    """Changes when the file does that `find` gives for a loader's name. One that another node gives is not
    known when ComfyUI asks (None); it must not fail then, or the node would run in every prompt."""
    if name is None:
        return "from another node"
    try:
        status = find(name).stat()
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_mtime_ns}-{status.st_size}"


def _own_path(name: str) -> Path | None:
    if Path(name).suffix not in EXTENSIONS:
        return None
    found = folder_paths.get_full_path(FOLDER, name)
    return None if found is None else Path(found)


def _shipped() -> dict[str, Path]:
    return {SHIPPED_PREFIX + path.name: path for path in sorted(SHIPPED_FOLDER.glob("*.safetensors"))}


def _kind(path: Path | None) -> str | None:
    """The kind a file says it has, None where it cannot be read."""
    if path is None:
        return None
    status = path.stat()
    return _kind_of_version(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=512)
def _kind_of_version(path: Path, changed: int, size: int) -> str | None:
    try:
        return read_info(path).kind
    except WeightsError:
        return None


NAME = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9][a-z0-9 ._-]{0,99}", re.IGNORECASE)
"""File names that every system takes; Windows reads those at the start as devices."""
ROOM = 64 * 1024**2
"""Bytes that must be free before training: the largest predictor takes 43 MB."""


def check_name(name: str, what: str = "predictor's file") -> None:
    """Raises ValueError for a file name that could lead out of the folder, or that a system would not
    take."""
    if name and not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the {what} name: use letters, digits, spaces, dots, dashes and "
            f"underscores, "
            "and no folder."
        )


def check_place(name: str) -> None:
    """Raises ValueError, before the training and not after it, where nothing could be saved."""
    if not name:
        return
    register_folder()
    folder = Path(folder_paths.models_dir) / FOLDER
    try:
        tempfile.TemporaryFile(dir=folder).close()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}): allow it, or leave the name empty."
        ) from error
    if free < ROOM:
        raise ValueError(
            f"{folder} has {free / 1e6:.0f} MB free and needs {ROOM / 1e6:.0f}: make room, or leave the "
            f"name empty."
        )


def free_path(name: str) -> Path:
    """A file in models/latent_physics that does not exist yet: NAME, or NAME_2, NAME_3 and so on."""
    register_folder()
    folder = Path(folder_paths.models_dir) / FOLDER
    stem = name.removesuffix(".safetensors")
    names = (f"{stem}{f'_{number}' if number > 1 else ''}.safetensors" for number in range(1, 100000))
    return next(folder / file for file in names if not os.path.lexists(folder / file))
