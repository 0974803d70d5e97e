"""A tiny backbone, a few random cached clips and a run of them: seconds on one core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones import Backbone
from latent_physics.training.backbones.cogvideox import CogVideoXBackbone
from latent_physics.training.backbones.hunyuan15 import HunyuanVideo15Backbone
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.backbones.wan import WanBackbone
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import ClipInfo, write_clip
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.task import Run
from latent_physics.training.tasks.denoise import DenoisingTask
from latent_physics.training.tasks.finetune import FinetuneConfig, about
from torch import Tensor, nn

WIDTH = 32
"""Of the text tokens."""


def backbone(family: str = "toy", width: int = WIDTH, dit: nn.Module | None = None) -> Backbone:
    """A tiny Wan ("toy", "wan", "wan-" and a style of `tiny.WAN_STYLES`), CogVideoX: "cogvideox" (2B),
    "cogvideox-5b" or "cogvideox-1.5", or "hunyuan15"; dit: in place of the family's own."""
    if family.startswith("cogvideox"):
        style = family.partition("-")[2] or "2b"
        return CogVideoXBackbone(
            latent_space=latent_space(family), dit=dit or tiny.cog_dit(style, text_dim=width),
            snr_shift=3.0 if style == "2b" else 1.0,
        )  # fmt: skip
    if family == "hunyuan15":
        return HunyuanVideo15Backbone(
            latent_space=latent_space(family), dit=dit or tiny.hunyuan_dit(text_embed_dim=width)
        )
    style = family.partition("-")[2] or "t2v"
    made = WanBackbone(
        latent_space=latent_space(family), dit=dit or tiny.wan_dit(text_dim=width, style=style)
    )
    made.text_length = 512 if made.sees_with_clip else 8  # diffusers counts CLIP's tokens from the end of 512
    return made


def latent_space(family: str) -> str:
    """That of a family's latents, as `backbone` names it."""
    others = {
        "cogvideox-5b": "cogvideox1.5", "cogvideox-1.5": "cogvideox1.5", "wan-5b": "wan2.2",
        "hunyuan15": "hunyuan_video1.5",
    }  # fmt: skip
    return others.get(family, "wan2.1" if family.startswith("wan") else family)


def clips(
    folder: Path,
    shapes=((3, 4, 4),) * 6,
    latent_space: str = "toy",
    tokens: bool = True,
    length: int = 5,
    width: int = WIDTH,
    first: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes random clips `16 T H W` (48 of Wan 2.2 5B, 32 of HunyuanVideo 1.5), one film each; first: what
    each keeps of its first frame."""
    channels = {"wan2.2": 48, "hunyuan_video1.5": 32}.get(latent_space, 16)
    for index, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(index)
        latent = torch.randn(channels, *shape, generator=generator)
        words = torch.randn(length, width, generator=generator)
        frames, high, wide = (shape[0] - 1) * 4 + 1, shape[1] * 8, shape[2] * 8
        info = ClipInfo(
            source=f"clip{index}.mp4", source_hash=f"{index:032x}", key=f"key{index}", caption="",
            caption_from="none", window=0,
            last=True, start=0.0, frames=frames, width=wide, height=high, fps=0,
        )  # fmt: skip
        path = folder / f"clip{index}.safetensors"
        write_clip(path, latent, words.mean(0), info, latent_space, tokens=words if tokens else None,
                   first=first)  # fmt: skip
        (folder / "frames").mkdir(exist_ok=True)
        from safetensors.torch import save_file

        save_file(
            {
                "frames": torch.randint(
                    0, 256, (frames, high, wide, 3), generator=generator, dtype=torch.uint8
                )
            },
            folder / "frames" / path.name,
        )
    return folder


def make_run(
    out: Path,
    data: Path,
    *,
    tune: TuneConfig | None = None,
    family: str = "toy",
    objectives=None,
    width: int = WIDTH,
    **settings,
) -> Run:
    defaults = {
        "steps": 6,
        "batch": 2,
        "learning_rate": 1e-3,
        "save_every": 2,
        "validate_every": 3,
        "held_out": 0.2,
        "tensorboard": False,
    }
    config = TrainerConfig(**(defaults | settings))
    made = backbone(family, width)
    tune = tune or TuneConfig(rank=4, alpha=8, dropout=0.1)
    attach(made, tune, config.seed)
    found = TrainingClips(data, batch=config.batch, seed=config.seed, held_out=config.held_out)
    null = torch.zeros(1, width) if config.prompt_dropout else None
    task = DenoisingTask(
        made,
        found,
        objectives,
        prompt_dropout=config.prompt_dropout,
        null_tokens=null,
        about=about(FinetuneConfig(recipe="tiny", tune=tune), made),
    )
    return Run(config=config, task=task, out=out)
