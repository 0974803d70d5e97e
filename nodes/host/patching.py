"""The only place that knows how a MODEL is patched: a correction (methods/step.py) becomes part of ComfyUI's
sampling.

A correction is an object with `correct(x0, step) -> x0`. What else it has is used where it is there:
    reset()                         called when a sampler starts
    check(shape)                    raises ValueError for a latent (B, C, T, H, W) it cannot correct; called
                                    before models load
    check_condition(size)           raises ValueError for a prompt embedding of a size it cannot read; called
                                    before models load
    memory_required(shape) -> int   bytes of activations in float32, beyond the weights
    context_frames                  how many finished frames before a block of a video it can use, if blocks
                                    are made one after the other
    branch                          "guided" (the default): it corrects the result of CFG; "conditional": the
                                    prompt's estimate before CFG; "both": both estimates
    edits_noisy                     True if `correct` writes into `step.noisy`, an ablation; the sampler's
                                    latent changes too
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor, nn

from ...methods.step import Correction, SamplingStep, flow_level
from . import frames
from .conditioning import pooled_condition, prompts

KEY = "latent_physics"


def manage(network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """Puts a network under ComfyUI's memory management: it loads it for sampling and takes it off the device
    when room is short."""
    return comfy.model_patcher.CoreModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def add_correction(
    model: comfy.model_patcher.ModelPatcher,
    correction: Correction,
    *,
    networks: Sequence[comfy.model_patcher.ModelPatcher] = (),
    key: str = KEY,
    title: str = "The correction",
) -> comfy.model_patcher.ModelPatcher:
    """A clone of MODEL whose denoised estimate passes through `correction`; the MODEL given is left as it
    was.

    Corrections stack: they act in the order in which they were added, those before CFG (see `branch`) first.
    networks: what the correction computes with, from `manage`; they are loaded with the MODEL. During
    `correct` their weights are on the sampling device as ordinary tensors that autograd may save, in bfloat16
    where the device is good at it. key: names the correction in the MODEL (made unique by a number); title:
    its name in messages.
    """
    patched = model.clone()
    key = _unused(key, patched.attachments)
    hook = _CorrectionHook(correction, list(networks), title)
    patched.set_attachments(key, hook)
    patched.set_additional_models(key, list(networks))
    if hook.after_cfg:
        patched.set_model_sampler_post_cfg_function(hook)
    else:
        patched.set_model_sampler_pre_cfg_function(hook.before_cfg)
        patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, key, hook.in_window)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, key, hook.start)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, key, hook.begin)
    patched.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, key, hook.reserve_memory
    )
    return patched


def corrections(model: comfy.model_patcher.ModelPatcher) -> list[tuple[str, Correction]]:
    """(key, correction) of every correction in a MODEL, in the order in which they act."""
    return [
        (key, hook.correction) for key, hook in model.attachments.items() if isinstance(hook, _CorrectionHook)
    ]


class _CorrectionHook:
    """One correction in one MODEL: what ComfyUI calls while it samples. What it holds belongs to one run."""

    def __init__(
        self, correction: Correction, networks: list[comfy.model_patcher.ModelPatcher], title: str
    ) -> None:
        self.correction = correction
        self.after_cfg = getattr(correction, "branch", "guided") == "guided"
        self.networks = networks
        self.protected: frames.Protected | None = None
        self.blocks = frames.Blocks()
        self.title, self.asked = title, False

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """The post-CFG function: the denoised estimate in, the corrected one out."""
        self.asked = True
        comfy.model_management.throw_exception_if_processing_interrupted()
        block = args["model_options"].get("transformer_options", {}).get("ar_state")
        if block is not None:
            return self._correct_block(args, int(block["start_frame"]))
        denoised, conds, model = args["denoised"], args["cond"], args["model"]
        whole_clip = self.protected is not None and not args.get("in_window", False)
        seen = self.protected.compose(denoised, args) if whole_clip else denoised
        x0, put_back = frames.video_of(seen, conds, model)
        noisy, put_noisy_back = frames.video_of(args["input"], conds, model)
        with torch.inference_mode(False):
            noisy = noisy.clone()
        corrected = self._corrected(args, x0, noisy)
        if getattr(self.correction, "edits_noisy", False):
            args["input"].copy_(put_noisy_back(noisy))
        if corrected is None:
            return denoised
        whole = put_back(corrected)
        return whole if seen is denoised else denoised + (whole - seen)

    def _corrected(self, args: dict[str, Any], x0: Tensor, noisy: Tensor) -> Tensor | None:
        """The corrected x0; None where it leaves it as it is.

        The prompt runs under inference mode, where autograd saves nothing: leave it, and copy what was made
        inside it.
        """
        with torch.inference_mode(False), resident(self.networks, x0.device):
            x0 = x0.clone()
            corrected = self.correction.correct(x0, sampling_step(args, noisy))
        return None if corrected is x0 else corrected

    def _correct_block(self, args: dict[str, Any], start: int) -> Tensor:
        """A block of a video that is made block by block: corrected behind the frames made before it, which
        stay.

        The sampler calls the model at sigma 0 to tell it of finished frames; those are kept. A block too
        short for the correction even with what came before it is left alone.
        """
        denoised, noisy = args["denoised"], args["input"]
        if float(args["sigma"].max()) == 0:
            self.blocks.finish(noisy, start)
            return denoised
        before = self.blocks.before(start, getattr(self.correction, "context_frames", 0))
        known = 0 if before is None else before.shape[2]
        with torch.inference_mode(False):
            parts = [
                [part.clone() for part in (before, tensor) if part is not None]
                for tensor in (denoised, noisy)
            ]
            x0, noisy = (torch.cat(both, dim=2) for both in parts)
        if not self._fits(x0.shape):
            return denoised
        corrected = self._corrected(args, x0, noisy)
        return denoised if corrected is None else corrected[:, :, known:]

    def _fits(self, shape: torch.Size) -> bool:
        try:
            getattr(self.correction, "check", lambda shape: None)(tuple(shape))
        except ValueError:
            return False
        return True

    def before_cfg(self, args: dict[str, Any]) -> list[Tensor]:
        """The pre-CFG function: both branches' estimates in, with the prompt's (or both) corrected out.

        ComfyUI calls it when the context windows are merged; they were corrected one by one then, by
        `in_window`.
        """
        self.asked = True
        estimates = list(args["conds_out"])
        if _in_windows(args["model_options"]):
            return estimates
        branches = range(2 if self.correction.branch == "both" else 1)
        for branch in branches:
            if args["conds"][branch] is not None:  # without CFG there is no second one
                estimates[branch] = self({**args, "denoised": estimates[branch], "cond": args["conds"][0]})
        return estimates

    def in_window(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: list[Any],
        x: Tensor,
        sigma: Tensor,
        options: dict[str, Any],
    ) -> Any:
        """Around the model's calls: inside a context window its own estimates are corrected, before windows
        are merged.

        What a mask protects is known of the whole clip only, so a window is corrected as the model sees it.
        """
        estimates = executor(model, conds, x, sigma, options)
        if not _in_windows(options) or len(conds) < 2:
            return estimates
        apart = {
            key: value for key, value in options["transformer_options"].items() if key != "context_window"
        }
        args = {
            "model": model,
            "conds": conds,
            "conds_out": estimates,
            "input": x,
            "sigma": sigma,
            "in_window": True,
        }
        return self.before_cfg({**args, "model_options": {**options, "transformer_options": apart}})

    def start(self, executor: Callable[..., Any], noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Around a whole sampler run: refuse what cannot be corrected before anything is loaded, forget the
        last run, and say where nothing was asked of the correction: some guiders mix estimates by themselves
        (DualCFGGuider calls no function before CFG, DualModelGuider none at CFG 1)."""
        shapes = kwargs.get("latent_shapes") or [noise.shape]
        conds = executor.class_obj.conds.get("positive")
        if hasattr(self.correction, "check"):
            self.correction.check(frames.video_shape(shapes, conds, executor.class_obj.model_patcher.model))
        if hasattr(self.correction, "check_condition"):
            for tokens in prompts(conds):
                self.correction.check_condition(tokens.shape[-1])
        if hasattr(self.correction, "reset"):
            self.correction.reset()
        self.asked = False
        try:
            found = executor(noise, *args, **kwargs)
            if not self.asked and len(kwargs["sigmas"] if "sigmas" in kwargs else args[2]) > 1:
                guider = type(executor.class_obj).__name__
                other = "" if self.after_cfg else ", or branch guided"
                logging.warning(
                    f"{self.title} did nothing: {guider} does not call it. Use CFGGuider or KSampler{other}."
                )
            return found
        finally:
            self.protected, self.blocks = None, frames.Blocks()

    def begin(
        self, executor: Callable[..., Any], guider: Any, sigmas: Tensor, extra: Any, callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Around the sampler itself, which gets the mask and the latent in the model's own scaling. Other
        samplers than ComfyUI's KSAMPLER (VOIDSampler) do not look at the mask."""
        masked = denoise_mask is not None and latent_image is not None
        if masked and isinstance(executor.class_obj, comfy.samplers.KSAMPLER):
            self.protected = frames.Protected(latent_image, denoise_mask, sigmas)
        return executor(guider, sigmas, extra, callback, noise, latent_image, denoise_mask, *args, **kwargs)

    def reserve_memory(
        self, executor: Callable[..., Any], model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> Any:
        """Around ComfyUI's memory estimate. The correction runs when the backbone's activations are gone, so
        the larger counts; the estimate is proportional to the latent's size, so a larger need is told as a
        larger latent."""
        shape = list(noise_shape)
        if hasattr(self.correction, "memory_required"):
            size = comfy.model_management.dtype_size(_compute_dtype(model.load_device) or torch.float32)
            need = self.correction.memory_required(tuple(shape)) * size / 4
            have = model.model.memory_required([shape[0], *shape[1:]])
            if have > 0 and need > have:
                shape[2] = math.ceil(shape[2] * need / have)
        return executor(model, shape, *args, **kwargs)


def _in_windows(options: dict[str, Any]) -> bool:
    """Whether the model is called on context windows in this step."""
    return options.get("context_handler") is not None and "context_window" in options.get(
        "transformer_options", {}
    )


def sampling_step(args: dict[str, Any], noisy: Tensor) -> SamplingStep:
    """A post-CFG function's arguments in a correction's words. `noisy` is the latent it concerns, `B
    C T H W`."""
    sigma = args["sigma"].detach().clone().float()
    batch, sampling = noisy.shape[0], args["model"].model_sampling
    index, count = step_index(
        float(sigma.max()), args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    )
    return SamplingStep(
        noisy=noisy,
        sigma=sigma.expand(batch),
        gain=gain(sampling, sigma).expand(batch),
        index=index,
        count=count,
        cond=pooled_condition(args["cond"], float(sigma.max()), noisy.shape, noisy.device),
        level=level(sampling, sigma).expand(batch),
        percent_to_sigma=getattr(sampling, "percent_to_sigma", None),
    )


def gain(model_sampling: Any, sigma: Tensor) -> Tensor:
    """g of x0 = a z_t - g out for any affine parameterisation, `B`: what a unit of network output takes away
    from x0."""
    zero = torch.zeros(len(sigma), 1, device=sigma.device)
    without = model_sampling.calculate_denoised(sigma, zero, zero)
    return (without - model_sampling.calculate_denoised(sigma, zero + 1, zero)).reshape(-1)


def level(model_sampling: Any, sigma: Tensor) -> Tensor:
    """Noise level of z_t = a x0 + b noise as b / (a + b), `B`: what the model's own scaling makes of a clean
    and of a noisy one, so no table of model types is needed."""
    zero = torch.zeros(len(sigma), 1, device=sigma.device)
    signal = model_sampling.noise_scaling(sigma, zero, zero + 1)
    return flow_level(signal, model_sampling.noise_scaling(sigma, zero + 1, zero)).reshape(-1)


def step_index(sigma: float, sample_sigmas: Tensor | None) -> tuple[int, int]:
    """(index, count) of the step that `sigma` falls in; a sampler's extra evaluations belong to the step they
    fall in."""
    if sample_sigmas is None or len(sample_sigmas) < 2:
        return 0, 1
    count = len(sample_sigmas) - 1
    passed = sum(1 for listed in sample_sigmas[1:].tolist() if listed >= sigma * (1 - 1e-4))
    return min(passed, count - 1), count


@contextmanager
def resident(networks: Sequence[comfy.model_patcher.ModelPatcher], device: torch.device) -> Iterator[None]:
    """Inside, every weight of `networks` is an ordinary tensor on `device`, in bfloat16 where the device is
    good at it.

    ComfyUI may have left weights on another device to save memory and cast them layer by layer through a
    shared buffer, or have moved them under inference mode. Both are fine for a forward pass, and both break
    autograd, the first without a word. Copies are made of such weights only, and dropped at the end.
    """
    dtype = _compute_dtype(device)
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in [module for patcher in networks for module in patcher.model.modules()]:
            for tensors, wrap in [
                (module._parameters, nn.Parameter),
                (module._buffers, lambda tensor, **_: tensor),
            ]:
                for name, tensor in tensors.items():
                    wanted = None if tensor is None else _wanted_dtype(tensor, dtype)
                    if tensor is None or (
                        tensor.device == device and tensor.dtype == wanted and not tensor.is_inference()
                    ):
                        continue
                    replaced.append((tensors, name, tensor))
                    tensors[name] = wrap(
                        tensor.detach().to(device=device, dtype=wanted, copy=True), requires_grad=False
                    )
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


def _wanted_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _compute_dtype(device: torch.device) -> torch.dtype | None:
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else None


def _unused(key: str, taken: dict[str, Any]) -> str:
    numbered = (f"{key}.{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbered if name not in taken)
