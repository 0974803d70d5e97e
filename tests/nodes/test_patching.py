"""A correction inside ComfyUI's own samplers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.nodes.host import spaces

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
from latent_physics.nodes import lamo
from latent_physics.nodes.host import conditioning as conditioning_of
from latent_physics.nodes.host import frames, patching

pytestmark = pytest.mark.comfy

SAMPLERS = ["euler", "uni_pc", "dpmpp_2m", "dpmpp_2m_sde", "heun", "res_multistep"]
SHAPES = {
    "wan": (1, 16, 5, 8, 8),
    "cogvideox": (1, 16, 5, 8, 8),
    "hunyuan": (1, 16, 5, 8, 8),
    "ltxv": (1, 128, 5, 8, 8),
}


class Affine:
    """A correction that is easy to recognise: x0 * scale + shift. Remembers the steps it was told of."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        self.scale, self.shift, self.steps, self.runs = scale, shift, [], 0

    def correct(self, x0, step):
        self.steps.append(step)
        return x0 * self.scale + self.shift

    def reset(self):
        self.steps.clear()
        self.runs += 1


def guide(model, predictor, strength=5.0, active=0.8, **more):
    return lamo.LaMoGuidance.execute(model, predictor, strength, active, **more).args[0]


@pytest.fixture(scope="module")
def prompts(conditioning):
    return conditioning(1), conditioning(2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_with_every_sampler_and_no_trace_of_it_without(
    wan, make_predictor, sample, prompts, sampler
):
    plain = sample(wan, *prompts, sampler=sampler)
    guided = sample(guide(wan, make_predictor()), *prompts, sampler=sampler)
    assert torch.isfinite(guided).all()
    assert (guided - plain).abs().max() > 1e-3
    assert torch.equal(guided, sample(guide(wan, make_predictor()), *prompts, sampler=sampler))
    assert torch.equal(plain, sample(wan, *prompts, sampler=sampler))
    assert torch.equal(plain, sample(guide(wan, make_predictor(), strength=0.0), *prompts, sampler=sampler))


class Early(Affine):
    branch = "conditional"


@pytest.mark.parametrize(
    ("cfgs", "correction", "said"), [((2.0, 3.0), Early(2.0), True), ((2.0, 3.0), Affine(2.0), False)]
)
def test_a_guider_that_does_not_call_a_correction_is_said(wan, prompts, caplog, cfgs, correction, said):
    guiders = pytest.importorskip(
        "comfy_extras.nodes_custom_sampler", reason="this ComfyUI has no custom samplers"
    )
    guider = guiders.Guider_DualCFG(patching.add_correction(wan, correction, title="PILA Correction"))
    guider.set_cfg(*cfgs)
    guider.set_conds(prompts[0], prompts[0], prompts[1])
    start = torch.zeros(SHAPES["wan"])
    sigmas = comfy.samplers.calculate_sigmas(wan.get_model_object("model_sampling"), "simple", 2)
    with torch.inference_mode():
        guider.sample(
            torch.randn(SHAPES["wan"]),
            start,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
        )
        assert ("PILA Correction did nothing: Guider_DualCFG does not call it" in caplog.text) == said
        caplog.clear()
        guider.sample(
            torch.randn(SHAPES["wan"]),
            start,
            comfy.samplers.sampler_object("euler"),
            sigmas[:1],
            disable_pbar=True,
        )
        assert "did nothing" not in caplog.text  # no step, and nothing to do


MASK = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}


