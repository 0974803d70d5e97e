"""Short fine-tunes whose files are loaded elsewhere, and what a model with such a file must be: computed from
the run's own weights, in float64."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import Backbone
from latent_physics.training.backbones.keys import to_native
from latent_physics.training.backbones.lora import TuneConfig, scaling
from latent_physics.training.console import ProgressLine
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.task import Run
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {"toy": (3, 4, 4), "cogvideox": (1, 8, 90), "cogvideox-5b": (2, 8, 12), "cogvideox-1.5": (2, 8, 12)}
"""Latents `T H W`. CogVideoX-2B's fixed position table fits latents 90 wide."""
MODULES = {"toy": 20, "cogvideox": 8, "cogvideox-5b": 8, "cogvideox-1.5": 8}
"""Layers that a LoRA of two blocks patches."""
WIDTH = 4096
"""Of the text tokens, as ComfyUI expects Wan's."""


def trained(folder: Path, family: str, tune: TuneConfig, **settings) -> Run:
    """A short run with a rate high enough to leave visible weights."""
    (folder / "data").mkdir(parents=True)
    data = tiny_run.clips(
        folder / "data",
        [SHAPES[family]] * 2,
        tiny_run.latent_space(family),
        length=5 if family == "toy" else 226,
        width=WIDTH,
    )
    usual = {"steps": 2, "batch": 1, "learning_rate": 3e-2, "held_out": 0}
    run = tiny_run.make_run(folder / "run", data, tune=tune, family=family, width=WIDTH, **(usual | settings))
    train(run, progress=ProgressLine("test", io.StringIO()))
    run.task.backbone.dit.eval()
    return run


def plain(family: str) -> Backbone:
    """The model before its fine-tune."""
    return tiny_run.backbone(family, WIDTH)


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


@torch.inference_mode()
def answer(backbone: Backbone, latent: Tensor, tokens: Tensor) -> Tensor:
    """What a model predicts in the middle of its noise levels."""
    t = torch.tensor([0.5]) if backbone.prediction == "flow" else torch.tensor([500])
    return backbone.predict(latent, t, tokens)


def question(family: str) -> tuple[Tensor, Tensor]:
    """A latent and tokens, the same every time."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 16, *SHAPES[family], generator=generator)
    length = plain(family).text_length
    return latent, torch.randn(1, length, WIDTH, generator=generator)
