"""Writes docs/models.md, the table of video models: `python -m devtools.model_table` from the repository's
root."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
HEAD = """# Video models

Written by `python -m devtools.model_table` from [methods/video_models.py](../methods/video_models.py), which tests compare with ComfyUI's
own classes: a release with another video model is noticed.

- **name**: as commands take it (`latent-physics cache --model NAME`, `predictor --first NAME`); the node's **latent_space** is the second
  column. Models of one space share motion predictors that were trained without prompts.
- **latents**: channels; frames and pixels per latent; the frames that the VAE takes whole.
- **prompt**: numbers per token on a CONDITIONING wire, and the type in CLIPLoader's menu.
- **s per latent frame**: time from one latent frame to the next at the model's own rate; a predictor's lag is a number of them.

"""
COLUMNS = (
    "model", "name", "latent_space", "channels", "frames / latent", "pixels / latent", "frames", "prompt",
    "samples as", "fps", "s per latent frame", "usual size", "sides", "ComfyUI's classes",
)  # fmt: skip


def table() -> ModuleType:
    """methods/video_models.py, without the packages that its room needs."""
    name = "latent_physics_video_models"
    spec = importlib.util.spec_from_file_location(name, ROOT / "methods" / "video_models.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def page() -> str:
    """The whole page."""
    data = table()
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(data, model) for model in data.MODELS.values())]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    others = [f"- `{name}` {does}." for name, does in data.NOT_VIDEO.items()]
    also = ["", "Classes of ComfyUI whose latents have frames, and that make no video:", "", *others]
    return HEAD + "\n".join(lines + also) + "\n"


def row(data: ModuleType, model: object) -> tuple[str, ...]:
    """Cells of a model."""
    space, (width, height, frames) = data.SPACES[model.space], model.size
    seconds = data.seconds_per_latent_frame(space.name, model.fps)
    return (
        model.title + (" (with sound)" if model.sound else ""),
        f"`{model.name}`",
        f"`{space.name}`",
        str(space.channels),
        f"{space.frames.stride:g}",
        str(space.pixels),
        str(space.frames),
        f"{model.prompt_width}, {model.clip_type}",
        model.sampling,
        f"{model.fps:g}",
        f"{seconds:.3g}",
        f"{width} x {height}, {frames}",
        f"multiples of {model.side_multiple}",
        ", ".join(model.classes),
    )


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