@pytest.mark.parametrize(
    ("name", "options", "cfg"),
    [
        ("wan", {}, 3.0),
        ("hunyuan", {}, 3.0),
        ("hunyuan", MASK, 1.0),
        ("ltxv", MASK, 3.0),
    ],  # ComfyUI's Hunyuan takes one mask
    ids=["wan", "hunyuan", "hunyuan with a masked prompt", "ltxv"],
)
def test_other_models(make_model, make_predictor, sample, conditioning, name, options, cfg):
    model = make_model(name)
    prompts = [conditioning(seed, **options) for seed in (1, 2)]
    predictor = make_predictor(SHAPES[name][1], spaces.latent_space(model))
    plain = sample(model, *prompts, shape=SHAPES[name], cfg=cfg)
    guided = sample(guide(model, predictor), *prompts, shape=SHAPES[name], cfg=cfg)
    assert torch.isfinite(guided).all()
    assert (guided - plain).abs().max() > 1e-3
    assert torch.equal(plain, sample(model, *prompts, shape=SHAPES[name], cfg=cfg))


def test_tokens_under_the_mask_alone_are_pooled(make_model, sample, conditioning):
    """HunyuanVideo's padding is no zeros: the mask alone says what of a prompt counts."""
    correction = Affine()
    positive, negative = conditioning(1, **MASK), conditioning(2, **MASK)
    positive[0][0][:, 4:] = 7.0
    model = patching.add_correction(make_model("hunyuan"), correction)
    sample(model, positive, negative, shape=SHAPES["hunyuan"], steps=2, cfg=1.0)
    assert len(correction.steps) == 2
    for step in correction.steps:
        assert torch.allclose(step.cond, positive[0][0][:, :4].mean(dim=1))


def test_cogvideox_with_its_own_sampler(make_model, make_predictor, prompts):
    void = pytest.importorskip("comfy_extras.nodes_void", reason="this ComfyUI has no VOIDSampler")
    model = make_model("cogvideox")

    def run(patched):
        with torch.inference_mode():
            start = torch.zeros(SHAPES["cogvideox"])
            noise = comfy.sample.prepare_noise(start, 5)
            sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 4)
            return comfy.sample.sample_custom(
                patched, noise, 3.0, void.VOID_DDIM(), sigmas, *prompts, start, disable_pbar=True, seed=5
            )

    plain = run(model)
    guided = run(guide(model, make_predictor(space="cogvideox")))
    assert torch.isfinite(guided).all()
    assert (guided - plain).abs().max() > 1e-4
    assert torch.equal(plain, run(model))


def with_sampling(model, kind):
    """The model with another parameterisation, as ModelSamplingDiscrete would set it."""
    if kind == "flow":
        return model

    class Sampling(
        comfy.model_sampling.ModelSamplingDiscrete,
        {"eps": comfy.model_sampling.EPS, "v": comfy.model_sampling.V_PREDICTION}[kind],
    ):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return patched


