"""Short fine-tunes whose files are loaded elsewhere, and what a model with such a file must be: computed from
the run's own weights, in float64."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import Backbone
from latent_physics.training.backbones.first_frame import FirstFrame
from latent_physics.training.backbones.keys import to_native
from latent_physics.training.backbones.lora import TuneConfig, scaling
from latent_physics.training.console import ProgressLine
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.task import Run
from safetensors.torch import save_file
from torch import Tensor, nn

SHAPES = {
    "toy": (3, 4, 4), "wan-i2v": (3, 4, 4), "wan-i2v-clip": (3, 4, 4), "wan-5b": (3, 4, 4),
    "cogvideox": (1, 8, 90), "cogvideox-5b": (2, 8, 12), "cogvideox-1.5": (2, 8, 12), "hunyuan15": (3, 4, 4),
}  # fmt: skip
"""Latents `T H W`. CogVideoX-2B's fixed position table fits latents 90 wide."""
MODULES = {
    "toy": 20, "wan-i2v": 20, "wan-i2v-clip": 24, "wan-5b": 20,
    "cogvideox": 8, "cogvideox-5b": 8, "cogvideox-1.5": 8, "hunyuan15": 2 * 8 + 2 * 4,
}  # fmt: skip
"""Layers that a LoRA of two blocks patches in ComfyUI; of HunyuanVideo 1.5 also two refiner blocks'."""
APART = {"hunyuan15": 2 * 12 + 2 * 6}
"""The same in diffusers, where queries, keys and values are layers of their own in both."""
WIDTH = 4096
"""Of the text tokens, as ComfyUI expects Wan's and CogVideoX's."""
WIDTHS = {"hunyuan15": 3584}
"""The same of others."""


def trained(folder: Path, family: str, tune: TuneConfig, **settings) -> Run:
    """A short run with a rate high enough to leave visible weights."""
    (folder / "data").mkdir(parents=True)
    data = tiny_run.clips(
        folder / "data",
        [SHAPES[family]] * 2,
        tiny_run.latent_space(family),
        length=226 if family.startswith("cogvideox") else 5,
        width=width(family),
        first=first_of(family),
    )
    usual = {"steps": 2, "batch": 1, "learning_rate": 3e-2, "held_out": 0}
    settings = usual | settings
    run = tiny_run.make_run(folder / "run", data, tune=tune, family=family, width=width(family), **settings)
    train(run, progress=ProgressLine("test", io.StringIO()))
    run.task.backbone.dit.eval()
    return run


def plain(family: str, dit: nn.Module | None = None) -> Backbone:
    """The model before its fine-tune, or with another transformer."""
    return tiny_run.backbone(family, width(family), dit)


def width(family: str) -> int:
    """Of the text tokens, as ComfyUI expects them."""
    return WIDTHS.get(family, WIDTH)


def base_file(path: Path, family: str) -> Path:
    """The untrained model as a native file."""
    backbone = plain(family)
    state = to_native(backbone.dit.state_dict(), backbone.dit_keys)
    if family == "cogvideox":
        state["patch_embed.pos_embedding"] = backbone.dit.patch_embed.pos_embedding
    save_file(state, path)
    return path


def with_loras(
    state: Mapping[str, Tensor], runs: Iterable[tuple[Run, TuneConfig, float]]
) -> dict[str, Tensor]:
    """W + sum of strength * scale * B A, of weights under diffusers' names; (run, its tune, strength)."""
    out = {key: value.double() for key, value in state.items()}
    for run, tune, strength in runs:
        values = dict(run.task.backbone.dit.named_parameters())
        for key in [key for key in values if ".lora_A." in key]:
            product = values[key.replace(".lora_A.", ".lora_B.")].double() @ values[key].double()
            out[key.replace(".lora_A.default.", ".")] += strength * scaling(tune) * product.detach()
    return {key: value.to(state[key].dtype) for key, value in out.items()}


def first_of(family: str) -> dict[str, Tensor]:
    """What a clip keeps of its first frame, for the families that need it."""
    generator = torch.Generator().manual_seed(1)
    if not family.startswith("wan-i2v"):
        return {}
    first = {"latent": torch.randn(16, *SHAPES[family], generator=generator)}
    return first | ({"vision": torch.randn(257, 1280, generator=generator)} if "clip" in family else {})


def first_frame(backbone: Backbone) -> FirstFrame | None:
    """The same for a backbone, as a batch of one."""
    if backbone.first_frame != "needed":
        return None
    found = first_of("wan-i2v-clip" if backbone.sees_with_clip else "wan-i2v")
    return FirstFrame(**{name: value[None] for name, value in found.items()})


@torch.inference_mode()
def answer(backbone: Backbone, latent: Tensor, tokens: Tensor) -> Tensor:
    """What a model predicts in the middle of its noise levels."""
    t = torch.tensor([0.5]) if backbone.prediction == "flow" else torch.tensor([500])
    return backbone.predict(latent, t, tokens, first=first_frame(backbone))


def question(family: str) -> tuple[Tensor, Tensor]:
    """A latent and tokens, the same every time."""
    generator = torch.Generator().manual_seed(0)
    backbone = plain(family)
    latent = torch.randn(1, backbone.latent_channels, *SHAPES[family], generator=generator)
    length = min(backbone.text_length, 512)
    return latent, torch.randn(1, length, width(family), generator=generator)
