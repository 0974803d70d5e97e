"""A correction sees the video that will exist: protected frames as they stay, reference frames left out,
blocks behind the frames made before them. With ComfyUI's own model classes, tiny and random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from latent_physics.nodes.host import spaces

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.conds
import comfy.sample
import comfy.samplers
import comfy.supported_models as supported
from comfy_extras import nodes_wan
from latent_physics.nodes import lamo
from latent_physics.nodes import toyworld as toy
from latent_physics.nodes.host import frames, patching

from .conftest import TEXT, build

pytestmark = pytest.mark.comfy
SIZES = {"dim": 128, "num_heads": 1, "num_layers": 2, "ffn_dim": 64, "text_dim": TEXT}
SHAPE = (1, 16, 5, 8, 8)


class Watch:
    """A correction that remembers what it was shown, and adds `shift`."""

    def __init__(self, shift: float = 0.0, context_frames: int = 0, least: int = 1):
        self.shift, self.context_frames, self.least, self.seen = shift, context_frames, least, []

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[2] < self.least:
            raise ValueError("too short")

    def correct(self, x0: torch.Tensor, step: Any) -> torch.Tensor:
        self.seen.append(x0.clone())
        return x0 + self.shift if self.shift else x0


@pytest.fixture(scope="module")
def vae() -> Any:
    with torch.inference_mode():
        return toy.LoadToyWorld.execute().args[2]


@pytest.fixture(scope="module")
def wan5b() -> Any:
    """A tiny Wan 2.2 5B, which is given protected frames clean."""
    sizes = {**SIZES, "in_dim": 48, "out_dim": 48}
    return build(supported.WAN22_T2V({"image_model": "wan2.1", "model_type": "t2v", **sizes}))


def first_frame(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(latent, mask) with the first frame protected, as Wan22ImageToVideoLatent makes them."""
    held = torch.randn(1, channels, 5, 8, 8, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(1, 1, 5, 8, 8)
    mask[:, :, 0] = 0
    return held, mask


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "res_multistep"])
def test_a_protected_first_frame_is_seen_as_it_will_be(wan5b, sample, conditioning, sampler):
    held, mask = first_frame(48)
    watch = Watch(shift=0.05)
    prompts = conditioning(1), conditioning(2)
    settings = {"latent": held, "mask": mask, "sampler": sampler}
    raw: list[torch.Tensor] = []
    model = wan5b.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: raw.append(args["denoised"].clone()) or args["denoised"]
    )
    result = sample(patching.add_correction(model, watch), *prompts, **settings)
    inside = wan5b.model.process_latent_in(held)[:, :, 0]
    assert len(watch.seen) >= 4
    for seen, estimate in zip(watch.seen, raw):
        assert torch.allclose(seen[:, :, 0], inside, atol=1e-5)
        assert torch.equal(seen[:, :, 1:], estimate[:, :, 1:])
        assert (estimate[:, :, 0] - inside).norm() > 0.1 * inside.norm()  # what it would have been shown
    assert torch.allclose(result[:, :, 0], held[:, :, 0], atol=1e-2)  # uni_pc ends at a little noise
    plain = sample(wan5b, *prompts, **settings)
    assert (result - plain)[:, :, 1:].abs().max() > 1e-3


def test_a_mask_that_changes_with_the_noise_is_composed_as_the_sampler_composes_it(wan, sample, conditioning):
    held, _ = first_frame(16)
    mask = torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1).expand(1, 1, 5, 8, 8).clone()
    watch, after = Watch(shift=0.3), []

    def remember(args: dict[str, Any]) -> torch.Tensor:
        after.append((args["sigma"], args["denoised"].clone()))
        return args["denoised"]

    model = wan.clone()
    model.set_model_denoise_mask_function(
        lambda sigma, mask, extra_options: (mask >= sigma.view(-1, 1, 1, 1, 1)).float()
    )
    patched = patching.add_correction(model, watch)
    patched.set_model_sampler_post_cfg_function(remember)
    sample(patched, conditioning(1), conditioning(2), latent=held, mask=mask)
    inside = wan.model.process_latent_in(held)
    for seen, (sigma, corrected) in zip(watch.seen, after):
        keep = (mask >= sigma.view(-1, 1, 1, 1, 1)).float()
        assert torch.allclose(seen * (1 - keep), inside * (1 - keep), atol=1e-5)
        there = corrected * keep + inside * (1 - keep)  # what the sampler makes of it
        assert torch.allclose(there, (seen + 0.3) * keep + inside * (1 - keep), atol=1e-5)


