"""Seconds of a sampling step, of guidance, of a training step and of the drift loss: `cost/guidance.py`
prints them.

On a GPU a whole step runs, with random weights. A processor would need many minutes for that, so there the
parts are timed at their real width and each is multiplied by how often it occurs at the real size; every
part's work is proportional to that number:

- *the transformer*: one block over a slice of the tokens, and the attention of the slice's queries over all
  the other tokens' keys, times slices, times blocks. The prompt is shortened with the slice, which leaves out
  part of Wan's cross-attention, and so are the first and last layers: what guidance is compared with is
  counted too small rather than too large.
- *guidance*: a whole `correct` on a latent of real height and width that is just long enough for one pair of
  frames, times pairs.
- *a training step*: as the transformer, forward and backward. *The drift loss*: whole, at the real size.

Time on a processor is processor time with one thread, so that other programs disturb less; on a GPU it is the
wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from latent_physics.methods.lamo import MotionFieldPredictor, MotionPriorGuidance
from latent_physics.methods.lamo.guidance import pair_count
from latent_physics.training.backbones import Backbone
from torch import Tensor

from .models import (
    LAG,
    GuidanceCost,
    VideoModel,
    build,
    drift_step,
    latent_of,
    make_predictor,
    sampling_step,
    time_of,
    tokens_of,
)

SLICE = 256
"""Tokens of the slice that stands for all."""
HEADS = 8
"""Number of heads whose attention is timed; each takes the same time."""


def seconds(step: Callable[[], object], device: str, repeats: int) -> float:
    """Best of `repeats` calls after a first one."""
    return min(seconds_in_turn([step], device, repeats)[0])


def seconds_in_turn(steps: list[Callable[[], object]], device: str, repeats: int) -> list[list[float]]:
    """Times of each of `steps`, called in turn so that a machine that slows down slows all of them."""
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    found: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for step, times in zip(steps, found):
            if on_gpu:
                torch.cuda.synchronize()
            start = clock()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            if turn:
                times.append(clock() - start)
    return found


# -- by parts, on a processor --------------------------------------------------------------------------------


def transformer_by_parts(
    model: VideoModel, *, repeats: int, training: bool = False, tokens: int = SLICE
) -> float:
    """Seconds of one forward pass at the model's latent, or of forward and backward."""
    backbone = build(model, device="cpu", num_layers=1)
    block = backbone.blocks[0].requires_grad_(training)
    text = max(1, round(tokens * model.text_length / model.video_tokens))
    inputs = block_inputs(model, backbone, tokens, text)
    with torch.set_grad_enabled(training):
        block_time = seconds(lambda: _run(lambda: block(**inputs), training, block), "cpu", repeats)
        here = tokens + (text if model.family == "cogvideox" else 0)
        heads, width = model.config["num_attention_heads"], model.config["attention_head_dim"]
        some = min(heads, HEADS)
        query, key, value = (
            torch.rand(1, some, count, width).requires_grad_(training)
            for count in (here, *[model.attended - here] * 2)
        )
        attention = seconds(
            lambda: _run(lambda: F.scaled_dot_product_attention(query, key, value), training, None),
            "cpu",
            repeats,
        )
    return model.config["num_layers"] * model.attended / here * (block_time + attention * heads / some)


def block_inputs(model: VideoModel, backbone: Backbone, tokens: int, text: int) -> dict[str, Any]:
    """Inputs of one block of the transformer for `tokens` tokens of video and `text` of prompt."""
    heads, size = model.config["num_attention_heads"], model.config["attention_head_dim"]
    width = heads * size
    inputs = {
        "hidden_states": torch.randn(1, tokens, width),
        "encoder_hidden_states": torch.randn(1, text, width),
    }
    if model.family == "wan":
        rotary = (torch.ones(1, tokens, 1, size), torch.zeros(1, tokens, 1, size))
        return {**inputs, "temb": torch.randn(1, 6, width), "rotary_emb": rotary}
    config = backbone.dit.config
    rotary = (
        (torch.ones(tokens, size), torch.zeros(tokens, size))
        if config.use_rotary_positional_embeddings
        else None
    )
    return {**inputs, "temb": torch.randn(1, config.time_embed_dim), "image_rotary_emb": rotary}


def _run(
    work: Callable[[], Tensor | tuple[Tensor, ...]], training: bool, network: torch.nn.Module | None
) -> None:
    out = work()
    if training:
        if network is not None:
            network.zero_grad(set_to_none=True)
        out = out if isinstance(out, tuple) else (out,)
        torch.autograd.backward([part.sum() for part in out])


def correction_by_parts(
    latent: tuple[int, int, int], *, repeats: int, predictor: MotionFieldPredictor | None = None
) -> float:
    """Seconds of one `correct` at `latent`."""
    predictor = make_predictor("cpu") if predictor is None else predictor
    x0 = latent_of((LAG + predictor.order, *latent[1:]), "cpu")
    step = sampling_step(x0 + torch.randn_like(x0), cond_dim=predictor.cond_dim)
    guidance = MotionPriorGuidance(predictor, lag=LAG, active=1)
    return pair_count(latent[0], LAG, predictor.order) * seconds(
        lambda: guidance.correct(x0, step), "cpu", repeats
    )


def drift_seconds(backbone: Backbone, latent: tuple[int, int, int], device: str, *, repeats: int) -> float:
    """Seconds of all that the drift loss adds to a training step, at the real size."""
    clean, noisy, output = (latent_of(latent, device) for _ in range(3))
    output.requires_grad_()

    def step() -> None:
        output.grad = None
        drift_step(backbone, clean, noisy, output)

    return seconds(step, device, repeats)


# -- whole ---------------------------------------------------------------------------------------------------


def guidance_whole(
    backbone: Backbone,
    latent: tuple[int, int, int],
    predictor: MotionFieldPredictor,
    *,
    share: float,
    repeats: int,
) -> GuidanceCost:
    """Seconds of a whole sampling step (two forward passes and CFG), and of what guidance adds to it."""
    device = str(backbone.device)
    noisy, moment, tokens = latent_of(latent, device), time_of(backbone), tokens_of(backbone)
    empty = torch.zeros_like(tokens)
    guidance = MotionPriorGuidance(predictor, lag=LAG, active=1)
    step = sampling_step(noisy, cond_dim=predictor.cond_dim)

    @torch.no_grad()
    def unguided() -> Tensor:
        without = backbone.predict(noisy, moment, empty)
        return backbone.x0(noisy, without + 5.0 * (backbone.predict(noisy, moment, tokens) - without), moment)

    plain, guided = map(
        min, seconds_in_turn([unguided, lambda: guidance.correct(unguided(), step)], device, repeats)
    )
    return GuidanceCost(step=plain, correction=guided - plain, share=share)


def training_whole(backbone: Backbone, latent: tuple[int, int, int], *, repeats: int) -> tuple[float, float]:
    """Seconds of (a whole step of a full fine-tune with every block checkpointed, what the drift loss adds to
    it).
    """
    device = str(backbone.device)
    noisy, moment, tokens = latent_of(latent, device), time_of(backbone), tokens_of(backbone)
    dit = backbone.dit
    dit.train().requires_grad_(True)
    dit.enable_gradient_checkpointing()

    def step() -> None:
        dit.zero_grad(set_to_none=True)
        backbone.predict(noisy, moment, tokens).square().mean().backward()

    try:
        return seconds(step, device, repeats), drift_seconds(backbone, latent, device, repeats=10)
    finally:
        dit.zero_grad(set_to_none=True)
        dit.disable_gradient_checkpointing()
        dit.eval().requires_grad_(False)
