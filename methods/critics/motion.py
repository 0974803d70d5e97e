"""Motion consistency: how far a latent lies from what a motion predictor expects (LaMo's L_guide as a
judge)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lamo import MotionFieldPredictor
from ..lamo.guidance import CHUNK_POSITIONS, pair_count, pair_residuals
from .gate import latent_motion, limits, motion_gate
from .judgement import CriticError, Judgement, check_clip


class MotionConsistency:
    """|x[i] + f(x[i], c) - x[i+lag]|^2 over |x[i+lag] - x[i]|^2: the share of a latent's change that f did
    not expect.

    L_guide itself (LaMo, eq 8, over all pairs) is small for a clip that hardly moves; the share is not. Both
    are among the parts. The share leaves out the pair of the first latent frame, as `gate.latent_motion` does
    and a predictor of order 2 anyway: a causal video VAE encodes that frame by itself, and its distance from
    the rest is most of all change (0.6 to 0.9 of a toy clip's), whether anything moves or not. Needs no
    decoding: it reads the latent, and a denoised estimate as well as a finished one.
    """

    name = "motion"
    reads = "latent"

    def __init__(self, predictor: MotionFieldPredictor, lag: int = 2) -> None:
        """lag: latent frames between the two frames of a pair; that of the predictor's training."""
        self.predictor, self.lag = predictor, lag

    @torch.no_grad()
    def judge(self, clip: Tensor, fps: float, cond: Tensor | None = None) -> Judgement:
        """See Critic. fps: latent frames per second. cond: pooled prompt embedding `B D`, None for no
        prompt."""
        check_clip(clip, fps, self)
        if clip.shape[1] != self.predictor.channels:
            raise CriticError(
                f"the latent has {clip.shape[1]} channels, but the motion predictor reads "
                f"{self.predictor.channels}: "
                "choose a predictor of this model's latents."
            )
        try:
            pairs = pair_count(clip.shape[2], self.lag, self.predictor.order)
        except ValueError as error:
            raise CriticError(str(error)) from error
        x0 = clip.float()
        found = [
            part.square().sum(dim=1)
            for part, _, _ in pair_residuals(x0, self.predictor, cond, self.lag, CHUNK_POSITIONS)
        ]
        error = torch.cat(found).unflatten(0, (len(x0), pairs))  # B P H W
        l_guide = error.sum(dim=(1, 2, 3)) / pairs
        error = error[:, 1:] if self.predictor.order == 1 and pairs > 1 else error
        pairs = error.shape[1]
        start = clip.shape[2] - pairs  # of the frames that pairs lead to
        change = (x0[:, :, start:] - x0[:, :, start - self.lag : -self.lag]).square().sum(dim=1)
        total, moved = error.flatten(1).sum(1), change.flatten(1).sum(1)
        motion, (still, moving) = latent_motion(clip, fps), limits(self.reads)
        unit = (moved / pairs).clamp(min=1e-12)
        maps = torch.nn.functional.pad(error, (0, 0, 0, 0, start, 0))
        share = torch.where(moved > 1e-9, total / moved.clamp(min=1e-12), torch.ones_like(moved))
        return Judgement(
            implausibility=share.cpu(),
            motion=motion,
            gate=motion_gate(motion, still, moving),
            curve=(error.flatten(2).sum(2) / unit[:, None]).cpu(),
            times=(torch.arange(pairs) + start) / fps,
            maps=maps.cpu(),
            map_times=torch.arange(clip.shape[2]) / fps,
            parts={"l_guide": l_guide.cpu(), "unexpected_share": share.cpu()},
        )