def test_without_a_mask_the_estimate_is_shown_as_it_is(wan, sample, conditioning):
    watch, raw = Watch(), []
    model = wan.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: raw.append(args["denoised"].clone()) or args["denoised"]
    )
    sample(patching.add_correction(model, watch), conditioning(1), conditioning(2), latent=torch.ones(SHAPE))
    assert all(torch.equal(seen, estimate) for seen, estimate in zip(watch.seen, raw))


# -- reference frames ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vace() -> Any:
    sizes = {**SIZES, "in_dim": 16, "out_dim": 16, "vace_layers": 2, "vace_in_dim": 96}
    return build(supported.WAN21_Vace({"image_model": "wan2.1", "model_type": "vace", **sizes}))


@pytest.fixture(scope="module")
def animate() -> Any:
    sizes = {**SIZES, "in_dim": 36, "out_dim": 16}
    return build(supported.WAN22_Animate({"image_model": "wan2.1", "model_type": "animate", **sizes}))


def picture() -> torch.Tensor:
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))


def shown(
    model: Any, sample: Any, positive: list[Any], negative: list[Any], latent: dict[str, Any]
) -> list[torch.Size]:
    watch = Watch()
    sample(patching.add_correction(model, watch), positive, negative, latent=latent["samples"], cfg=1.0)
    return [seen.shape for seen in watch.seen]


@pytest.mark.parametrize(
    "how", ["reference", "control", "reference and control", "protected first frame", "nothing"]
)
def test_vace_s_reference_frames_are_no_motion(vace, vae, sample, conditioning, how):
    options: dict[str, Any] = {}
    if "reference" in how:
        options["reference_image"] = picture()
    if "control" in how:
        options["control_video"] = torch.rand(17, 64, 64, 3)
    if how == "protected first frame":
        options |= {
            "control_video": picture().expand(17, -1, -1, -1),
            "control_masks": torch.ones(17, 64, 64),
        }
        options["control_masks"][:1] = 0
    with torch.inference_mode():
        positive, negative, latent, trim = nodes_wan.WanVaceToVideo.execute(
            conditioning(1), conditioning(2), vae, 64, 64, 17, 1, 1.0, **options
        ).args
    assert trim == (1 if "reference" in how else 0)
    assert set(shown(vace, sample, positive, negative, latent)) == {torch.Size((1, 16, 5, 8, 8))}


def test_guidance_leaves_a_still_clip_behind_a_reference_image_alone(vace, vae, conditioning):
    """With f = 0 the only motion that guidance could see is the jump from the reference image to the clip."""
    with torch.inference_mode():
        positive, *_ = nodes_wan.WanVaceToVideo.execute(
            conditioning(1), conditioning(2), vae, 64, 64, 17, 1, 1.0, reference_image=picture()
        ).args
    conds = [dict(positive[0][1])]
    clip = torch.cat(
        [torch.randn(1, 16, 1, 8, 8), torch.randn(1, 16, 1, 8, 8).expand(-1, -1, 5, -1, -1)], dim=2
    )
    moving, put_back = frames.video_of(clip, conds)
    assert torch.equal(moving, clip[:, :, 1:])
    assert torch.equal(put_back(moving * 2)[:, :, :1], clip[:, :, :1])
    assert torch.equal(put_back(moving * 2)[:, :, 1:], clip[:, :, 1:] * 2)


