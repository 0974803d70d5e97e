"""The interface of every backbone. The families differ in `wan.py` and `cogvideox.py`; loading is in
`__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...methods.lamo import pool_tokens
from ..console import TrainingError
from .first_frame import FirstFrame, followed_by_grey
from .keys import KeyMap

Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Answer and target `B C T H W`, weights `B 1 T H W` or None -> error `B`."""
TINY = 1e-12
"""In place of a weight of 0 in a denominator."""


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A latent on its way to noise."""

    noisy: Tensor
    """Input of the network, `B C T H W`, in the scaling that the sampler uses."""
    target: Tensor
    """Target of the network: the flow's velocity or DDPM's v, `B C T H W`."""
    weight: Tensor
    """The weight of the squared error of `target` per sample, `B`: 1 in both families (see
    CogVideoXBackbone)."""
    given: Tensor | None = None
    """`B`, True where the first latent frame is clean: shown to the network and left out of the error."""

    def showing(self, latent: Tensor, first: FirstFrame | None) -> Noised:
        """The same with the first latent frame of `latent` in place of noise, where `first` gives it."""
        if first is None or first.given is None:
            return self
        noisy = self.noisy.clone()
        noisy[first.given, :, :1] = latent[first.given, :, :1].to(noisy)
        return replace(self, noisy=noisy, given=first.given)

    def error(self, out: Tensor, measure: Measure | None = None, mask: Tensor | None = None) -> Tensor:
        """Error of the network's answer, `B`, over the frames that it was not given: the mean square, or what
        `measure` makes `B` of answer, target and `mask` (`B 1 T H W`, weights of the elements)."""
        measure = measure or mean_square
        error = measure(out, self.target, mask)
        if self.given is None:
            return error
        rest = measure(out[:, :, 1:], self.target[:, :, 1:], None if mask is None else mask[:, :, 1:])
        return torch.where(self.given, rest, error)

    def with_given(self, x0: Tensor) -> Tensor:
        """A denoised estimate whose given frames are what was given."""
        if self.given is None:
            return x0
        rows = self.given.view(-1, 1, 1, 1, 1)
        first = torch.where(rows, self.noisy[:, :, :1].to(x0), x0[:, :, :1])
        return torch.cat([first, x0[:, :, 1:]], dim=2)


def mean_square(out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of each sample, `B`, in float32; weighted by `mask` `B 1 T H W`."""
    return mean_over((out.float() - target.float()).square(), mask)


