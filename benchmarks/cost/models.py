"""The video models that `cost/guidance.py` speaks of, in the published sizes that the trainer reads, and how
many operations they and ours take.

Everything is counted on torch's meta device, which knows shapes and no values: no weights are made, whatever
the model's size. An operation is a multiplication or an addition in a matrix product, an attention or a
convolution, as FlopCounterMode counts them; what runs number by number is left out on both sides, except for
the drift loss, which is nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from latent_physics.methods.lamo import MotionFieldPredictor, MotionPriorGuidance
from latent_physics.methods.step import SamplingStep
from latent_physics.training.backbones import Backbone
from latent_physics.training.backbones.families import KINDS
from latent_physics.training.backbones.published import PUBLISHED
from latent_physics.training.data.format import usual_format
from latent_physics.training.objectives.base import StepView
from latent_physics.training.objectives.drift import DriftObjective
from latent_physics.training.objectives.settings import DriftSettings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = 16
TEXT_WIDTH = 4096
LAG = 2


@dataclass(frozen=True, kw_only=True)
class VideoModel:
    """A text-to-video transformer and the clip it is asked for."""

    name: str
    family: str
    """A key of the backbones' `KINDS`."""
    latent_space: str
    latent: tuple[int, int, int]
    """(T, H, W) of the latent of its clip."""
    config: dict[str, Any]
    """Arguments of diffusers' transformer class; the rest is the default."""
    target: float | None = None
    """The most that guidance may multiply the cost of a sampling step by."""

    @property
    def text_length(self) -> int:
        """Prompt tokens the transformer reads."""
        return KINDS[self.family].backbone.text_length

    @property
    def video_tokens(self) -> int:
        """Tokens of the clip; each folds 1 x patch x patch latent positions into one."""
        (frames, height, width), patch = self.latent, KINDS[self.family].backbone.patch
        return frames * (height // patch) * (width // patch)

    @property
    def attended(self) -> int:
        """Tokens in self-attention: CogVideoX puts the prompt among the video's."""
        return self.video_tokens + (self.text_length if self.family == "cogvideox" else 0)


def latent_shape(family: str) -> tuple[int, int, int]:
    """(T, H, W) of the latent of a family's usual clip."""
    form, kind = usual_format(family), KINDS[family].backbone
    frames = (form.frames - 1) // kind.temporal_stride + 1
    return frames, form.height // kind.spatial_stride, form.width // kind.spatial_stride


def published(name: str, family: str, source: str, latent_space: str, **more: float) -> VideoModel:
    """The model of a hub id with its family's usual clip, both as the trainer's rows have them."""
    return VideoModel(
        name=name,
        family=family,
        latent_space=latent_space,
        latent=latent_shape(family),
        config=dict(PUBLISHED[source]),
        **more,
    )


WAN_LATENT = latent_shape("wan")
"""832x480 pixels, 81 frames."""

MODELS = (
    published("Wan 2.1 1.3B", "wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan2.1", target=1.02),
    published("Wan 2.1 14B", "wan", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan2.1", target=1.005),
    published("CogVideoX-2B", "cogvideox", "THUDM/CogVideoX-2b", "cogvideox"),
    published("CogVideoX-5B", "cogvideox", "THUDM/CogVideoX-5b", "cogvideox1.5"),
)


@dataclass(frozen=True, kw_only=True)
class GuidanceCost:
    """Cost that guidance adds to a sampling step, in any one unit (operations or seconds)."""

    step: float
    """One unguided step: two forward passes of the transformer, with and without the prompt (CFG)."""
    correction: float
    """One call of `MotionPriorGuidance.correct` in a step that is guided."""
    share: float
    """The fraction of the steps that are guided."""

    @property
    def active(self) -> float:
        """Guided over unguided in a step that is guided."""
        return 1 + self.correction / self.step

    @property
    def average(self) -> float:
        """Guided over unguided, averaged over a whole sampling."""
        return 1 + self.share * self.correction / self.step


def build(
    model: VideoModel, *, device: str = "meta", dtype: torch.dtype = torch.float32, **changes: Any
) -> Backbone:
    """The model's transformer as a backbone of the training, with random weights where `device` is a real
    one.

    changes: arguments of the transformer that are to differ, such as num_layers.
    """
    import diffusers

    backbone_class = KINDS[model.family].backbone
    with torch.device("meta"):
        dit = getattr(diffusers, backbone_class.dit_class)(**{**model.config, **changes})
        torch.nn.Module.to(
            dit, dtype
        )  # diffusers' own `to` warns of lost precision, which random weights have not got
    if device != "meta":
        fill(dit.to_empty(device=device))
    dit.eval().requires_grad_(False)
    return backbone_class(dit=dit, latent_space=model.latent_space, device=device, dtype=dtype)


def fill(network: torch.nn.Module) -> None:
    """Small random numbers in every parameter and buffer, drawn in place: memory as it comes may hold slow
    denormals or NaN.
    """
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(-0.02, 0.02)


def make_predictor(
    device: str = "meta", dtype: torch.dtype = torch.float32, **sizes: int
) -> MotionFieldPredictor:
    """A motion predictor of the size that goes with a real model (10.8M parameters), frozen, or of other
    `sizes`.
    """
    with torch.device("meta"):
        predictor = MotionFieldPredictor(**{"channels": CHANNELS, "cond_dim": TEXT_WIDTH, **sizes}).to(dtype)
    if device != "meta":
        fill(predictor.to_empty(device=device))
    return predictor.requires_grad_(False).eval()


def latent_of(
    shape: tuple[int, int, int], device: str = "meta", dtype: torch.dtype = torch.float32
) -> Tensor:
    """A random latent, `1 C T H W`."""
    return torch.randn(1, CHANNELS, *shape, device=device, dtype=dtype)


def time_of(backbone: Backbone) -> Tensor:
    """A time halfway to noise in the family's own unit, `1`."""
    return torch.tensor([0.5] if backbone.prediction == "flow" else [500], device=backbone.device)


def tokens_of(backbone: Backbone) -> Tensor:
    """Random prompt tokens of full length, `1 L D`."""
    return torch.randn(
        1, backbone.text_length, backbone.cond_dim, device=backbone.device, dtype=backbone.dtype
    )


def sampling_step(
    noisy: Tensor, *, cond_dim: int = TEXT_WIDTH, index: int = 0, count: int = 1
) -> SamplingStep:
    """A correction's arguments; by default the only step of a sampling, which is guided where `active` is
    1.
    """
    half = torch.full((1,), 0.5, device=noisy.device)
    cond = torch.randn(1, cond_dim, device=noisy.device)
    return SamplingStep(noisy=noisy, sigma=half, gain=half, index=index, count=count, cond=cond)


def guided_share(steps: int, active: float) -> float:
    """The fraction of `steps` that guidance with this `active` acts in, by asking it."""
    guidance = MotionPriorGuidance(make_predictor(), active=active)
    noisy = torch.empty(1, device="meta")
    return (
        sum(guidance.is_active(sampling_step(noisy, index=index, count=steps)) for index in range(steps))
        / steps
    )


# -- counting ------------------------------------------------------------------------------------------------


def operations(work: Callable[[], object]) -> float:
    """Multiplications and additions of `work` in matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def forward_operations(backbone: Backbone, latent: tuple[int, int, int]) -> float:
    """One forward pass of a backbone on the meta device."""
    noisy, time, tokens = latent_of(latent), time_of(backbone), tokens_of(backbone)
    with torch.no_grad():
        return operations(lambda: backbone.predict(noisy, time, tokens))


def training_operations(backbone: Backbone, latent: tuple[int, int, int]) -> float:
    """Forward and backward pass of a full fine-tune's step with one clip, nothing checkpointed."""
    noisy, time, tokens = latent_of(latent), time_of(backbone), tokens_of(backbone)
    backbone.dit.requires_grad_(True)
    try:
        return operations(lambda: backbone.predict(noisy, time, tokens).square().mean().backward())
    finally:
        backbone.dit.requires_grad_(False)


class _Shapeless(MotionPriorGuidance):
    """Guidance without its look at the values, which meta tensors do not have."""

    def _refuse_nan(self, x0: Tensor, edited: Tensor, step: SamplingStep) -> None:
        pass


def correction_operations(
    latent: tuple[int, int, int], predictor: MotionFieldPredictor | None = None
) -> float:
    """One whole `correct`: the predictor forward on every frame pair, and its vector-Jacobian product.

    The predictor's weights are bfloat16, as on a GPU, which changes no count (and keeps FlopCounterMode's
    hooks, which refuse to differentiate by a module's own input, away from the leaves).
    """
    predictor = make_predictor(dtype=torch.bfloat16) if predictor is None else predictor.to(torch.bfloat16)
    x0 = latent_of(latent)
    step = sampling_step(x0, cond_dim=predictor.cond_dim)
    return operations(lambda: _Shapeless(predictor, lag=LAG, active=1).correct(x0, step))


def guidance_operations(model: VideoModel, *, share: float = 1.0) -> GuidanceCost:
    """A model's step and its correction, every layer at the real size."""
    forward = forward_operations(build(model), model.latent)
    return GuidanceCost(step=2 * forward, correction=correction_operations(model.latent), share=share)


class ElementOperations(TorchDispatchMode):
    """Counts every kernel that is called as one operation per number of its largest tensor, read or
    written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [
                math.prod(leaf.shape) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)
            ]
            self.total += max(sizes, default=0)
        return out


def drift_step(backbone: Backbone, latent: Tensor, noisy: Tensor, output: Tensor) -> None:
    """All that the drift loss adds to a training step: x0 from the network's output, the objective, and the
    way back.
    """
    time = time_of(backbone)
    view = StepView(
        latent=latent, x0=backbone.x0(noisy.float(), output.float(), time), signal=backbone.signal_power(time)
    )
    objective = DriftObjective(DriftSettings(lag=LAG))
    (objective.settings.weight * objective(view)).backward()


def drift_operations(backbone: Backbone, latent: tuple[int, int, int]) -> float:
    """Operations of `drift_step`, number by number: it holds no matrix product."""
    clean, noisy, output = (latent_of(latent) for _ in range(3))
    output.requires_grad_()
    with ElementOperations() as counter:
        drift_step(backbone, clean, noisy, output)
    return float(counter.total)
