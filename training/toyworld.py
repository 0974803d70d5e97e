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

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..methods.weights import WeightsError, WeightsInfo, load_weights, read_info, save_weights
from ..toyworld.canvas import COLOURS, FRAMES, SIZE
from ..toyworld.corruption import corrupted
from ..toyworld.data import mixture
from ..toyworld.prompts import describe
from ..toyworld.text import ToyTextEncoder
from ..toyworld.worlds import WORLDS
from . import processes
from .backbones.keys import to_native
from .backbones.wan import LATENTS_MEAN, LATENTS_STD, TIMESTEPS, WanBackbone
from .cli import parse, run_command
from .dataset import ClipInfo, write_clip
from .run import Log, ProgressLine, RunError, StopRequest, differing, draw_curves, load_checkpoint, save_checkpoint, saving

WORDS = ("small", "large", "thin", "thick", "left", "right", "up", "above", "below", "middle", "clockwise", "counterclockwise")
"""What the text encoder learns to tell beside worlds and colours."""
SHAPED_BY = {
    "vae": ("vae_width",),
    "decoder": ("vae_width",),
    "latents": ("seed", "wrong", "vae_width", "fit_clips"),
    "base": ("clips", "wrong", "layers", "batch", "shift", "drop_prompt", "ema"),
}
"""Which settings a stage's run depends on, beside its seed and rate: it goes on with the same ones alone. The number of steps may
change (the learning rate then follows the new schedule from there), and how a step is computed."""
SHIPPED = Path(__file__).resolve().parent.parent / "toyworld" / "weights"


@dataclass(kw_only=True)
class ToyWorldConfig:
    """Trains the toy world's VAE, transformer and text encoder, which takes hours."""

    stage: Literal["all", "text", "vae", "decoder", "latents", "base", "export", "clips"] = "all"
    """Which stage to run; "all" runs those that are not finished."""
    out: Path = Path("runs/toyworld")
    """Run folder: checkpoints, logs, curves."""
    export: Path = SHIPPED
    """Where the export stage writes toy_vae, toy_dit and toy_text."""
    seed: int = 0
    """Seeds every random draw."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""

    text_steps: int = 600
    """Steps of the text encoder (batch 64), which learns to tell what a prompt asks for."""

    vae_width: int = 8
    """base_dim of the VAE; Wan's own is 96."""
    vae_steps: int = 1900
    """Steps on 5-frame windows (two latent frames), batch 4."""
    decoder_steps: int = 1900
    """Steps that train the decoder alone after those; the latents stay as they are, so this can run beside the base stage."""
    vae_rate: float = 1.5e-3
    """Peak learning rate of the VAE, falling along a cosine."""

    clips: int = 4096
    """Clips in the mixture the base model is trained on."""
    wrong: float = 0.5
    """Share of them with corrupted dynamics."""
    fit_clips: int = 64
    """Clips by whose latents the VAE is scaled to the statistics of Wan 2.1's."""

    real_clips: int = 768
    """Clips of the right dynamics that the clips stage caches."""

    layers: int = 6
    """Transformer blocks, 128 channels each."""
    base_steps: int = 60000
    """Steps of the base model."""
    batch: int = 16
    """Clips per step of the base model."""
    base_rate: float = 1e-3
    """Peak learning rate of the base model, falling along a cosine."""
    shift: float = 3.0
    """Shift of the training noise levels towards noise."""
    drop_prompt: float = 0.1
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    bf16: bool = True
    """Compute the base model in bfloat16 (weights stay float32): 2.6 times as fast where the CPU has the instructions for it."""
    compiled: bool = False
    """Compile the base model first (needs a C++ compiler), so that a step takes less time."""
    ema: float = 0.998
    """Decay of the exponential moving average that is exported."""
    save_every: int = 200
    """Steps between checkpoints."""


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