@pytest.mark.parametrize("kind", ["flow", "eps", "v"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_edit_in_comfyui_is_eq_9(wan, make_predictor, sample, conditioning, kind, order):
    """Autograd through the network output, x0(out) as ComfyUI computes it and eq 8, in float64."""
    seen = []
    positive = conditioning(1, batch=2)
    predictor = make_predictor(order=order)
    model = with_sampling(wan, kind)
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    model = guide(model, predictor, strength=2.0, mode="paper", window="steps")
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    sample(model, positive, conditioning(2), shape=(2, 16, 5, 8, 8), steps=5)

    network = predictor.network.__class__(16, 32, width=16, blocks=1, order=order).double()
    network.load_state_dict(predictor.network.state_dict())
    cond = positive[0][0][:, :4].double().mean(dim=1)
    before_after = list(zip(seen[::2], seen[1::2]))
    assert len(before_after) == 5
    assert before_after[0][1]["denoised"] is before_after[0][0]["denoised"]
    for before, after in before_after[1:]:
        sampling, sigma, noisy = (
            before["model"].model_sampling,
            before["sigma"].double(),
            before["input"].double(),
        )
        x0 = before["denoised"].double()
        free = sampling.calculate_denoised(sigma, torch.zeros_like(noisy), noisy)
        slope = free - sampling.calculate_denoised(sigma, torch.ones_like(noisy), noisy)
        with torch.inference_mode(False), torch.enable_grad():
            out = ((free - x0) / slope).clone().requires_grad_()
            video = sampling.calculate_denoised(sigma.clone(), out, noisy.clone())
            loss = 0
            for i in range(order - 1, 3):
                last = video[:, :, i] - video[:, :, i - 1] if order == 2 else None
                loss = (
                    loss
                    + (video[:, :, i] + network(video[:, :, i], cond, last) - video[:, :, i + 2])
                    .square()
                    .sum()
                )
            (gradient,) = torch.autograd.grad(loss / (4 - order), out)
        expected = sampling.calculate_denoised(sigma, out.detach() - 2.0 * gradient, noisy) - x0
        edit = after["denoised"].double() - x0
        assert (edit - expected).norm() < 1e-4 * expected.norm()


def test_cfg_1_batch_2_and_two_prompts(wan, make_predictor, sample, conditioning, prompts):
    guided = guide(wan, make_predictor())
    for positive, cfg in [
        (prompts[0], 1.0),
        (conditioning(1, batch=2), 3.0),
        (conditioning(1) + conditioning(3), 3.0),
    ]:
        shape = (2, 16, 5, 8, 8)
        plain = sample(wan, positive, prompts[1], shape=shape, cfg=cfg)
        result = sample(guided, positive, prompts[1], shape=shape, cfg=cfg)
        assert torch.isfinite(result).all()
        assert ((result - plain).flatten(1).abs().amax(dim=1) > 1e-3).all()


def test_a_clip_is_guided_alike_alone_and_in_a_batch(wan, make_predictor, sample, prompts):
    guided = guide(wan, make_predictor())
    noise = comfy.sample.prepare_noise(torch.zeros(2, 16, 5, 8, 8), 5)

    def run(part):
        with torch.inference_mode():
            start = torch.zeros_like(part)
            return comfy.sample.sample(
                guided, part, 4, 3.0, "euler", "simple", *prompts, start, disable_pbar=True, seed=5
            )

    both = run(noise)
    for b in range(2):
        assert torch.allclose(both[b : b + 1], run(noise[b : b + 1]), atol=1e-4)


def test_context_windows(wan, make_predictor, sample, prompts):
    windows = pytest.importorskip(
        "comfy_extras.nodes_context_windows", reason="this ComfyUI has no context windows"
    )
    arguments = {
        "context_length": 13,
        "context_overlap": 4,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
    }
    windowed = windows.WanContextWindowsManualNode.execute(
        wan, fuse_method="pyramid", freenoise=False, **arguments
    ).args[0]
    shape = (1, 16, 7, 8, 8)
    plain = sample(windowed, *prompts, shape=shape)
    guided = sample(guide(windowed, make_predictor()), *prompts, shape=shape)
    other_order = windows.WanContextWindowsManualNode.execute(
        guide(wan, make_predictor()), fuse_method="pyramid", freenoise=False, **arguments
    ).args[0]
    assert not torch.equal(plain, sample(wan, *prompts, shape=shape))
    assert torch.isfinite(guided).all()
    assert (guided - plain).abs().max() > 1e-3
    assert torch.equal(guided, sample(other_order, *prompts, shape=shape))


def test_denoise_mask_keeps_what_it_protects(wan, make_predictor, sample, prompts):
    held = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(1, 1, 5, 8, 8)
    mask[:, :, 2:, :, 4:] = 1
    plain = sample(wan, *prompts, latent=held, mask=mask)
    guided = sample(guide(wan, make_predictor()), *prompts, latent=held, mask=mask)
    protected = (mask == 0).expand_as(held)
    assert torch.allclose(guided[protected], held[protected], atol=1e-5)
    assert (guided - plain)[~protected].abs().max() > 1e-3


def test_partial_denoise_counts_the_samplers_own_steps(wan, sample, prompts):
    correction = Affine()
    sample(patching.add_correction(wan, correction), *prompts, denoise=0.5, latent=torch.ones(1, 16, 5, 8, 8))
    assert [(step.index, step.count) for step in correction.steps] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_torch_compile(wan, make_predictor, sample, prompts):
    stock = pytest.importorskip(
        "comfy_extras.nodes_torch_compile", reason="this ComfyUI has no TorchCompileModel"
    )
    # The menu's inductor takes a minute and more to compile, and meets the same hook.
    (compiled,) = stock.TorchCompileModel.execute(wan, "eager").args
    plain = sample(compiled, *prompts)
    guided = sample(guide(compiled, make_predictor()), *prompts)
    assert torch.allclose(plain, sample(wan, *prompts), atol=1e-4)
    assert torch.allclose(guided, sample(guide(wan, make_predictor()), *prompts), atol=1e-3)
    assert (guided - plain).abs().max() > 1e-3


def test_corrections_stack_in_the_order_of_the_wires(wan, sample, prompts):
    first, second = Affine(scale=0.5), Affine(shift=0.1)
    seen = []
    model = wan.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    one = patching.add_correction(model, first)
    both = patching.add_correction(one, second)
    both.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    sample(both, *prompts)
    assert [correction for _, correction in patching.corrections(both)] == [first, second]
    assert [correction for _, correction in patching.corrections(one)] == [first]
    assert patching.corrections(wan) == []
    for before, after in zip(seen[::2], seen[1::2]):
        assert torch.equal(after, before * 0.5 + 0.1)
    assert len(first.steps) == len(second.steps) == 4


def test_two_guidance_nodes(wan, make_predictor, sample, prompts):
    once = guide(wan, make_predictor(), strength=1.0)
    twice = guide(once, make_predictor(order=2), strength=1.0)
    assert len(patching.corrections(twice)) == 2
    assert len(twice.get_additional_models()) == 2
    results = [sample(model, *prompts) for model in (wan, once, twice)]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
    assert torch.equal(results[0], sample(wan, *prompts))


def test_an_interrupted_run_leaves_nothing_behind(wan, make_predictor, sample, prompts):
    plain = sample(wan, *prompts)
    guided = guide(wan, make_predictor())
    whole = sample(guided, *prompts)

    def stop(step, *_):
        if step == 2:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(guided, *prompts, callback=stop)
    assert torch.equal(plain, sample(wan, *prompts))
    assert torch.equal(whole, sample(guided, *prompts))


def test_a_run_starts_afresh(wan, sample, prompts):
    correction = Affine()
    model = patching.add_correction(wan, correction)
    for run in (1, 2):
        sample(model, *prompts)
        assert correction.runs == run
        assert len(correction.steps) == 4


def test_what_a_correction_is_told(wan, sample, conditioning):
    correction = Affine()
    positive = conditioning(1)
    sample(
        patching.add_correction(wan, correction),
        positive,
        conditioning(2),
        shape=(2, 16, 5, 8, 8),
        sampler="heun",
    )
    assert [step.index for step in correction.steps] == [0, 1, 1, 2, 2, 3, 3]
    for step in correction.steps:
        assert step.count == 4
        assert step.noisy.shape == (2, 16, 5, 8, 8)
        assert not step.noisy.is_inference()
        assert torch.equal(step.gain, step.sigma)  # Wan is a flow
        assert torch.allclose(step.cond, positive[0][0][:, :4].mean(dim=1).expand(2, -1))


def test_direct_latent_edit_reaches_the_sampler(wan, sample, prompts):
    class Shift:
        edits_noisy = True

        def correct(self, x0, step):
            step.noisy.add_(1.0)
            return x0

    seen = []
    model = wan.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["input"].clone()) or args["denoised"]
    )
    model = patching.add_correction(model, Shift())
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["input"].clone()) or args["denoised"]
    )
    sample(model, *prompts)
    for before, after in zip(seen[::2], seen[1::2]):
        assert torch.equal(after, before + 1.0)


