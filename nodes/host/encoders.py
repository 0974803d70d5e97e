"""Frozen video encoders as ComfyUI lists, finds and loads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ...methods.weights import WeightsError
from . import files

if TYPE_CHECKING:
    from ...encoders import Teacher


FOLDER = "video_encoders"
KINDS = ("videomae", "vjepa2")
"""Kinds of the pack's own encoder files, and `model_type` in a transformers folder's config.json."""


def register_folder() -> None:
    """Makes `models/video_encoders` a model folder; keeps what extra_model_paths.yaml added."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | files.EXTENSIONS)


def encoder_names() -> list[str]:
    """The loader's menu."""
    register_folder()
    own = [f"{FOLDER}/{name}" for name in folder_paths.get_filename_list(FOLDER)]
    return list(dict.fromkeys([name for kind in KINDS for name in files.list_files(kind)] + own))


def find_encoder(name: str) -> tuple[str, Path]:
    """(what it is, its file): "videomae" or "vjepa2" in this pack's own format, "folder" or "videomae v2" of
    others.

    Raises ValueError, in one sentence, where it is missing or no video encoder.
    """
    if not name.startswith(f"{FOLDER}/"):
        kind = files.file_info(name).kind
        if kind not in KINDS:
            raise WeightsError(f"{name} holds a {kind}, not a video encoder.")
        return kind, files.find_file(name)
    register_folder()
    inner = name.removeprefix(f"{FOLDER}/")
    found = folder_paths.get_full_path(FOLDER, inner) if Path(inner).suffix in files.EXTENSIONS else None
    if found is None:
        raise WeightsError(
            f"{inner} is not in models/{FOLDER}: put the encoder there, or choose another one."
        )
    if not Path(found).with_name("config.json").is_file():
        return "videomae v2", Path(found)
    return "folder", Path(found)


def load_encoder(name: str) -> Teacher:
    """The encoder of a name in the menu, on the CPU. Raises ValueError, in one sentence, where it cannot be
    loaded."""
    from ...encoders import TeacherError, VideoMAETeacher, VJEPATeacher
    from ...encoders.videomae import hub_config, is_v2

    classes = {"videomae": VideoMAETeacher, "vjepa2": VJEPATeacher}
    kind, path = find_encoder(name)
    try:
        if kind in classes:
            return classes[kind].from_weights(path)
        if kind == "videomae v2":
            return VideoMAETeacher.from_source(str(path))
        config = hub_config(str(path.parent))
        model_type = "videomae" if is_v2(config) else config.get("model_type")
        if model_type not in classes:
            raise TeacherError(
                f"{name} is a {model_type} model; Load Video Encoder loads {' and '.join(classes)}."
            )
        return classes[model_type].from_source(str(path.parent))
    except (OSError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TeacherError(f"{name} could not be loaded as a video encoder: {reason}") from error


@contextmanager
def on_device(teacher: Teacher) -> Iterator[None]:
    """Inside, the teacher is on ComfyUI's device; room is made for it first. Afterwards it is back on the
    CPU."""
    device = comfy.model_management.get_torch_device()
    size = comfy.model_management.module_size(teacher.model)
    comfy.model_management.free_memory(2 * size, device)
    try:
        with torch.inference_mode(False):
            teacher.model.to(device)
        teacher.device = device
        yield
    finally:
        with torch.inference_mode(False):
            teacher.model.to("cpu")
        teacher.device = torch.device("cpu")
