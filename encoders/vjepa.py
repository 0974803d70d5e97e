"""V-JEPA 2 (transformers): features of a clip, and what the model expects to happen next in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Teacher, TeacherError, imagenet, pretrained


class VJEPATeacher(Teacher):
    """V-JEPA 2. Its positions are those of a square, so clips are squeezed to one."""

    kind = "vjepa2"

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        from transformers import VJEPA2Config, VJEPA2Model

        return VJEPA2Model(VJEPA2Config(**config))

    @classmethod
    def from_source(cls, source: str, device: str | torch.device = "cpu") -> VJEPATeacher:
        from transformers import VJEPA2Model

        model, identity = pretrained(VJEPA2Model, source, "V-JEPA 2 encoder")
        return cls(model, f"vjepa2 {identity}", device)

    def size(self, height: int, width: int) -> tuple[int, int]:
        side = self.model.config.crop_size
        return side, side

    def encode(self, clip: Tensor) -> Tensor:
        return self.model.encoder(clip.transpose(1, 2)).last_hidden_state

    @torch.no_grad()
    def predicted(self, video: Tensor, context: int) -> Tensor:
        """Features that the predictor expects after the first `context` frames: `B C F - context H' W'`
        float32.

        The context frames are encoded alone: the model's own `context_mask` masks after encoding the whole
        clip, so the future would leak into the context. Raises TeacherError where nothing is left on one
        side.
        """
        clip = self.resized(video)
        tubelet, patch, _ = self.patch
        frames, side = clip.shape[2] // tubelet, clip.shape[3] // patch
        if not 0 < context < frames:
            raise TeacherError(
                f"the context is {context} feature frames of {frames}; at least one must be seen and one "
                f"predicted."
            )
        seen = self.encode(imagenet(clip[:, :, : context * tubelet]))
        ids = torch.arange(frames * side * side, device=clip.device).expand(clip.shape[0], -1)
        border = context * side * side
        guess = self.model.predictor(
            seen, context_mask=[ids[:, :border]], target_mask=[ids[:, border:]]
        ).last_hidden_state
        return guess.transpose(1, 2).unflatten(2, (frames - context, side, side)).float()

    def expected_changes(
        self, video: Tensor, step: int, window: int = 16, context: float = 0.5
    ) -> tuple[Tensor, int]:
        """Change of its features that the model expects from each step of `step` frames to the next: (`B C D
        H' W'`, first).

        A window of `window` frames slides over the clip: its first part (the share `context`) is seen, the
        rest is forecast and averaged over steps, and the forecast's consecutive steps are subtracted. No
        change mixes two forecasts, and none is forecast twice. Change d is the one from step `first + d` to
        the next; the steps before `first` are only ever seen.
        Raises TeacherError where a window forecasts fewer than two steps, or the clip is shorter than one
        window.
        """
        tubelet = self.patch[0]
        if step % tubelet:
            raise TeacherError(
                f"steps of {step} frames are no multiple of the world model's tubelets of {tubelet}."
            )
        seen = max(1, round(window / step * context))
        steps, ahead = video.shape[2] // step, window // step - seen
        if ahead < 2:
            raise TeacherError(
                f"a window of {window} frames forecasts {max(ahead, 0)} steps of {step} frames after "
                f"{seen} seen ones; a change "
                f"needs two, as a window of {(seen + 2) * step} would give."
            )
        if steps < seen + ahead:
            raise TeacherError(
                f"a clip of {video.shape[2]} frames is shorter than one window of "
                f"{(seen + ahead) * step}; use longer clips."
            )
        last = steps - seen - ahead
        changes, reached = [], 0
        for start in sorted({*range(0, last, ahead - 1), last}):
            part = video[:, :, start * step : (start + seen + ahead) * step]
            forecast = self.predicted(part, seen * step // tubelet)
            forecast = forecast.unflatten(2, (ahead, step // tubelet)).mean(dim=3)
            new = start + ahead - 1 - reached
            changes.append((forecast[:, :, 1:] - forecast[:, :, :-1])[:, :, -new:])
            reached += new
        return torch.cat(changes, dim=2), seen