def test_weights_that_comfyui_moved_in_inference_mode(wan, make_predictor, sample, prompts):
    expected = sample(guide(wan, make_predictor()), *prompts)
    with torch.inference_mode():
        predictor = make_predictor()
        for module in predictor.network.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    module._parameters[name] = torch.nn.Parameter(tensor.clone(), requires_grad=False)
    weights = list(predictor.network.parameters())
    assert all(weight.is_inference() for weight in weights)
    assert torch.equal(expected, sample(guide(wan, predictor), *prompts))
    assert all(now is before for now, before in zip(predictor.network.parameters(), weights))


def test_resident_weights_are_put_back_after_an_error(make_predictor, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: True)
    predictor = make_predictor()
    weights = dict(predictor.network.named_parameters())

    def fail():
        with patching.resident([predictor.patcher], torch.device("cpu")):
            for name, parameter in predictor.network.named_parameters():
                assert parameter.dtype == torch.bfloat16
                assert parameter is not weights[name]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(parameter is weights[name] for name, parameter in predictor.network.named_parameters())


def test_bfloat16_guidance_is_close(wan, make_predictor, sample, prompts, monkeypatch):
    plain, exact = sample(wan, *prompts), sample(guide(wan, make_predictor(), strength=1.0), *prompts)
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: True)
    rounded = sample(guide(wan, make_predictor(), strength=1.0), *prompts)
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.02 * (exact - plain).norm()


