"""`latent-physics toyworld`: trains the toy world's models from nothing and writes the files that ship.

    python training toyworld --stage all --out runs/toyworld

Stages, each resumable: text (the text encoder), vae (a Wan 2.1 VAE of reduced width), decoder (its decoder again, alone), latents
(encodes the mixture), base (a Wan transformer, flow matching, on a mixture of right and wrong dynamics), export (native names,
half precision), clips (a folder of cached clips of the right dynamics, from which `predictor`, `pila` and `finetune` learn; needs
the exported files).

Two processes share the base stage's batches, which is faster than one process with two threads:

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 training/__main__.py toyworld --stage base --threads 1 --compiled
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....methods.weights import read_info
from ....toyworld.text import ToyTextEncoder
from ...backbones.wan import TIMESTEPS
from ...console import ProgressLine, RunError, StopRequest, load_checkpoint, save_checkpoint, saving
from ...loop import processes
from ...loop.checkpoint import differing
from ...loop.log import Log, draw_curves
from .settings import SHAPED_BY, ToyWorldConfig

# --- the loop every stage shares ---


def run_steps(
    name: str, config: ToyWorldConfig, steps: int, rate: float, trained: nn.Module, average: nn.Module | None, step_loss: Any
) -> nn.Module:
    """Trains `trained` for `steps` and returns the module to use (the average where there is one).

    `step_loss(step, generator) -> (loss, values to log)`; its randomness comes from the generator alone, seeded by the step, so
    that a resumed run repeats an uninterrupted one. Several processes (torchrun) average their gradients. Raises RunError when
    stopped, when the loss is no longer finite, or where the run in the folder has other settings.
    """
    accelerator = processes.start(device="cpu")
    path = config.out / f"{name}.safetensors"
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-2)
    settings = {"seed": config.seed, "rate": rate} | {key: getattr(config, key) for key in SHAPED_BY.get(name, ())}
    done = 0
    if path.is_file():
        check_settings(path, settings)
        states, progress, _ = load_checkpoint(path, kind=f"toy_{name}_run", optimizer=optimizer)
        trained.load_state_dict(states["model"])
        if average is not None:
            average.load_state_dict(states["average"])
        done = progress["step"]
    log, progress, start = None, ProgressLine(f"toy world: {name}"), time.monotonic()
    first = accelerator.is_main_process
    with StopRequest() as stop:
        for step in range(done, steps):
            warm = min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            loss, values = step_loss(step, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(trained, accelerator)
            norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise RunError(f"the {name} loss at step {step + 1} is {loss.item()}; lower the learning rate and start again.")
            optimizer.step()
            if average is not None:
                update_average(average, trained, min(config.ema, (step + 1) / (step + 10)))
            values = {"loss": loss.item(), **values}
            values = processes.mean_row(accelerator, values, list(values))
            stopped = processes.stopping(accelerator, stop)
            if first:
                log = log or Log(config.out / f"{name}.csv", list(values), after=done)
                log.add(step=step + 1, **values)
            text = " ".join(f"{key} {value:.4f}" for key, value in values.items())
            left = (time.monotonic() - start) / (step + 1 - done) * (steps - step - 1)
            if first:
                progress.show((step + 1) / steps, f"step {step + 1}/{steps} {text}", left)
            if first and ((step + 1) % config.save_every == 0 or step + 1 == steps or stopped):
                states = {"model": trained.state_dict()} | ({"average": average.state_dict()} if average is not None else {})
                with saving(str(path), "the last checkpoint is intact"):
                    save_checkpoint(
                        path,
                        kind=f"toy_{name}_run",
                        latent_space="toy",
                        config=settings,
                        progress={"step": step + 1},
                        states=states,
                        optimizer=optimizer,
                    )
                draw_curves(log, config.out / f"{name}.png", {name: list(values)})
            if stopped:
                raise RunError(f"stopped after step {step + 1} of {steps}; the same command goes on from there.")
    progress.close()
    return average if average is not None else trained


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raises RunError where the checkpoint at `path` was trained with other settings; one that says nothing of them fits."""
    stored = read_info(path).config
    changed = differing(stored, settings) if stored else ""
    if changed:
        raise RunError(f"{path} holds a run with other settings ({changed}): give those again, or another --out.")


def average_gradients(module: nn.Module, accelerator: Any) -> None:
    """Means over the processes, in place; every process must have the same gradients set."""
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        mean = accelerator.reduce(nn.utils.parameters_to_vector(gradients), "mean")
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def update_average(average: nn.Module, trained: nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters, in place."""
    for old, new in zip(average.parameters(), trained.parameters()):
        old.lerp_(new, 1 - decay)


# --- text encoder ---


# --- VAE ---


# --- the mixture's latents ---


# --- base model ---


def build_dit(config: ToyWorldConfig) -> nn.Module:
    """An untrained Wan transformer, 128 channels wide (diffusers' class)."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(config.seed + 1)
    return WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        ffn_dim=512,
        num_layers=config.layers,
    )


def train_base(config: ToyWorldConfig, text: ToyTextEncoder, latents: Tensor, prompts: list[str]) -> nn.Module:
    """Flow matching on the mixture: v = eps - x0 at shifted uniform noise levels. The text encoder stays as it is.

    Several processes share the batch, each taking every n-th clip.
    """
    accelerator = processes.start(device="cpu")
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    model, average = build_dit(config).train(), build_dit(config).requires_grad_(False)
    predict = torch.compile(model) if config.compiled else model

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(latents), (config.batch,), generator=generator)
        clean, eps = latents[chosen], torch.randn(config.batch, *latents.shape[1:], generator=generator)
        # one draw per stratum: the same mean loss with less noise
        u = (torch.arange(config.batch) + torch.rand(config.batch, generator=generator)) / config.batch
        sigma = config.shift * u / (1 + (config.shift - 1) * u)
        dropped = torch.rand(config.batch, generator=generator) < config.drop_prompt
        texts = ["" if drop else prompts[index] for drop, index in zip(dropped.tolist(), chosen.tolist())]
        clean, eps, sigma, texts = clean[mine], eps[mine], sigma[mine], texts[mine]
        with torch.no_grad():
            tokens, _ = text(texts)
        mixed = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            velocity = predict((1 - mixed) * clean + mixed * eps, sigma * TIMESTEPS, tokens, return_dict=False)[0]
        return nn.functional.mse_loss(velocity.float(), eps - clean), {}

    return run_steps("base", config, config.base_steps, config.base_rate, model, average, step_loss).eval()


# --- files that ship ---