@pytest.mark.parametrize("pose", [False, True])
def test_animate_s_reference_frame_is_no_motion(animate, vae, sample, conditioning, pose):
    options = {"pose_video": torch.rand(17, 64, 64, 3)} if pose else {}
    with torch.inference_mode():
        positive, negative, latent, trim, *_ = nodes_wan.WanAnimateToVideo.execute(
            conditioning(1), conditioning(2), vae, 64, 64, 17, 1, 5, 0, reference_image=picture(), **options
        ).args
    assert trim == 1
    assert set(shown(animate, sample, positive, negative, latent)) == {torch.Size((1, 16, 5, 8, 8))}


def test_reference_frames_longer_than_the_clip_are_said_before_anything_loads(
    animate, make_predictor, sample, conditioning
):
    predictor = make_predictor(space=spaces.latent_space(animate))
    (model,) = lamo.LaMoGuidance.execute(animate, predictor, 25.0, 0.8).args
    pose = {"pose_video_latent": torch.zeros(1, 16, 1, 8, 8)}
    with pytest.raises(ValueError, match="generate a longer video"):
        sample(model, conditioning(1, **pose), conditioning(2, **pose), shape=(1, 16, 3, 8, 8), cfg=1.0)
    with pytest.raises(
        ValueError, match="the latent has 2 frames, and 2 of them are reference or guide frames"
    ):
        frames.video_shape(
            [(1, 16, 2, 8, 8)], [{"pose_video_latent": torch.zeros(1, 16, 0, 8, 8)}], animate.model
        )


# -- videos made block by block ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def causal() -> Any:
    sizes = {**SIZES, "in_dim": 16, "out_dim": 16}
    config = supported.WAN21_CausalAR_T2V(
        {"image_model": "wan2.1", "model_type": "t2v", "causal_ar": True, **sizes}
    )
    return build(config)


def in_blocks(
    model: Any, positive: list[Any], negative: list[Any], size: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": size})
    with torch.inference_mode():
        if start is not None:
            model = model.clone()
            model.model_options.setdefault("transformer_options", {})["ar_config"] = {"initial_latent": start}
        empty = torch.zeros(1, 16, 7, 8, 8)
        noise = comfy.sample.prepare_noise(empty, 5)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
        return comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, positive, negative, empty, disable_pbar=True, seed=5
        )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("with_image", [False, True])
def test_a_block_is_shown_behind_the_frames_made_before_it(causal, conditioning, size, with_image):
    prompts = conditioning(1), conditioning(2)
    start = torch.randn(1, 16, 1, 8, 8) if with_image else None
    watch = Watch(context_frames=2, least=3)
    result = causal.model.process_latent_in(
        in_blocks(patching.add_correction(causal, watch), *prompts, size, start)
    )
    assert watch.seen
    for seen in watch.seen:
        known = seen.shape[2] - min(size, 7)
        places = [
            at
            for at in range(7)
            if torch.allclose(result[:, :, at : at + known], seen[:, :, :known], atol=1e-4)
        ]
        assert 3 <= seen.shape[2] <= 2 + size
        assert known <= 0 or places
    again = in_blocks(patching.add_correction(causal, watch), *prompts, size, start)
    assert torch.equal(in_blocks(causal, *prompts, size, start), again)


@pytest.mark.parametrize(("size", "first"), [(1, 2), (3, 0)])
def test_guidance_acts_block_by_block_and_leaves_finished_frames_alone(
    causal, make_predictor, conditioning, size, first
):
    prompts = conditioning(1), conditioning(2)
    predictor = make_predictor(space=spaces.latent_space(causal))
    (model,) = lamo.LaMoGuidance.execute(causal, predictor, 25.0, 0.8).args
    plain, guided = (in_blocks(one, *prompts, size) for one in (causal, model))
    assert torch.isfinite(guided).all()
    change = (guided - plain).abs().amax(dim=(0, 1, 3, 4))
    assert (change[:first] == 0).all()
    assert (change[first:] > 1e-4).all()
    assert torch.equal(guided, in_blocks(model, *prompts, size))  # nothing is left of the first run