def mean_over(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of each sample `C T H W` of a batch, `B`, weighted by `mask` `B 1 T H W`: sum w x / sum w, so that
    a small mask counts as much as a large one; 0 where the mask is 0 everywhere."""
    if mask is None:
        return values.mean(dim=(1, 2, 3, 4))
    weights = mask.to(values).expand_as(values)
    return (weights * values).sum(dim=(1, 2, 3, 4)) / weights.sum(dim=(1, 2, 3, 4)).clamp(min=TINY)


@dataclass(kw_only=True)
class Activation:
    """The output of one block while a tap was open."""

    tokens: Tensor
    """Video tokens in frame-major order, `B N C`; gradients flow through them."""
    grid: tuple[int, int, int]
    """(F, H, W) with F * H * W = N."""


class Backbone:
    """A text-to-video diffusion model and its companions; any of the three parts may be absent.

    Latents are in ComfyUI's model scaling everywhere (what `process_latent_in` gives), which is also what a
    post-CFG hook and a correction see. `t` is the family's own time per sample, `B`: sigma in [0, 1] for flow
    models, the integer timestep for DDPM models.
    """

    family: ClassVar[str]
    prediction: ClassVar[str]
    """"flow" or "v", as `methods.step.gain_of` understands them."""
    dit_class: ClassVar[str]
    """Name of the transformer's class in diffusers."""
    vae_class: ClassVar[str]
    """The same of the VAE."""
    dit_keys: ClassVar[KeyMap]
    vae_keys: ClassVar[KeyMap]
    lora_targets: ClassVar[tuple[str, ...]]
    """Module names (diffusers') that a LoRA attaches to unless the recipe says otherwise."""
    block_list: ClassVar[str]
    """The attribute of the transformer that holds its blocks."""

    leaves_unused: ClassVar[bool] = False
    """Whether some of what is trained has no part in the answer, and so no gradient."""

    first_frame: Literal["", "needed", "possible"] = ""
    """Whether the transformer is given a clip's first frame: never, always (36 channels), or at will (5B)."""
    vision: nn.Module | None = None
    """CLIP's vision encoder, for caching where the model reads it; loaded as part "vision"."""
    connector: nn.Module | None = None
    """Network that prompts go through before the transformer, in families that have one."""
    latent_channels: int = 16
    temporal_stride: int = 4
    spatial_stride: int = 8
    patch: int = 2
    """Latents along a token's side: width and height are multiples of patch * spatial_stride pixels."""

    def __init__(
        self,
        *,
        latent_space: str,
        vae: nn.Module | None = None,
        text: Any | None = None,
        dit: nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.latent_space = latent_space
        self.vae = vae
        self.text = text
        self.dit = dit
        self.dtype = dtype
        self.to(device)

    # -- parts -----------------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> Backbone:
        """Moves every part that is there."""
        self.device = torch.device(device)
        for part in (self.vae, self.text, self.dit, self.vision):
            if part is not None:
                part.to(self.device)
        return self

    def drop(self, *parts: str) -> None:
        """Frees parts ("vae", "text", "dit") that are not needed any more."""
        for part in parts:
            setattr(self, part, None)

    def _part(self, name: str) -> Any:
        part = getattr(self, name)
        if part is None:
            raise TrainingError(
                f"the {self.family} backbone was loaded without its {name}; add {name!r} to `parts`."
            )
        return part

    @property
    def cond_dim(self) -> int:
        """Width of the prompt embedding."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        return getattr(self._part("dit"), self.block_list)

    @property
    def sees_with_clip(self) -> bool:
        """Whether the transformer reads CLIP's view of the first frame."""
        return False

    def first_shapes(self, latent_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shapes of what a clip with a latent `C T H W` must hold of its first frame, by `FirstFrame`'s
        names."""
        return {}

    # -- pixels, words ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Latent of a video, deterministic (the posterior's mean).

        `video`: `B 3 T H W` in [0, 1], T = 1 + a multiple of the temporal stride, H and W multiples of
        `patch * spatial_stride`. Returns `B C T' H' W'` float32 in ComfyUI's model scaling
        (`process_latent_in(vae.encode(video))`). Raises TrainingError where the size does not fit or a value
        is outside [0, 1] or not finite.
        """
        self._check_video(video)
        vae = self._part("vae")
        weight = next(vae.parameters())
        latent = vae.encode(video.to(weight.device, weight.dtype) * 2 - 1).latent_dist.mode()
        return self.normalise(latent.float())

    @torch.no_grad()
    def encode_first_frame(self, video: Tensor) -> FirstFrame:
        """The first frame of a video as an image-to-video model is given it, `B 3 T H W` in [0, 1].

        Raises TrainingError as `encode_video` does.
        """
        vision = self.vision(video[:, :, 0]).float() if self.vision is not None else None
        return FirstFrame(latent=self.encode_video(followed_by_grey(video)), vision=vision)

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Video `B 3 T H W` in [0, 1], float32, of a latent in ComfyUI's model scaling."""
        vae = self._part("vae")
        weight = next(vae.parameters())
        latent = self.denormalise(latent.float())
        video = vae.decode(latent.to(weight.device, weight.dtype), return_dict=False)[0]
        return (video.float() / 2 + 0.5).clamp(0, 1)

    def normalise(self, latent: Tensor) -> Tensor:
        """ComfyUI's `process_latent_in`: the VAE's scaling -> the model's."""
        raise NotImplementedError

    def denormalise(self, latent: Tensor) -> Tensor:
        """ComfyUI's `process_latent_out`."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` in `dtype` exactly as the transformer wants them, and the mask `B L` that pooling
        uses.

        The mask is True where ComfyUI's conditioning has a token too, so the mean over it equals the mean
        that a node takes.
        """
        raise NotImplementedError

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The prompt's pooled embedding, `B D`, as a node pools ComfyUI's conditioning."""
        return pool_tokens(tokens, mask)

    def is_cut(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is longer than the text encoder reads, so that `embed_prompts` cuts its end."""
        return self._part("text").is_cut(prompts, self.text_length)

    # -- diffusion -------------------------------------------------------------------------------------------

    def sample_t(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws the family's training time for `count` samples, `B` on the generator's device."""
        raise NotImplementedError

    def noise(
        self, latent: Tensor, t: Tensor, generator: torch.Generator | None = None, eps: Tensor | None = None
    ) -> Noised:
        """Noises a latent to time `t`. `eps` is drawn from `generator` (on its device) unless given."""
        if eps is None:
            device = generator.device if generator is not None else latent.device
            eps = torch.randn(latent.shape, generator=generator, device=device, dtype=torch.float32)
        return self._noise(latent, t.to(latent.device), eps.to(latent.device, latent.dtype))

    def _noise(self, latent: Tensor, t: Tensor, eps: Tensor) -> Noised:
        raise NotImplementedError

    def predict(
        self,
        noisy: Tensor,
        t: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        first: FirstFrame | None = None,
        rates: Tensor | None = None,
    ) -> Tensor:
        """The network's output, `B C T H W` in `noisy`'s dtype. `tokens` as `embed_prompts` gave them (or
        shorter, see Wan); `first` where `first_frame` is not ""; rates: the clips' frames per second, `B`, 0
        where one is not known, for models that place frames in seconds (LTX)."""
        raise NotImplementedError

    def x0(self, noisy: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The denoised estimate from the network's output; affine in `out`."""
        raise NotImplementedError

    def signal_power(self, t: Tensor) -> Tensor:
        """alpha_bar per sample, for a flow at equal signal-to-noise ratio: LaMo's weight of the drift loss
        (eq 6)."""
        raise NotImplementedError

    # -- inside ----------------------------------------------------------------------------------------------

    def patch_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """(F, H, W) of the transformer's tokens for a latent `B C T H W`."""
        raise NotImplementedError

    @contextmanager
    def tap(self, *blocks: int) -> Iterator[dict[int, Activation]]:
        """While open, every `predict` writes the outputs of `blocks`, counted from 1, into the yielded dict,
        with gradients.

        Raises TrainingError for a block that is not there.
        """
        found: dict[int, Activation] = {}
        handles = []
        for number in blocks:
            if not 1 <= number <= len(self.blocks):
                raise TrainingError(
                    f"block {number} was asked for, but this {self.family} model has blocks 1 to "
                    f"{len(self.blocks)}."
                )
            handles.append(self.blocks[number - 1].register_forward_hook(self._record(number, found)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, number: int, found: dict[int, Activation]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[number] = Activation(
                tokens=output[0] if isinstance(output, tuple) else output, grid=self._grid
            )

        return hook

    _grid: tuple[int, int, int] = (0, 0, 0)

    def _check_video(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != 3:
            raise TrainingError(f"a video must be B 3 T H W, not {tuple(video.shape)}.")
        _, _, frames, height, width = video.shape
        if frames % self.temporal_stride != 1 % self.temporal_stride:
            near = 1 + (frames - 1) // self.temporal_stride * self.temporal_stride
            raise TrainingError(
                f"{frames} frames do not fit a temporal stride of {self.temporal_stride}; {near} would."
            )
        side = self.patch * self.spatial_stride
        if height % side or width % side or not height or not width:
            fits = f"{height // side * side}x{width // side * side}"
            raise TrainingError(
                f"a {height}x{width} video does not fit: both sides must be multiples of {side}, {fits} "
                f"would."
            )
        low, high = video.aminmax()
        if not (low >= 0 and high <= 1):
            raise TrainingError(
                f"pixel values run from {low.item():.3g} to {high.item():.3g}; they must be finite and in "
                f"[0, 1]."
            )
