"""The share of a fine-tune's clips that give their first frame, and models that can be given one."""

from __future__ import annotations

from collections.abc import Sequence

from ..backbones import Backbone
from ..backbones.header import WanHeader
from ..console import TrainingError


def check_first_frame(header: WanHeader | None, share: float | None, samples: Sequence[str]) -> None:
    """Raises TrainingError where what a model's header says does not fit what is asked of it: `share` of
    clips whose first frame is given, prompts to sample."""
    if header is None:
        return
    if share and header.first_frame != "possible":
        raise TrainingError(not_possible(share))
    if samples and header.first_frame == "needed":
        raise TrainingError(
            "samples are clips of a prompt alone, and this model needs a first frame too: leave samples out."
        )


def not_possible(share: float) -> str:
    """The error's words for a share that a model has no use for."""
    return (
        f"first_frame is {share:g}, a share for models that can do with and without (Wan 2.2 5B); leave it "
        f"out for this one."
    )


def share_of_first_frames(share: float | None, backbone: Backbone) -> float:
    """The share of clips whose first frame is given: what was asked for, or half where a model can do
    both."""
    if share is not None:
        return share
    return 0.5 if backbone.first_frame == "possible" else 0.0
