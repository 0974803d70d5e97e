"""The plain sampler of each backbone family, with corrections where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...methods.step import Correction, SamplingStep, flow_level, gain_of, shifted
from . import Backbone


@torch.no_grad()
def sample(
    backbone: Backbone,
    tokens: Tensor,
    mask: Tensor,
    shape: Sequence[int],
    *,
    steps: int = 20,
    cfg: float = 1.0,
    null: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    corrections: Sequence[Correction] = (),
) -> Tensor:
    """Latents `B C T H W` in model scaling from prompts `B L D` (mask `B L`).

    shape: `T H W` of the latent; cfg: guidance over `null`, the empty prompt's tokens `1 L D` and mask, 1 for
    none; corrections see the same SamplingStep as in ComfyUI. Noise of row i is seeded by seed + i, whatever
    the batch.
    """
    rows = [torch.Generator().manual_seed(seed + row) for row in range(len(tokens))]
    noise = torch.stack(
        [torch.randn(backbone.latent_channels, *shape, generator=generator) for generator in rows]
    )
    x = noise.to(backbone.device)
    cond = backbone.pool(tokens, mask)
    times = schedule(backbone, steps)
    for index, (now, after) in enumerate(pairwise(times)):
        t = now.expand(len(x)).to(x.device)
        sigma, gain, level = noise_level(backbone, t)
        step = SamplingStep(noisy=x, sigma=sigma, gain=gain, index=index, count=steps, cond=cond, level=level)
        x0 = guided(backbone, step, t, (tokens, mask), null if cfg != 1.0 else None, cfg, corrections)
        for correction in corrections:
            if branch_of(correction) == "guided":
                x0 = correction.correct(x0, step)
        x = advance(backbone, x, x0, now, after)
    return x


def branch_of(correction: Correction) -> str:
    """Branch that a correction acts on: "guided", the estimate after CFG, unless it says "conditional" or
    "both"."""
    return getattr(correction, "branch", "guided")


def guided(
    backbone: Backbone,
    step: SamplingStep,
    t: Tensor,
    prompt: tuple[Tensor, Tensor],
    null: tuple[Tensor, Tensor] | None,
    cfg: float,
    corrections: Sequence[Correction],
) -> Tensor:
    """The guided estimate `B C T H W`, with the corrections that act before CFG mixes the two branches."""
    x = step.noisy
    out = backbone.predict(x, t, *prompt)
    branches = [(out, 1.0 if null is None else cfg, ("conditional", "both"))]
    if null is not None:
        empty = backbone.predict(x, t, null[0].expand(len(x), -1, -1), null[1].expand(len(x), -1))
        branches.append((empty, 1.0 - cfg, ("both",)))
        out = empty + cfg * (out - empty)
    x0 = backbone.x0(x, out, t)
    for predicted, share, kinds in branches:
        acting = [correction for correction in corrections if branch_of(correction) in kinds]
        plain = edited = backbone.x0(x, predicted, t) if acting else x0
        for correction in acting:
            edited = correction.correct(edited, step)
        if (
            edited is not plain
        ):  # CFG is linear: it carries a branch's change along with the branch's own share
            x0 = x0 + share * (edited - plain)
    return x0


def schedule(backbone: Backbone, steps: int) -> Tensor:
    """Times of the steps, noisy end first, with the clean end last (sigma 0; timestep -1 for DDPM)."""
    if backbone.prediction == "flow":
        u = torch.linspace(1, 0, steps + 1)
        return shifted(u, backbone.shift)
    return torch.cat([torch.linspace(1000, 0, steps + 1)[:-1].round().long() - 1, torch.tensor([-1])])


def noise_level(backbone: Backbone, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sigma as a sampler counts it, gain, level as SamplingStep has it) per sample."""
    if backbone.prediction == "flow":
        return t, gain_of("flow", t), t
    alpha_bar = backbone.signal_power(t)
    sigma = ((1 - alpha_bar) / alpha_bar.clamp(min=1e-12)).sqrt()
    return sigma, gain_of("v", t, alpha_bar), flow_level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def advance(backbone: Backbone, x: Tensor, x0: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """One Euler step (flow) or DDIM step (v) towards `x0`."""
    if backbone.prediction == "flow":
        return x0 + (x - x0) * (after / now)
    if after < 0:
        return x0
    here, there = (backbone.signal_power(time[None].to(x.device))[0].to(x) for time in (now, after))
    eps = (x - here.sqrt() * x0) / (1 - here).sqrt()
    return there.sqrt() * x0 + (1 - there).sqrt() * eps