def test_memory_of_the_correction_is_asked_for(wan, sample, prompts):
    shapes = []

    class Hungry(Affine):
        def memory_required(self, shape):
            assert shape == (1, 16, 5, 8, 8)
            return int(3.5 * wan.model.memory_required([1, 16, 5, 8, 8]))

    model = patching.add_correction(wan, Hungry())
    model.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING,
        "test",
        lambda executor, patcher, shape, *args, **kwargs: (
            shapes.append(tuple(shape)) or executor(patcher, shape, *args, **kwargs)
        ),
    )
    sample(model, *prompts)
    assert shapes == [(1, 16, 18, 8, 8)]


def test_networks_load_with_the_model(wan, make_predictor, sample, prompts):
    predictor = make_predictor()
    sample(guide(wan, predictor), *prompts)
    assert any(loaded.is_clone(predictor.patcher) for loaded in comfy.model_management.loaded_models())


def test_a_model_with_sound():
    video, sound = torch.randn(2, 8, 5, 4, 4), torch.randn(2, 3, 7, 2)
    packed, shapes = comfy.utils.pack_latents([video, sound])
    conds = [{"model_conds": {"latent_shapes": comfy.conds.CONDConstant(shapes)}}]
    found, put_back = frames.video_of(packed, conds)
    assert torch.equal(found, video)
    whole = comfy.utils.unpack_latents(put_back(found + 1), shapes)
    assert torch.equal(whole[0], video + 1)
    assert torch.equal(whole[1], sound)


@pytest.mark.parametrize("how", ["entries", "positions"])
def test_guide_frames_of_ltxv_are_left_alone(how):
    video = torch.randn(1, 8, 7, 4, 4)
    entries = comfy.conds.CONDConstant([{"latent_shape": [1, 4, 4]}, {"latent_shape": [1, 4, 4]}])
    positions = comfy.conds.CONDRegular(torch.zeros(1, 3, 2 * 16, 2))
    conds = [
        {
            "model_conds": {"guide_attention_entries": entries}
            if how == "entries"
            else {"keyframe_idxs": positions}
        }
    ]
    found, put_back = frames.video_of(video, conds)
    assert torch.equal(found, video[:, :, :5])
    whole = put_back(found + 1)
    assert torch.equal(whole[:, :, :5], video[:, :, :5] + 1)
    assert torch.equal(whole[:, :, 5:], video[:, :, 5:])


