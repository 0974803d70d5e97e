"""What a fine-tuned transformer has learned, read without sampling: on clips of the right dynamics whose
things can be followed, at fixed noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...methods import relational
from ...methods.step import Correction
from ..backbones import Backbone
from ..console import ProgressLine, StopRequest
from ..data.batches import TrainingClips
from ..data.feature_cache import FeatureCache
from ..data.features import prepare_features
from ..loop.config import TrainerConfig
from ..loop.log import read_log
from ..loop.loop import train
from ..loop.task import ParameterGroup, Run
from ..objectives import parse
from ..tasks.denoise import DenoisingTask
from ..tasks.finetune import token_width
from .gate import channels_of
from .probes import velocity_shares
from .sampling import uncorrected
from .scene import Encoded, look

KEEP = 0.2
"""Share of a frame's places that count as moving, as in M-TSA."""

Measures = dict[str, list[float]]
"""A number per clip, or per prompt, by measure."""


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """What readouts look at, the same for every model of a study."""

    clips: Encoded
    paths: Tensor
    """Places of their things, `probes.tracked_clips`."""
    sigmas: Sequence[float]
    blocks: Sequence[int]
    """Blocks whose tokens are probed."""
    seed: int
    """Of the noise."""


def blocks_of(backbone: Backbone) -> list[int]:
    """The first, the middle and the last block, counted from 1."""
    count = len(backbone.blocks)
    return sorted({1, -(-count // 2), count})


def read_scene(
    backbone: Backbone,
    eyes: Eyes,
    corrections: Callable[[slice], Sequence[Correction]] = uncorrected,
) -> Measures:
    """ "moving SIGMA": squared error of the velocity on the tokens that move most, and "velocity BLOCK
    SIGMA": what a linear probe reads of the things' velocities (`probes.velocity_shares`)."""
    found: Measures = {}
    for sigma in eyes.sigmas:
        seen = look(eyes.clips, backbone, eyes.blocks, sigma, eyes.seed, corrections)
        found[f"moving {sigma:g}"] = moving_error(seen.error, eyes.clips).tolist()
        for block, tap in seen.taps.items():
            tokens, grid = relational.without_first_frame(tap.tokens, tap.grid, seen.latents.shape[2])
            shares = velocity_shares(relational.to_volume(tokens, grid), eyes.paths)
            found[f"velocity {block} {sigma:g}"] = shares.tolist()
    return found


def moving_error(error: Tensor, clips: Encoded) -> Tensor:
    """Mean of `error`, `B T H W` on the latent's grid, over the `KEEP` places of each frame that change most,
    `B`. The first latent frame, which stands for one frame of the video, is left out."""
    side = clips.videos.shape[-1] // clips.latents.shape[-1]
    saliency = relational.motion_saliency(clips.videos[:, :, 1:], (clips.stride, side, side))
    mask = relational.top_share(saliency, KEEP)
    return (error[:, 1:] * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


class RefitTask(DenoisingTask):
    """An objective's projector alone, before a transformer that stays as it is."""

    def weights(self, step: int) -> dict[str, float]:
        return dict.fromkeys(self.objectives, 1.0)

    def groups(self, config: TrainerConfig) -> list[ParameterGroup]:
        return [
            ParameterGroup(parameters=list(self.objectives.parameters()), learning_rate=config.learning_rate)
        ]


def read_alignment(
    backbone: Backbone,
    text: str,
    clips: TrainingClips,
    eyes: Eyes,
    steps: int,
    stop: StopRequest,
    progress: ProgressLine,
) -> list[float] | None:
    """The objective's held-out loss per clip, mean over the noise levels, with its projector fitted anew on
    `clips` for `steps` steps: what the transformer itself holds of it. None where it was stopped.

    The same seed gives the same projector, clips and noise whatever the transformer.
    """
    needs, features = parse.needed_teachers([text]), FeatureCache(clips.folder / "features")
    prepare_features(clips, needs, features, progress=progress, stop=stop)
    torch.manual_seed(clips.seed)
    sizes = {"width": token_width(backbone), "blocks": len(backbone.blocks)}
    built = parse.build([text], **sizes, channels=channels_of(eyes.clips))
    task = RefitTask(backbone, clips, built, needs=needs, features=features)
    config = TrainerConfig(
        steps=max(steps, 1), batch=clips.batch, learning_rate=1e-3, seed=clips.seed, validation_clips=0,
        tensorboard=False,
    )  # fmt: skip
    if train(Run(config=config, task=task, out=None), stop, progress).stopped:
        return None
    (objective,) = built.values()
    with torch.no_grad():
        levels = [look(eyes.clips, backbone, objective.blocks, sigma, eyes.seed) for sigma in eyes.sigmas]
        views = [[seen.view(slice(row, row + 1)) for seen in levels] for row in range(len(eyes.paths))]
        return [float(torch.stack([objective(view) for view in each]).mean()) for each in views]


def steps_to(log: Path, loss: float) -> float:
    """Step at which a run's held-out denoising error first came down to `loss`, between two validations by
    the straight line; the run's last step where it never did. Source: REPA's comparison at equal loss."""
    rows = [row for row in read_log(log) if "val_denoise" in row]
    before = rows[0]
    for row in rows:
        if row["val_denoise"] <= loss:
            fall = before["val_denoise"] - row["val_denoise"]
            share = (before["val_denoise"] - loss) / fall if fall > 0 else 1.0
            return before["step"] + share * (row["step"] - before["step"])
        before = row
    return rows[-1]["step"]


def last_loss(log: Path) -> float:
    """The last held-out denoising error of a run."""
    return [row["val_denoise"] for row in read_log(log) if "val_denoise" in row][-1]
