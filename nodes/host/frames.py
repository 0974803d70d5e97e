"""The video in a sampler's tensor: without sound, without guide and reference frames, with
what a mask protects put in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from torch import Tensor

Conds = list[dict[str, Any]] | None
"""One of a guider's lists of conditioning entries, with or without `model_conds`."""

VACE_PARTS = slice(16, 32)
"""Channels of a VACE control latent that hold what is to be made anew. They are constant in a reference
image's frames."""


def video_of(latent: Tensor, conds: Conds, model: Any = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(the video frames `B C T H W` of what a sampler holds, a function that puts such frames back among the
    rest).

    Models with sound sample one flat tensor of several latents; the video is the first with five dimensions.
    Guide frames (LTXV, at the end) and reference frames (VACE and Animate, in front) are no part of the
    motion and stay as they are. model: ComfyUI's BaseModel; without it Animate's reference frames are not
    found.
    """
    shapes = _wired(conds, "latent_shapes")
    if latent.ndim == 3 and shapes is not None and len(shapes) > 1:
        parts = comfy.utils.unpack_latents(latent, shapes)
        index = [part.ndim for part in parts].index(5)
        video, put_back = _moving(parts[index], conds, model)
        return video, lambda new: comfy.utils.pack_latents(
            [*parts[:index], put_back(new), *parts[index + 1 :]]
        )[0]
    return _moving(latent, conds, model)


def video_shape(shapes: Sequence[Sequence[int]], conds: Conds, model: Any = None) -> tuple[int, ...]:
    """The shape that `video_of` will give for latents of these shapes. Raises ValueError where no frame is
    left."""
    shape = next((tuple(shape) for shape in shapes if len(shape) == 5), tuple(shapes[0]))
    if len(shape) != 5:
        return shape
    front, back = extra_frames(shape, conds, model)
    if front + back >= shape[2]:
        raise ValueError(
            f"the latent has {shape[2]} frames, and {front + back} of them are reference or guide frames: "
            "generate a longer video."
        )
    return (*shape[:2], shape[2] - front - back, *shape[3:])


def extra_frames(shape: Sequence[int], conds: Conds, model: Any = None) -> tuple[int, int]:
    """(reference frames in front, guide frames at the end) of a video latent `B C T H W` of this shape."""
    front = max(_vace_references(conds), _animate_references(shape[2], conds, model))
    return front, _guide_frames(shape, conds)


def _moving(video: Tensor, conds: Conds, model: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    front, back = extra_frames(video.shape, conds, model) if video.ndim == 5 else (0, 0)
    if front == back == 0:
        return video, lambda new: new
    end = video.shape[2] - back
    return video[:, :, front:end], lambda new: torch.cat([video[:, :, :front], new, video[:, :, end:]], dim=2)


def _guide_frames(shape: Sequence[int], conds: Conds) -> int:
    """LTXV's guide frames, appended to the video."""
    entries = _wired(conds, "guide_attention_entries")
    if entries:
        return sum(entry["latent_shape"][0] for entry in entries)
    positions = _wired(conds, "keyframe_idxs")
    return 0 if positions is None else positions.shape[2] // (shape[-1] * shape[-2])


def _vace_references(conds: Conds) -> int:
    """Frames in front that WanVaceToVideo made of a reference image: nothing in them is to be made anew.

    Its mask is 0 there, and the control latent's second half is the constant that stands for zeros. A control
    video whose first frames are only protected has the encoding of an image there, which no VAE makes
    constant.
    """
    context = _wired(conds, "vace_context")  # B N C T H W: 32 channels of control latents, 64 of mask
    if context is not None:
        control, mask = context[0, 0, :32], context[0, 0, 32:]
    else:
        frames, masks = _wired(conds, "vace_frames"), _wired(conds, "vace_mask")
        if not frames or not masks:
            return 0
        control, mask = frames[0][0], masks[0][0]
    anew = control[VACE_PARTS]
    still = (anew.amax(dim=(-2, -1)) == anew.amin(dim=(-2, -1))).all(dim=0) & mask.eq(0).all(dim=-1).all(
        dim=-1
    ).all(dim=0)
    return int(still.long().cumprod(dim=0).sum())


def _animate_references(frames: int, conds: Conds, model: Any) -> int:
    """Frames in front that WanAnimateToVideo made of the reference image: one, and more where the pose video
    says so."""
    if type(model).__name__ != "WAN22_Animate":
        return 0
    pose = _wired(conds, "pose_latents")
    pose = _wired(conds, "pose_video_latent") if pose is None else pose
    return 1 if pose is None else max(1, frames - pose.shape[2])


def _wired(conds: Conds, name: str) -> Any:
    """A value of the conditioning, as the model gets it (`model_conds`), or as a node put it on the wire."""
    for cond in conds or []:
        if name in cond.get("model_conds", {}):
            return cond["model_conds"][name].cond
        if cond.get(name) is not None:
            return cond[name]
    return None


@dataclass(frozen=True)
class Protected:
    """Values that a sampler puts back after every evaluation of the model: `latent_image` where `mask` is
    0."""

    latent_image: Tensor
    mask: Tensor
    sigmas: Tensor

    def compose(self, denoised: Tensor, args: dict[str, Any]) -> Tensor:
        """The video that the sampler will go on with: denoised x mask + latent_image x (1 - mask), as
        KSamplerX0Inpaint does.

        The model's own estimate of protected frames is z - sigma v with a v that nobody trained, where the
        network is given them clean (Wan 2.2 5B, LTXV, HunyuanVideo I2V).
        """
        if self.latent_image.shape != denoised.shape:
            return denoised
        mask = self.mask
        change = args["model_options"].get("denoise_mask_function")
        if change is not None:
            mask = change(args["sigma"], mask, extra_options={"model": args["model"], "sigmas": self.sigmas})
        mask = mask.to(denoised)
        return denoised * mask + self.latent_image.to(denoised) * (1 - mask)


@dataclass
class Blocks:
    """The video so far of a sampler that makes it block by block (SamplerARVideo), each block after the ones
    before it."""

    made: Tensor | None = None
    """Finished frames `B C T H W`, in the sampler's scaling."""

    def finish(self, block: Tensor, start: int) -> None:
        """Keeps a finished block that begins at frame `start`."""
        block = block.detach().clone()
        self.made = (
            block if start == 0 or self.made is None else torch.cat([self.made[:, :, :start], block], dim=2)
        )

    def before(self, start: int, count: int) -> Tensor | None:
        """At most `count` finished frames before frame `start`; None where there are none."""
        if self.made is None or count < 1 or start < 1:
            return None
        return self.made[:, :, max(0, start - count) : start]