class PromptReader(nn.Module):
    """The text encoder with one linear head on its mean token, which says what the prompt asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ToyTextEncoder()
        self.answers = (*WORLDS, *COLOURS, *WORDS)
        self.head = nn.Linear(self.text.width, len(self.answers))

    def forward(self, prompts: list[str]) -> Tensor:
        tokens, mask = self.text(prompts)
        return self.head(tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


def draw_prompts(count: int, rng: np.random.Generator) -> tuple[list[str], list[set[str]]]:
    """Prompts, and what each asks for: its world, colours, sizes and direction or place."""
    prompts, asked = [], []
    for _ in range(count):
        world = WORLDS[list(WORLDS)[rng.integers(len(WORLDS))]]
        scene = world.draw(rng)
        prompts.append(describe(world, scene, rng))
        asked.append({world.name, *scene.colours, *scene.words.values()})
    return prompts, asked


def train_text(config: ToyWorldConfig) -> ToyTextEncoder:
    """Reading comprehension: which world, which colours, which words of WORDS a prompt asks for."""
    torch.manual_seed(config.seed + 2)
    reader = PromptReader().train()

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        prompts, asked = draw_prompts(64, np.random.default_rng((config.seed, 3, step)))
        target = torch.tensor([[float(answer in wanted) for answer in reader.answers] for wanted in asked])
        logits = reader(prompts)
        right = ((logits > 0) == (target > 0.5)).float().mean().item()
        return nn.functional.binary_cross_entropy_with_logits(logits, target), {"right": right}

    run_steps("text", config, config.text_steps, 1e-3, reader, None, step_loss)
    return reader.text.eval().requires_grad_(False)


# --- VAE ---


def build_vae(config: ToyWorldConfig) -> nn.Module:
    """An untrained Wan 2.1 VAE of reduced width (diffusers' class), initialised so that signals keep their size from end to end.

    torch's own initialisation shrinks them so much that training sits on a plateau (a grey picture) for hundreds of steps.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock

    torch.manual_seed(config.seed)
    vae = AutoencoderKLWan(base_dim=config.vae_width, z_dim=16)
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                module.conv2.weight *= 0.1
            elif isinstance(module, WanAttentionBlock):
                module.proj.weight.zero_()
        # a posterior as wide as the latent itself hides it from the decoder, which then learns to do without
        vae.quant_conv.weight[16:] *= 0.1
        vae.quant_conv.bias[16:] -= 5.0
    return vae


def forget_the_past(vae: nn.Module) -> None:
    """Lets every convolution over three frames see the present frame alone, in place; its other two taps stay zero.

    Time is then compressed and restored by the resampling layers only, so what a window of five frames teaches holds for clips
    of any length (with memory, errors grew from frame to frame beyond the trained length), and a step costs less than half. The
    weights keep their shapes: ComfyUI and diffusers load and run them as any Wan VAE.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3 and module.stride[0] == 1:
            with torch.no_grad():
                present = module.weight.sum(2)  # what the three taps make of a still picture
                module.weight.zero_()
                module.weight[:, :, -1] = present
            module.forward = MethodType(present_frame, module)


def present_frame(conv: nn.Conv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """A causal convolution's last tap as one 2-D convolution over all frames."""
    kernel = conv.weight[:, :, -1]
    out = nn.functional.conv2d(x.transpose(1, 2).flatten(0, 1), kernel, conv.bias, padding=kernel.shape[-1] // 2)
    return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def windows(count: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random windows of random clips, half of them corrupted: frames (B,3,length,H,W) in [0,1] and backgrounds (B,3,1,H,W)."""
    frames, backgrounds = [], []
    for _ in range(count):
        world = WORLDS[list(WORLDS)[rng.integers(len(WORLDS))]]
        scene, start = world.draw(rng), rng.integers(0, FRAMES - length + 1)
        part = slice(start, start + length)
        right = rng.random() < 0.5
        frames.append(world.render(scene, np.arange(FRAMES)[part]) if right else corrupted(world, scene, rng, part))
        backgrounds.append(world.background)
    return torch.from_numpy(np.stack(frames)).movedim(1, 2).contiguous(), torch.from_numpy(np.stack(backgrounds))[:, :, None]


def vae_loss(vae: nn.Module, clips: Tensor, backgrounds: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error, moving things counted five times (they are few pixels), and a small KL that keeps the latent
    smooth.

    The squared error gets training off the ground; the absolute error keeps edges sharp.
    """
    posterior = vae.encode(clips * 2 - 1).latent_dist
    z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
    error = decode_unclamped(vae, z) / 2 + 0.5 - clips
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return weigh(error, clips, backgrounds) + 3e-5 * kl, {"error": error.abs().mean().item(), "kl": kl.item()}


def weigh(error: Tensor, clips: Tensor, backgrounds: Tensor) -> Tensor:
    """Mean of |error| + 8 error^2, moving things counted five times."""
    weight = 1 + 4 * ((clips - backgrounds).abs().amax(1, keepdim=True) > 0.04)
    return ((error.abs() + 8 * error**2) * weight).sum() / (weight.sum() * 3)


def decode_unclamped(vae: nn.Module, z: Tensor) -> Tensor:
    """What `vae.decode` computes, without its clamp to [-1, 1]: a clamped pixel would have no gradient to come back with."""
    vae.clear_cache()
    hidden, frames = vae.post_quant_conv(z), []
    for index in range(z.shape[2]):
        vae._conv_idx = [0]
        first = {"first_chunk": True} if index == 0 else {}
        frames.append(vae.decoder(hidden[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first))
    vae.clear_cache()
    return torch.cat(frames, 2)


def train_vae(config: ToyWorldConfig) -> nn.Module:
    """Windows of five frames: the first latent frame codes one frame, the second four, as every later one does."""
    vae = build_vae(config).train()
    forget_the_past(vae)

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return vae_loss(vae, *windows(4, 5, np.random.default_rng((config.seed, 1, step))), generator)

    return run_steps("vae", config, config.vae_steps, config.vae_rate, vae, None, step_loss).eval()


def train_decoder(config: ToyWorldConfig, vae: nn.Module) -> nn.Module:
    """Sharpens the pictures with the encoder fixed. Windows of nine frames: the third latent frame is coded as all later ones."""
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clips, backgrounds = windows(2, 9, np.random.default_rng((config.seed, 2, step)))
        with torch.no_grad():
            z = vae.encode(clips * 2 - 1).latent_dist.mean
        error = decode_unclamped(vae, z + 0.02 * z.std() * torch.randn(z.shape, generator=generator)) / 2 + 0.5 - clips
        return weigh(error, clips, backgrounds), {"error": error.abs().mean().item()}

    run_steps("decoder", config, config.decoder_steps, config.vae_rate, decoder, None, step_loss)
    return vae


@torch.no_grad()
def fit_latent_scale(vae: nn.Module, clips: Tensor) -> None:
    """Moves and scales the latent, in place and without changing a single decoded picture, to the statistics of Wan 2.1's
    latents.

    ComfyUI and diffusers subtract Wan's channel means and divide by its deviations whichever VAE of this architecture is
    loaded; after this, what the transformer sees has mean 0 and deviation 1.
    """
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in clips.split(8)])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    scale = torch.tensor(LATENTS_STD) / std
    shift = torch.tensor(LATENTS_MEAN) - mean * scale
    out, back = vae.quant_conv, vae.post_quant_conv
    channels = len(LATENTS_STD)
    out.weight[:channels] *= scale.view(-1, 1, 1, 1, 1)
    out.bias[:channels] = out.bias[:channels] * scale + shift
    out.bias[channels:] += 2 * scale.log()
    back.bias -= (back.weight.sum((2, 3, 4)) * (shift / scale)).sum(1)
    back.weight /= scale.view(1, -1, 1, 1, 1)


# --- the mixture's latents ---


def encode_mixture(config: ToyWorldConfig, vae: nn.Module) -> tuple[Tensor, list[str]]:
    """Latents (N,16,9,8,8) in model scaling and prompts of the training mixture; kept in the run folder, in parts, so that it
    can be resumed. Raises RunError where the folder holds parts of another mixture."""
    backbone, latents, prompts = WanBackbone(latent_space="toy", vae=vae), [], []
    part, progress = 256, ProgressLine("toy world: latents")
    for start in range(0, config.clips, part):
        count = min(part, config.clips - start)
        encoded, texts = mixture_part(config, backbone, start, count)
        latents.append(encoded)
        prompts += texts
        progress.show((start + count) / config.clips, f"{start + count} clips")
    progress.close()
    return torch.cat(latents), prompts


@torch.no_grad()
def mixture_part(config: ToyWorldConfig, backbone: WanBackbone, start: int, count: int) -> tuple[Tensor, list[str]]:
    """`count` clips of the mixture from `start` on: their latents and prompts, from the run folder where they are kept there."""
    path = config.out / "latents" / f"{start:06}.safetensors"
    settings = {key: getattr(config, key) for key in SHAPED_BY["latents"]}
    try:
        state, info = load_weights(path, "toy_latents")
    except WeightsError:  # not there, or cut short
        state = None
    if state is not None and len(state["latents"]) == count:
        stored = {key: info.config[key] for key in settings if key in info.config}
        if changed := differing({"fit_clips": 64} | stored, settings) if stored else "":
            raise RunError(f"{path.parent} holds latents of another mixture ({changed}): give those again, or another --out.")
        return state["latents"], info.config["prompts"]
    clips, prompts, _ = mixture(count, config.seed * 1_000_003 + 7 + start, config.wrong)
    state = {"latents": torch.cat([backbone.encode_video(chunk) for chunk in clips.split(8)])}
    with saving(str(path), "the parts before are intact"):
        save_weights(path, state, WeightsInfo(kind="toy_latents", latent_space="toy", config={"prompts": prompts, **settings}))
    return state["latents"], prompts


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


def export(config: ToyWorldConfig, text: ToyTextEncoder, vae: nn.Module, dit: nn.Module) -> None:
    """Writes toy_vae, toy_dit (native names: ComfyUI's own loaders read them) and toy_text, in half precision."""
    recipe = {
        key: value if isinstance(value, (int, float, str)) else str(value)
        for key, value in asdict(config).items()
        if key not in ("out", "export")
    }
    for name, module, keys in (("vae", vae, WanBackbone.vae_keys), ("dit", dit, WanBackbone.dit_keys)):
        state = {key: value.half() for key, value in to_native(module.state_dict(), keys).items()}
        info = WeightsInfo(kind=f"toy_{name}", latent_space="toy", config={"frames": FRAMES, "size": SIZE}, recipe=recipe)
        save_weights(config.export / f"toy_{name}.safetensors", state, info)
    text.save(config.export / "toy_text.safetensors", recipe)


def cache_real_clips(config: ToyWorldConfig) -> None:
    """Caches clips of the right dynamics as `latent-physics cache` would have cached videos of them; finished ones are kept."""
    from .backbones import load_backbone

    backbone, out = load_backbone("toy", parts=("vae", "text")), config.out / "clips"
    out.mkdir(parents=True, exist_ok=True)
    progress, part = ProgressLine("toy world: clips"), 8
    for start in range(0, config.real_clips, part):
        paths = [out / f"{number:05}.safetensors" for number in range(start, start + part)]
        if all(path.is_file() for path in paths):
            continue
        clips, prompts, worlds = mixture(part, config.seed * 1_000_003 + 500_009 + start, 0.0)
        tokens, mask = backbone.embed_prompts(prompts)
        for path, latent, row, words, prompt, world in zip(paths, backbone.encode_video(clips), tokens, mask, prompts, worlds):
            name = f"{world}-{path.stem}"
            info = ClipInfo(
                source=name, source_hash=name, key=name, caption=prompt, caption_from="file", window=0, last=True, start=0.0,
                frames=FRAMES, width=SIZE, height=SIZE, fps=16.0,
            )  # fmt: skip
            with saving(str(path), "the clips before are intact"):
                write_clip(path, latent.half(), row[words].mean(0), info, "toy", tokens=row[words].half())
        progress.show((start + part) / config.real_clips, f"{start + part} clips")
    progress.close()


def train(config: ToyWorldConfig) -> None:
    """Runs the asked stages."""
    config.out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.stage == "clips":
        cache_real_clips(config)
        return
    text = train_text(config)
    if config.stage == "text":
        return
    vae = train_vae(config)
    if config.stage == "vae":
        return
    if config.stage not in ("latents", "base"):
        train_decoder(config, vae)
    if config.stage == "decoder":
        return
    fit_latent_scale(vae, mixture(config.fit_clips, config.seed + 99, 0.0)[0])
    latents, prompts = encode_mixture(config, vae)
    if config.stage == "latents":
        return
    dit = train_base(config, text, latents, prompts)
    if config.stage == "base":
        return
    export(config, text, vae, dit)
    if config.stage == "all":
        cache_real_clips(config)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = parse(ToyWorldConfig, argv, prog="latent-physics toyworld", description=ToyWorldConfig.__doc__ or "")
        train(config)
        return 0

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
    return run_command(command, RunError, WeightsError)