def test_prompts_weigh_by_strength_and_by_what_they_cover():
    shape, device = (1, 16, 5, 8, 8), torch.device("cpu")
    tokens = torch.randn(2, 1, 4, 6)
    half = torch.zeros(1, 5, 8, 8)
    half[..., :4] = 1
    cases = [
        ({"strength": 3.0}, 3.0),
        ({"mask": half}, 0.5),
        ({"mask": half, "mask_strength": 0.5, "strength": 2.0}, 0.5),
        ({"area": (8, 2, 0, 0)}, 0.25),
        ({"area": ("percentage", 0.5, 0.5, 0.0, 0.0)}, 0.25),
        ({"strength": 0.0}, 0.0),
    ]
    for options, weight in cases:
        conds = [{"cross_attn": tokens[0]}, {"cross_attn": tokens[1], **options}]
        expected = (tokens[0].mean(dim=1) + weight * tokens[1].mean(dim=1)) / (1 + weight)
        assert torch.allclose(
            conditioning_of.pooled_condition(conds, 0.5, shape, device), expected, atol=1e-6
        )
    assert (
        conditioning_of.pooled_condition([{"cross_attn": tokens[0], "strength": 0.0}], 0.5, shape, device)
        is None
    )


@pytest.mark.parametrize(("kind", "sigma"), [("flow", 0.3), ("eps", 2.0), ("v", 2.0)])
def test_the_noise_level_is_that_of_the_flow_with_the_same_signal_to_noise(wan, kind, sigma):
    sampling = with_sampling(wan, kind).get_model_object("model_sampling")
    expected = sigma if kind == "flow" else sigma / (1 + sigma)  # z = x0 + sigma noise
    assert patching.level(sampling, torch.tensor([sigma])).item() == pytest.approx(expected)


def test_prompts_outside_their_time_do_not_count():
    tokens = torch.randn(3, 1, 4, 6)
    conds = [
        {"cross_attn": tokens[0], "timestep_start": 1.0, "timestep_end": 0.5},
        {"cross_attn": tokens[1], "timestep_start": 0.5, "timestep_end": 0.0},
        {"cross_attn": tokens[2], "attention_mask": torch.tensor([[1, 0, 0, 0]])},
    ]
    device = torch.device("cpu")
    early, late = (
        conditioning_of.pooled_condition(conds, sigma, (1, 16, 5, 8, 8), device) for sigma in (0.9, 0.1)
    )
    assert torch.allclose(early, (tokens[0].mean(1) + tokens[2][:, 0]) / 2)
    assert torch.allclose(late, (tokens[1].mean(1) + tokens[2][:, 0]) / 2)
    assert conditioning_of.pooled_condition([{"cross_attn": None}], 0.5, (1, 16, 5, 8, 8), device) is None
    assert conditioning_of.pooled_condition(None, 0.5, (1, 16, 5, 8, 8), device) is None


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 40), top=st.floats(0.5, 5000), part=st.floats(0.01, 0.98), which=st.integers(0, 39)
)
def test_sigmas_belong_to_the_step_they_fall_in(count, top, part, which):
    which = min(which, count - 1)
    sigmas = torch.linspace(top, 0, count + 1)
    here, following = float(sigmas[which]), float(sigmas[which + 1])
    assert patching.step_index(here, sigmas) == (which, count)
    assert patching.step_index(here * (1 + 1e-6), sigmas) == (which, count)
    assert patching.step_index(here * (1 - part) + following * part, sigmas) == (which, count)
    assert patching.step_index(0.0, sigmas) == (count - 1, count)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("wan", "toy"),
        ("wide wan", "wan2.1"),
        ("cogvideox", "cogvideox"),
        ("hunyuan", "hunyuan_video"),
        ("ltxv", "ltxv"),
    ],
)
def test_latent_space_names(make_model, name, space):
    model = make_model(name)
    assert spaces.latent_space(model) == space
    assert type(spaces.latent_format(space)) is type(model.get_model_object("latent_format"))
