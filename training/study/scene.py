"""Clips that a study looks at, and what a model makes of them at one noise level: no sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...encoders.need import TeacherNeed
from ...methods.step import Correction, SamplingStep
from ..backbones import Activation, Backbone
from ..backbones.sample import branch_of, guided, noise_level
from ..data.features import features_of, teacher_of
from ..objectives.base import StepView
from .sampling import uncorrected

SIGMA = 0.2
"""Noise level at which the base is probed: the one at which it shows most."""
BATCH = 8


@dataclass(kw_only=True)
class Encoded:
    """Clips, ready for any transformer of one VAE."""

    videos: Tensor
    """`B 3 T H W` in [0, 1]."""
    latents: Tensor
    """`B C T H W`."""
    prompts: list[str]
    tokens: Tensor
    """Prompts, `B L D`."""
    mask: Tensor
    features: dict[str, dict[str, Tensor]]
    """Teachers' tensors by `TeacherNeed.key`."""

    @property
    def stride(self) -> int:
        """Frames of a video that a latent frame stands for, the first one aside."""
        return (self.videos.shape[2] - 1) // (self.latents.shape[2] - 1)


@dataclass(kw_only=True)
class Scene:
    """Clips, and a model's view of them at one noise level."""

    videos: Tensor
    """`B 3 T H W` in [0, 1]."""
    latents: Tensor
    """`B C T H W`."""
    taps: dict[int, Activation]
    """The model's tokens by block."""
    features: dict[str, dict[str, Tensor]]
    """Teachers' tensors by `TeacherNeed.key`."""
    error: Tensor | None = None
    """Squared error of the predicted velocity, the mean over channels, `B T H W`."""

    def view(self, rows: slice) -> StepView:
        """Some clips as an objective sees them."""
        latent = self.latents[rows]
        return StepView(
            latent=latent,
            x0=latent,
            signal=torch.ones(len(latent)),
            taps={
                block: Activation(tokens=tap.tokens[rows], grid=tap.grid) for block, tap in self.taps.items()
            },
            features={key: {n: v[rows] for n, v in found.items()} for key, found in self.features.items()},
        )


def batches(count: int) -> Iterator[slice]:
    """Stretches of `BATCH` of so many clips."""
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


@torch.no_grad()
def encoded(
    videos: Tensor, prompts: Sequence[str], needs: Sequence[TeacherNeed], backbone: Backbone
) -> Encoded:
    """Clips `B 3 T H W` with what the VAE, the text encoder and the teachers say of them. Raises TeacherError
    for a teacher that cannot be loaded."""
    latents = torch.cat([backbone.encode_video(videos[rows]) for rows in batches(len(videos))])
    tokens, mask = backbone.embed_prompts(list(prompts))
    found = Encoded(
        videos=videos, latents=latents, prompts=list(prompts), tokens=tokens, mask=mask, features={}
    )
    for need in needs:
        teacher = teacher_of(need)
        rows = [features_of(teacher, video, need, found.stride) for video in videos]
        found.features[need.key] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found


@torch.no_grad()
def look(
    clips: Encoded,
    backbone: Backbone,
    blocks: Sequence[int] = (),
    sigma: float = SIGMA,
    seed: int = 0,
    corrections: Callable[[slice], Sequence[Correction]] = uncorrected,
) -> Scene:
    """The model's view of some clips at one noise level, with the corrections of each stretch of them, if
    any. The same seed gives the same noise. Raises TrainingError for a block that is not there."""
    taps: dict[int, list[Activation]] = {block: [] for block in blocks}
    errors, generator = [], torch.Generator().manual_seed(seed)
    for rows in batches(len(clips.latents)):
        latent, tokens, mask = clips.latents[rows], clips.tokens[rows], clips.mask[rows]
        t = torch.full((len(latent),), sigma)
        noisy = backbone.noise(latent, t, generator).noisy
        with backbone.tap(*blocks) as heard:
            x0 = estimate(backbone, noisy, t, (tokens, mask), corrections(rows))
        errors.append(((x0 - latent) / sigma).square().mean(dim=1))
        for block, tap in heard.items():
            taps[block].append(tap)
    joined = {
        block: Activation(tokens=torch.cat([tap.tokens for tap in found]), grid=found[0].grid)
        for block, found in taps.items()
    }
    return Scene(
        videos=clips.videos, latents=clips.latents, taps=joined, features=clips.features,
        error=torch.cat(errors),
    )  # fmt: skip


def estimate(
    backbone: Backbone,
    noisy: Tensor,
    t: Tensor,
    prompt: tuple[Tensor, Tensor],
    corrections: Sequence[Correction],
) -> Tensor:
    """The denoised estimate `B C T H W` of a flow model, corrected as a sampler without CFG would; the
    velocity's error is its own over the noise level."""
    sigma, gain, level = noise_level(backbone, t)
    cond = backbone.pool(*prompt)
    step = SamplingStep(noisy=noisy, sigma=sigma, gain=gain, index=0, count=1, cond=cond, level=level)
    x0 = guided(backbone, step, t, prompt, None, 1.0, corrections)
    for correction in corrections:
        if branch_of(correction) == "guided":
            x0 = correction.correct(x0, step)
    return x0
