"""The toy world's trainings as tasks of the one loop: what every stage shares, and the base model."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....methods.step import shifted
from ....toyworld.text import ToyTextEncoder
from ...backbones.wan import TIMESTEPS
from ...console import ProgressLine, StopRequest, TrainingError
from ...loop import processes
from ...loop.config import LoopConfig
from ...loop.loop import Loop
from ...loop.task import Run, Task
from .settings import SHAPED_BY, ToyWorldConfig


class StageStoppedError(Exception):
    """A stage was stopped before its end; the message says at which step."""


def begin_from(module: nn.Module, config: ToyWorldConfig, part: str) -> None:
    """Gives a module, in place, the weights of the toy world's file that `ToyWorldConfig.begin` holds, where
    one is named. Raises TrainingError where the file is missing or of another size."""
    from ...backbones.load import load_backbone

    if config.begin is None:
        return
    path = config.begin / f"toy_{part}.safetensors"
    loaded = getattr(load_backbone("toy", {part: path}, parts=(part,)), part)
    try:
        module.load_state_dict(loaded.state_dict())
    except RuntimeError as error:
        raise TrainingError(
            f"{path} has another width or depth than the settings ask for: give its own, or another --begin."
        ) from error


class StageTask(Task):
    """One stage. Several processes draw the same clips; where a stage can, each takes its share of them."""

    latent_space = "toy"
    shared_draws = whole_batches = True

    def __init__(self, name: str, module: nn.Module, names: tuple[str, ...]) -> None:
        """names: what the module returns, the loss first."""
        self.name, self.module, self.names = name, module, names
        self.about, self.shown = {"recipe": f"toy world, {name}"}, names[1:]
        self.pictures = {"curves.png": {name: names}}

    def fingerprint(self) -> str:
        return "toy world"


class Texts(tuple[str, ...]):
    """Prompts as an argument of a module."""

    def to(self, device: Any) -> Texts:
        """Words are everywhere."""
        return self


def run_stage(
    task: StageTask,
    config: ToyWorldConfig,
    *,
    steps: int,
    learning_rate: float,
    batch: int = 1,
    ema: float = 0.0,
    stop: StopRequest | None = None,
) -> None:
    """Trains a stage in a folder of its own and leaves its module with the weights to use, averaged where
    there is an average.

    Several processes (torchrun) average their gradients. Raises StageStoppedError, and TrainingError as
    `loop.train` does.
    """
    from accelerate import DistributedDataParallelKwargs

    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    settings = {"seed": config.seed, "learning_rate": learning_rate} | {
        key: getattr(config, key) for key in SHAPED_BY.get(task.name, ())
    }
    plan = LoopConfig(
        steps=steps, learning_rate=learning_rate, batch=batch, ema=ema, warmup=100, schedule="cosine",
        final_share=0.02, beta2=0.98, seed=config.seed, save_every=config.save_every,
    )  # fmt: skip
    accelerator = processes.start(device=config.device, handlers=[unused])
    loop = Loop(
        Run(config=plan, settings=settings, task=task, out=config.out / task.name, accelerator=accelerator)
    )
    outcome = loop.go(stop, ProgressLine(f"toy world: {task.name}"))
    if outcome.stopped:
        raise StageStoppedError(f"Stopped after step {outcome.step} of {steps} of stage {task.name}")
    task.module.load_state_dict(loop.kept(), strict=False)
    task.module.eval().cpu()


def build_dit(config: ToyWorldConfig) -> nn.Module:
    """An untrained Wan transformer (diffusers' class), heads of 128 channels."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(config.seed + 1)
    return WanTransformer3DModel(
        num_attention_heads=config.width // 128,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        ffn_dim=4 * config.width,
        num_layers=config.layers,
    )


def use_bf16(config: ToyWorldConfig) -> bool:
    """Value of `ToyWorldConfig.bf16` on this machine."""
    if config.bf16 != "auto":
        return config.bf16 == "yes"
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if on_cpu:  # older versions of torch cannot tell
        return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.cuda.is_bf16_supported()


class BaseStudent(nn.Module):
    """Flow matching: v = eps - x0 at given noise levels. The text encoder stays as it is."""

    def __init__(self, dit: nn.Module, text: ToyTextEncoder, config: ToyWorldConfig) -> None:
        super().__init__()
        self.dit, self.bf16 = dit, use_bf16(config)
        self._frozen = (
            torch.compile(dit) if config.compiled else dit,
            text,
        )  # in a tuple: no parameters of this module

    def text_to(self, device: torch.device) -> None:
        """Moves the text encoder, which is no part of this module, to its device."""
        self._frozen[1].to(device)

    def forward(self, clean: Tensor, eps: Tensor, sigma: Tensor, texts: Texts) -> dict[str, Tensor]:
        """Latents and noise `B C T H W`, noise levels `B` -> the mean squared error of the velocity."""
        predict, text = self._frozen
        with torch.no_grad():
            tokens = text(list(texts))[0].to(clean)
        mixed = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.bf16), attention(clean.device):
            velocity = predict(
                (1 - mixed) * clean + mixed * eps, sigma * TIMESTEPS, tokens, return_dict=False
            )[0]
        return {"flow": nn.functional.mse_loss(velocity.float(), eps - clean)}


def attention(device: torch.device) -> contextlib.AbstractContextManager:
    """The attention kernel to train with: on a CPU the plain product, which takes less time than torch's
    fused one at the 144 tokens of a toy clip."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


class LatentSource(Protocol):
    """Clips of the mixture as the base model is shown them."""

    def draw(self, number: int, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents `count C T H W` in model scaling and prompts for micro-batch `number`, the same ones every
        time."""


class BaseTask(StageTask):
    """The base model on latents of the mixture, at shifted uniform noise levels; each process takes every
    n-th clip."""

    def __init__(self, config: ToyWorldConfig, text: ToyTextEncoder, clips: LatentSource) -> None:
        super().__init__("base", BaseStudent(build_dit(config), text, config), ("flow",))
        self.config, self.clips = config, clips

    def placed(self, accelerator: Any) -> None:
        self.mine = slice(accelerator.process_index, None, accelerator.num_processes)
        self.module.text_to(accelerator.device)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Texts]:
        config, mine = self.config, self.mine
        clean, prompts = self.clips.draw(number, config.batch, generator)
        eps = torch.randn(clean.shape, generator=generator)
        # one draw per stratum: the same mean loss with less noise
        u = (torch.arange(config.batch) + torch.rand(config.batch, generator=generator)) / config.batch
        sigma = shifted(u, config.shift)
        dropped = torch.rand(config.batch, generator=generator) < config.prompt_dropout
        texts = ["" if drop else prompt for drop, prompt in zip(dropped.tolist(), prompts)]
        return clean[mine], eps[mine], sigma[mine], Texts(texts[mine])


def train_base(
    config: ToyWorldConfig,
    text: ToyTextEncoder,
    clips: LatentSource,
    stop: StopRequest | None = None,
) -> nn.Module:
    """The base model, averaged, in evaluation mode. Raises as `run_stage`."""
    task = BaseTask(config, text, clips)
    begin_from(task.module.dit, config, "dit")
    run_stage(
        task,
        config,
        steps=config.base_steps,
        learning_rate=config.base_learning_rate,
        batch=config.batch,
        ema=config.ema,
        stop=stop,
    )
    return task.module.dit
