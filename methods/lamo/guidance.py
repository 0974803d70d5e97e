"""Motion Prior Guidance: pulls the denoised estimate towards the changes that the motion field predictor
expects."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..step import SamplingStep
from .bound import pair_count, stable_step
from .predictor import MotionFieldPredictor
from .trace import GuidanceTrace, TraceRow

CHUNK_POSITIONS = 16384
"""Latent positions (frames x height x width) that pass through f at once: bounds memory, keeps a GPU busy."""

SAVED_BYTES_PER_POSITION = 48
"""Bytes per position, unit of width and block that f keeps for its backward pass in float32 (measured,
rounded up)."""


def guidance_loss(
    x0: Tensor, predictor: MotionFieldPredictor, cond: Tensor | None = None, lag: int = 2
) -> Tensor:
    """L_guide per sample, `(B,)`: mean over pairs of |x0[i] + f(x0[i], c) - x0[i+lag]|^2, summed over C, H, W
    (LaMo, eq 8).

    x0: `B C T H W`. cond: `B D` or None. Differentiable. An order-2 predictor starts at the second frame, and
    the mean is over the pairs that are left. Raises ValueError where the clip is too short.
    """
    pairs = pair_count(x0.shape[2], lag, predictor.order)
    found = pair_residuals(x0, predictor, cond, lag, CHUNK_POSITIONS)
    squares = [residual.square().sum(dim=(1, 2, 3)) for residual, _, _ in found]
    return torch.cat(squares).view(x0.shape[0], pairs).mean(dim=1)


def guidance_gradient(
    x0: Tensor, predictor: MotionFieldPredictor, cond: Tensor | None, lag: int, chunk: int = CHUNK_POSITIONS
) -> tuple[Tensor, Tensor]:
    """(dL_guide/dx0 `B C T H W`, L_guide `(B,)`), f differentiated once, frame chunk by frame chunk.

    The residual r_i is linear in the two frames of its pair, so only f needs autograd: each chunk contributes
    r_i to frame i, -r_i to frame i+lag and the vector-Jacobian product of f with r_i to what f read. Peak
    memory is that of one chunk.
    """
    batch, channels, frames, height, width = x0.shape
    first, pairs = predictor.order - 1, pair_count(frames, lag, predictor.order)
    residuals, pulled, pulled_change = [], [], []
    with torch.enable_grad():
        for residual, inputs, field_ in pair_residuals(x0.detach(), predictor, cond, lag, chunk, leaf=True):
            pull = torch.autograd.grad(field_, inputs, grad_outputs=residual.detach())
            residuals.append(residual.detach())
            pulled.append(pull[0])
            pulled_change.extend(pull[1:])
    shape = (batch, pairs, channels, height, width)
    residual = torch.cat(residuals).view(shape)
    gradient = torch.zeros_like(x0).movedim(1, 2)
    gradient[:, first : first + pairs] += residual + torch.cat(pulled).view(shape)
    gradient[:, first + lag : first + lag + pairs] -= residual
    if pulled_change:
        change = torch.cat(pulled_change).view(shape)
        gradient[:, 1 : 1 + pairs] += change
        gradient[:, :pairs] -= change
    loss = residual.square().sum(dim=(2, 3, 4)).mean(dim=1)
    return gradient.movedim(2, 1) * (2 / pairs), loss


def pair_residuals(
    x0: Tensor, predictor: MotionFieldPredictor, cond: Tensor | None, lag: int, chunk: int, leaf: bool = False
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Yields (r, [what f read], f) for chunks of the pairs (sample-major), each `(n, C, H, W)`.

    f runs in its weights' dtype, everything else in x0's. With `leaf` the inputs of f are leaves to
    differentiate against.
    """
    first, pairs = predictor.order - 1, pair_count(x0.shape[2], lag, predictor.order)
    frames = x0.movedim(2, 1)
    current = frames[:, first : first + pairs].flatten(0, 1)
    target = frames[:, first + lag : first + lag + pairs].flatten(0, 1)
    last = frames[:, :pairs].flatten(0, 1) if predictor.order == 2 else None
    if cond is not None:
        cond = cond.expand(x0.shape[0], -1).repeat_interleave(pairs, dim=0)
    dtype = predictor.null_prompt.dtype
    size = max(1, chunk // (x0.shape[3] * x0.shape[4]))
    for start in range(0, len(current), size):
        part = slice(start, start + size)
        inputs = [current[part]] if last is None else [current[part], current[part] - last[part]]
        if leaf:
            inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        change = predictor(
            inputs[0].to(dtype),
            None if cond is None else cond[part].to(inputs[0].device),
            inputs[1].to(dtype) if last is not None else None,
        ).to(x0.dtype)
        yield inputs[0] + change - target[part], inputs, change


WINDOWS = ("noise", "percent", "steps")
"""Choice of the guided steps: by noise level, by share of the model's schedule, or by counting the
sampler's steps."""


class MotionPriorGuidance:
    """The correction x0' = x0 - eta dL_guide/dx0 in the guided window (LaMo, eqs 8 and 9), eta = scale g^2.

    Eq 9 edits the network output; x0 is affine in it, x0 = a z_t - g out, so the edit of x0 carries g twice.
    The backbone is never differentiated. Guidance is per sample: a clip's edit does not depend on its batch.

    Beyond the paper, eta is at most `bound` times the largest step that cannot overshoot
    (`bound.stable_step`). At the paper's scale of 25 the unbounded step is 10 to 50 times that one at the
    noise levels where guidance begins: it multiplies fast motion by numbers like -23, which a sampler with
    memory (uni_pc, dpmpp_2m, res_multistep) extrapolates.
    """

    def __init__(
        self,
        predictor: MotionFieldPredictor,
        scale: float = 25.0,
        lag: int = 2,
        active: float = 0.8,
        bound: float | None = 0.5,
        *,
        window: str = "noise",
        start: float = 0.9,
        max_ratio: float | None = None,
        edit: str = "output",
        chunk: int = CHUNK_POSITIONS,
        trace: GuidanceTrace | None = None,
    ) -> None:
        """scale: lambda of eq 9. bound: largest share of the stable step, above 0; None is the paper's rule.

        window: "noise" guides once the noise level (SamplingStep.level) is `start` or less; "percent" and
        "steps" guide
        the fraction `active` (rho of eq 9), from the clean end, of the model's own schedule or of the
        sampler's steps.
        Where a step does not say its level or schedule, steps are counted.
        max_ratio: bounds |x0' - x0| per sample to this fraction of |x0 - z_t|. None is unbounded.
        edit: "output" is eq 9. "noisy" is the paper's ablation (appendix C): z_t -= scale dL_guide/dx0 in
        place in
        `step.noisy`, without the schedule's factor and unbounded, and x0 is left alone; it must come out
        worse.
        chunk: latent positions per pass through f. trace: collects what happened, see GuidanceTrace.
        Raises ValueError for values outside their range.
        """
        if not scale >= 0:
            raise ValueError(f"scale is {scale}; it must be 0 or more.")
        for name, value in (("active", active), ("start", start)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1.")
        if bound is not None and not bound > 0:
            raise ValueError(f"bound is {bound}; it must be greater than 0, or None for the paper's rule.")
        if max_ratio is not None and not max_ratio >= 0:
            raise ValueError(f"max_ratio is {max_ratio}; it must be 0 or more, or None for no bound.")
        if window not in WINDOWS:
            raise ValueError(f"window is {window!r}; it must be 'noise', 'percent' or 'steps'.")
        if edit not in ("output", "noisy"):
            raise ValueError(f"edit is {edit!r}; it must be 'output' or 'noisy'.")
        if lag < 1:
            raise ValueError(f"lag is {lag}; it must be at least 1.")
        self.predictor, self.scale, self.lag, self.active, self.bound = predictor, scale, lag, active, bound
        self.window, self.start, self.max_ratio = window, start, max_ratio
        self.edit, self.chunk, self.trace = edit, chunk, trace

    @property
    def edits_noisy(self) -> bool:
        """True where `correct` writes into `step.noisy`, so that a caller that passes a copy writes it
        back."""
        return self.edit == "noisy"

    @property
    def context_frames(self) -> int:
        """Number of frames before a block of a video that give it pairs, where blocks are made one after the
        other."""
        return self.lag + self.predictor.order - 1

    def reset(self) -> None:
        """Forgets the last run's trace. Called when a sampler starts."""
        if self.trace is not None:
            self.trace.begin()

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError where a latent of `shape` (B C T H W) cannot be guided."""
        if len(shape) != 5:
            raise ValueError(
                f"motion guidance needs a video latent (B, C, T, H, W), but this one, {tuple(shape)}, is an "
                "image, or a sound without its video: sample a video latent, with or without its sound."
            )
        if shape[1] != self.predictor.channels:
            raise ValueError(
                f"the latent has {shape[1]} channels, but the motion predictor reads "
                f"{self.predictor.channels}."
            )
        pair_count(shape[2], self.lag, self.predictor.order)

    def check_condition(self, size: int) -> None:
        """Raises ValueError where prompt embeddings of `size` numbers do not fit the predictor."""
        if self.predictor.prompted and size != self.predictor.cond_dim:
            raise ValueError(
                f"this model's prompts have {size} numbers per token, and those that the motion predictor "
                f"was trained with "
                f"had {self.predictor.cond_dim}: they come from another text encoder; use a predictor "
                f"trained with this "
                "model's prompts, or one trained without prompts, which fits every model of its latent space."
            )

    def memory_required(self, shape: tuple[int, ...]) -> int:
        """Bytes of activations that one correction holds at its peak, in float32, for a latent of `shape`."""
        positions = shape[-1] * shape[-2] if len(shape) == 5 else 1
        positions = max(self.chunk, positions)
        return positions * self.predictor.width * (len(self.predictor.blocks) + 1) * SAVED_BYTES_PER_POSITION

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        """x0 after guidance, `B C T H W`, in x0's dtype. Outside the guided window, and at scale 0, x0
        itself.

        Raises ValueError for a latent that cannot be guided and for NaN or infinite values.
        """
        self.check(x0.shape)
        active = self.is_active(step) and self.scale > 0
        measure = self.trace is not None and self.trace.measure_after
        if not active and not measure:
            return x0
        with torch.inference_mode(
            False
        ):  # ComfyUI samples in inference mode, where enable_grad alone is not enough
            work = x0.detach().clone().to(torch.promote_types(x0.dtype, torch.float32))
            cond = None if step.cond is None else step.cond.detach().clone()
            if not active:
                self._record(step, work, self._loss(work, cond))
                return x0
            gradient, loss = guidance_gradient(work, self.predictor, cond, self.lag, self.chunk)
            edit = self._edit(gradient, work, step)
            edited = work + edit
            guided = edited.to(x0.dtype)
            self._refuse_nan(x0, guided, step)
            self._record(step, work, loss, edit, self._loss(edited, cond) if measure else None)
        if self.edit == "noisy":
            step.noisy.add_(edit.to(step.noisy))
            return x0
        return guided

    def is_active(self, step: SamplingStep) -> bool:
        """Whether the step is guided: by noise level, or the indicator of eq 9, s >= (1 - rho) S, on the
        model's schedule or the sampler's steps, with a margin for 1 - 0.7 not being 0.3 in binary."""
        if self.window == "noise" and step.level is not None:
            return bool(step.level.max() <= self.start + 1e-6)
        if self.window == "percent" and step.percent_to_sigma is not None:
            return bool(step.sigma.max() <= step.percent_to_sigma(1 - self.active) * (1 + 1e-6))
        return step.index >= (1 - self.active) * step.count - 1e-6

    def step_size(self, step: SamplingStep, frames: int) -> Tensor:
        """eta of x0' = x0 - eta dL_guide/dx0 per sample, `B`: scale g^2, at most `bound` of the stable
        step."""
        eta = self.scale * step.gain.square()
        if self.bound is None:
            return eta
        return eta.clamp(max=self.bound * stable_step(frames, self.lag, self.predictor.order))

    def _edit(self, gradient: Tensor, x0: Tensor, step: SamplingStep) -> Tensor:
        if self.edit == "noisy":
            return -self.scale * gradient
        edit = -self.step_size(step, x0.shape[2]).to(gradient).reshape(-1, 1, 1, 1, 1) * gradient
        if self.max_ratio is None:
            return edit
        size = edit.flatten(1).norm(dim=1).clamp(min=1e-30)
        bound = self.max_ratio * (x0 - step.noisy.to(x0)).flatten(1).norm(dim=1)
        return edit * (bound / size).clamp(max=1).view(-1, 1, 1, 1, 1)

    def _loss(self, x0: Tensor, cond: Tensor | None) -> Tensor:
        with torch.no_grad():
            return guidance_loss(x0, self.predictor, cond, self.lag)

    def _record(
        self,
        step: SamplingStep,
        x0: Tensor,
        before: Tensor,
        edit: Tensor | None = None,
        after: Tensor | None = None,
    ) -> None:
        if self.trace is None:
            return
        nothing = x0.new_zeros(len(x0))
        eta = nothing if edit is None else self.step_size(step, x0.shape[2])
        size = (
            nothing
            if edit is None
            else edit.flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1).clamp(min=1e-12)
        )
        self.trace.rows.append(
            TraceRow(
                index=step.index,
                count=step.count,
                sigma=step.sigma.detach().clone(),
                active=edit is not None,
                loss_before=before,
                loss_after=after,
                edit_ratio=size,
                share=eta / stable_step(x0.shape[2], self.lag, self.predictor.order),
                bounded=(eta < self.scale * step.gain.square()) & (eta > 0),
            )
        )

    def _refuse_nan(self, x0: Tensor, edited: Tensor, step: SamplingStep) -> None:
        if torch.isfinite(edited).all():
            return
        where = f"at step {step.index + 1} of {step.count}"
        if not torch.isfinite(x0).all():
            raise ValueError(
                f"the denoised latent holds NaN or infinite values {where}, before guidance acted: check "
                f"the model and inputs."
            )
        raise ValueError(
            f"motion guidance overflowed {where} at strength {self.scale:g}: lower the strength or set "
            f"max_ratio."
        )
