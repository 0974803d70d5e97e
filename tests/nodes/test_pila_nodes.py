"""The PILA nodes in a real ComfyUI, in this process."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from latent_physics.nodes.host import spaces
from latent_physics.nodes.pila_views import AttributeBankView, ExpertMaps, RouterPlot
from latent_physics.nodes.views.fields import FIELD_MENU, paint

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
import comfy.samplers
import folder_paths
from latent_physics.methods.pila import CATEGORIES, PilaAdapter, PilaConfig, save_adapter
from latent_physics.methods.pila.correction import WAN22_BOUNDARY, PilaTrace
from latent_physics.methods.weights import WeightsError, WeightsInfo, save_weights
from latent_physics.nodes import pila
from latent_physics.nodes.host import files, patching

pytestmark = pytest.mark.comfy

TEXT = 32
SMALL = PilaConfig(hidden=16, blocks=1, head_width=8, cond_dim=TEXT)


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop(files.FOLDER, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    files.register_folder()
    return tmp_path / "models" / files.FOLDER


def network(trained=True, config=SMALL):
    torch.manual_seed(0)
    adapter = PilaAdapter(config)
    for parameter in adapter.parameters() if trained else ():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def execute(node, **arguments):
    with torch.inference_mode():
        return node.execute(**arguments).args


def loaded(models, space="toy", **options):
    save_adapter(models / "pila.safetensors", network(**options), space)
    return execute(pila.LoadPilaAdapter, name="pila.safetensors")[0]


def sample(
    model,
    conditioning,
    steps=3,
    cfg=4.0,
    batch=1,
    size=(5, 8, 8),
    sampler="euler",
    latent=None,
    mask=None,
    callback=None,
):
    noise = torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(3))
    run = comfy.samplers.KSampler(
        model, steps=steps, device="cpu", sampler=sampler, scheduler="simple", denoise=1.0
    )
    start = torch.zeros_like(noise) if latent is None else latent
    options = {"denoise_mask": mask, "callback": callback, "disable_pbar": True, "seed": 5}
    with torch.inference_mode():
        return run.sample(
            noise, conditioning(1), conditioning(2), cfg=cfg, latent_image=start, **options
        ).clone()


def trace_of(model) -> PilaTrace:
    return patching.corrections(model)[-1][1].settings.trace


def corrected(model, adapter, **options):
    defaults = {"strength": 1.0, "top_k": -1, "start": 0.0, "end": 1.0}
    return execute(pila.PilaCorrectionNode, model=model, adapter=adapter, **{**defaults, **options})[0]


def test_the_loader_lists_loads_and_describes(models):
    save_weights(
        models / "other.safetensors", {}, WeightsInfo(kind="motion_predictor", latent_space="toy", config={})
    )
    adapter = loaded(models)
    assert isinstance(adapter.network, PilaAdapter)
    assert "pila.safetensors" in files.list_files("pila_adapter")
    assert "other.safetensors" not in files.list_files("pila_adapter")
    text = execute(pila.LoadPilaAdapter, name="pila.safetensors")[1]
    assert "toy latents" in text
    assert "hidden: 16" in text
    assert pila.LoadPilaAdapter.validate_inputs(name="pila.safetensors") is True
    assert "motion_predictor" in pila.LoadPilaAdapter.validate_inputs(name="other.safetensors")
    assert "put the .safetensors file there" in pila.LoadPilaAdapter.validate_inputs(
        name="absent.safetensors"
    )


def test_strength_zero_and_an_untrained_adapter_leave_sampling_bit_identical(models, wan, conditioning):
    plain = sample(wan, conditioning)
    assert torch.equal(sample(corrected(wan, loaded(models), strength=0.0), conditioning), plain)
    assert torch.equal(sample(corrected(wan, loaded(models, trained=False)), conditioning), plain)
    changed = sample(corrected(wan, loaded(models), labels={"Fluid": 1.0}), conditioning)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain)
    assert torch.equal(sample(wan, conditioning), plain)  # the model that was wired in is as it was


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ("heun", [0, 1, 1, 2, 2]),
        ("dpmpp_2m_sde", [0, 1, 2]),
    ],  # heun asks the model twice in all but its last step
    ids=["heun", "dpmpp_2m_sde"],
)
def test_every_sampler_is_corrected_in_its_own_steps(models, wan, conditioning, sampler, steps):
    adapter = loaded(models)
    model = corrected(wan, adapter, labels={"Fluid": 1.0})
    plain = sample(wan, conditioning, sampler=sampler)
    changed = sample(model, conditioning, sampler=sampler)
    assert torch.isfinite(changed).all()
    assert (changed - plain).abs().max() > 1e-3
    assert trace_of(model).index == steps
    assert torch.equal(
        changed, sample(corrected(wan, adapter, labels={"Fluid": 1.0}), conditioning, sampler=sampler)
    )
    assert torch.equal(plain, sample(corrected(wan, adapter, strength=0.0), conditioning, sampler=sampler))


def test_context_windows_are_corrected_one_by_one(models, wan, conditioning, monkeypatch):
    windows = pytest.importorskip(
        "comfy_extras.nodes_context_windows", reason="this ComfyUI has no context windows"
    )
    arguments = {
        "context_length": 13,
        "context_overlap": 4,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": False,
    }
    windowed = windows.WanContextWindowsManualNode.execute(wan, **arguments).args[0]
    model = corrected(windowed, loaded(models), labels={"Fluid": 1.0})
    plain = sample(windowed, conditioning, size=(7, 8, 8))
    changed = sample(model, conditioning, size=(7, 8, 8))
    other_order = windows.WanContextWindowsManualNode.execute(
        corrected(wan, loaded(models), labels={"Fluid": 1.0}), **arguments
    ).args[0]
    assert not torch.equal(plain, sample(wan, conditioning, size=(7, 8, 8)))
    assert torch.isfinite(changed).all()
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(changed, sample(other_order, conditioning, size=(7, 8, 8)))
    windows_a_step = len(trace_of(model).index) // 3
    assert windows_a_step > 1
    assert trace_of(model).index == [step for step in range(3) for _ in range(windows_a_step)]
    seen, apply_to = [], PilaAdapter.apply_to
    spy = lambda self, x0, *a, **k: seen.append(x0.shape[2]) or apply_to(self, x0, *a, **k)  # noqa: E731
    monkeypatch.setattr(PilaAdapter, "apply_to", spy)
    sample(model, conditioning, size=(7, 8, 8))
    assert set(seen) == {
        4,
        5,
    }  # 13 frames are 4 latent frames, and one before a window that is not the first; never 7
    whole = corrected(windowed, loaded(models), labels={"Fluid": 1.0}, branch="guided")
    seen.clear()
    sample(whole, conditioning, size=(7, 8, 8))
    assert (trace_of(whole).index, set(seen)) == ([0, 1, 2], {7})


def test_maps_of_a_context_window_are_not_laid_over_the_whole_clip(models, wan, conditioning):
    windows = pytest.importorskip(
        "comfy_extras.nodes_context_windows", reason="this ComfyUI has no context windows"
    )
    windowed = windows.WanContextWindowsManualNode.execute(
        wan, context_length=13, context_overlap=4, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", freenoise=False,
    ).args[0]  # fmt: skip
    images = torch.rand(25, 64, 64, 3)

    def maps(branch):
        options = {"labels": {"Fluid": 1.0}, "keep_for_maps": True, "branch": branch}
        model = corrected(windowed, loaded(models), **options)
        latent = {"samples": sample(model, conditioning, size=(7, 8, 8))}
        arguments = {"expert": "Fluid", "position": 1.0, "opacity": 0.7, "images": images}
        return execute(ExpertMaps, model=model, latent=latent, **arguments)[1]

    with pytest.raises(ValueError, match=r"saw 4 latent frames at once .* are 7: .* set branch to guided"):
        maps("conditional")
    assert maps("guided").shape == (7, 8, 8)


def test_denoise_mask_keeps_what_it_protects(models, wan, conditioning):
    held = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(1, 1, 5, 8, 8)
    mask[:, :, 2:, :, 4:] = 1
    plain = sample(wan, conditioning, latent=held, mask=mask)
    changed = sample(corrected(wan, loaded(models)), conditioning, latent=held, mask=mask)
    protected = (mask == 0).expand_as(held)
    assert torch.allclose(changed[protected], held[protected], atol=1e-5)
    assert (changed - plain)[~protected].abs().max() > 1e-3


def test_an_interrupted_run_leaves_nothing_behind(models, wan, conditioning):
    plain = sample(wan, conditioning)
    model = corrected(wan, loaded(models), labels={"Fluid": 1.0})
    whole = sample(model, conditioning)

    def stop(step, *_):
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, conditioning, callback=stop)
    assert trace_of(model).index == [0, 1]
    assert torch.equal(plain, sample(wan, conditioning))
    assert torch.equal(whole, sample(model, conditioning))
    assert trace_of(model).index == [0, 1, 2]


def estimates(model, conditioning, cfg, **options):
    """The guided estimate of the first step, before and after the correction."""
    found = []
    for strength in (0.0, 1.0):
        patched = corrected(*model, strength=strength, labels={"Fluid": 1.0}, **options)
        patched.set_model_sampler_post_cfg_function(
            lambda args: found.append(args["denoised"].clone()) or args["denoised"]
        )
        sample(patched, conditioning, steps=1, cfg=cfg)
    return found


@pytest.mark.parametrize("branch", ["conditional", "both", "guided"])
def test_a_strength_means_the_same_at_every_cfg(models, wan, conditioning, branch):
    """Before CFG the correction is of the prompt's branch, so CFG carries it along: per CFG it is one and the
    same."""
    model, changes = (wan, loaded(models)), {}
    for cfg in (1.0, 2.0, 6.0):
        plain, changed = estimates(model, conditioning, cfg, branch=branch)
        changes[cfg] = (changed - plain) / cfg
    scale = changes[1.0].abs().max()
    apart = {cfg: float((changes[cfg] - changes[1.0]).abs().max() / scale) for cfg in (2.0, 6.0)}
    assert scale > 1e-3
    assert all((value < 1e-3) == (branch == "conditional") for value in apart.values()), apart


def test_one_call_of_the_adapter_a_step_and_two_for_both_branches(models, wan, conditioning, monkeypatch):
    calls = []
    apply_to = PilaAdapter.apply_to
    monkeypatch.setattr(PilaAdapter, "apply_to", lambda *a, **k: calls.append(1) or apply_to(*a, **k))
    for branch, cfg, expected in [
        ("conditional", 4.0, 3),
        ("both", 4.0, 6),
        ("both", 1.0, 3),
        ("guided", 4.0, 3),
    ]:
        calls.clear()
        sample(corrected(wan, loaded(models), branch=branch), conditioning, cfg=cfg)
        assert len(calls) == expected, branch


def test_the_boundary_is_the_models_own(models, wan, monkeypatch):
    adapter = loaded(models)
    boundary = lambda **options: (  # noqa: E731
        patching.corrections(corrected(wan, adapter, **options))[-1][1].settings.boundary
    )
    assert boundary() == 0.875
    assert boundary(boundary=0.5) == 0.5
    monkeypatch.setattr(wan.model, "image_to_video", True, raising=False)
    assert boundary() == 0.9


STEPS = 6


def two_stages(high, low, conditioning, split):
    """Wan 2.2 14B as its template wires it: KSampler (Advanced) twice, the second going on with the first
    one's noise."""
    import nodes as stock

    held = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    common = {"noise_seed": 5, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    common |= {"positive": conditioning(1), "negative": conditioning(2)}
    first = {
        "add_noise": "enable",
        "start_at_step": 0,
        "end_at_step": split,
        "return_with_leftover_noise": "enable",
    }
    second = {
        "add_noise": "disable",
        "start_at_step": split,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    }
    with torch.inference_mode():
        (half,) = stock.KSamplerAdvanced().sample(model=high, latent_image=held, **first, **common)
        (whole,) = stock.KSamplerAdvanced().sample(model=low, latent_image=half, **second, **common)
    return whole["samples"].clone()


def test_two_models_split_by_noise_each_trace_their_own_steps(models, wan, conditioning):
    sigmas = comfy.samplers.calculate_sigmas(wan.get_model_object("model_sampling"), "simple", STEPS).tolist()
    split = sum(sigma >= WAN22_BOUNDARY for sigma in sigmas)
    assert 0 < split < STEPS - 1
    adapter = loaded(models)
    plain = two_stages(wan, wan, conditioning, split)
    whole = corrected(wan, adapter)
    expected = two_stages(whole, whole, conditioning, split)
    results = {}
    for stage, traced in [
        ("any", (sigmas[:split], sigmas[split:-1])),
        ("high noise", (sigmas[:split], [])),
        ("low noise", ([], sigmas[split:-1])),
    ]:
        high, low = corrected(wan, adapter, stage=stage), corrected(wan, adapter, stage=stage)
        results[stage] = two_stages(high, low, conditioning, split)
        for model, steps in zip((high, low), traced):  # steps are counted within each sampler
            assert trace_of(model).index == list(range(len(steps)))
            assert trace_of(model).sigma == pytest.approx(steps, rel=1e-4)
        assert not torch.equal(results[stage], plain)
    assert torch.equal(results["any"], expected)
    assert not torch.equal(results["any"], results["high noise"])
    half, rest = corrected(wan, adapter), corrected(wan, adapter, start=0.5)
    two_stages(half, rest, conditioning, split)
    count = STEPS - split
    assert trace_of(rest).index == list(range(-(-count // 2), count))  # of its own steps, not of all six


@pytest.mark.parametrize("options", [{"cfg": 1.0}, {"batch": 2}])
def test_it_samples_without_cfg_and_in_batches(models, wan, conditioning, options):
    result = sample(
        corrected(wan, loaded(models), labels={"Optical": 1.0, "Thermal": 0.5}), conditioning, **options
    )
    assert torch.isfinite(result).all()


def test_labels_steer_the_router_and_the_plot_shows_it(models, wan, conditioning):
    model = corrected(wan, loaded(models), labels={"Thermal": 1.0}, top_k=2)
    samples = sample(model, conditioning)
    plot, table = execute(RouterPlot, model=model, latent={"samples": samples})
    assert plot.shape[0] == 1
    assert plot.shape[-1] == 3
    lines = table.splitlines()
    assert len(lines) == 1 + 3
    header = lines[0].split(",")
    assert header[3:] == list(CATEGORIES)
    weights = [float(value) for value in lines[1].split(",")[3:]]
    assert sum(weights) == pytest.approx(1.0, abs=1e-4)
    assert sum(weight > 0 for weight in weights) == 2
    assert max(range(8), key=weights.__getitem__) == CATEGORIES.index("Thermal")
    sample(model, conditioning, steps=2)
    assert len(execute(RouterPlot, model=model, latent={"samples": samples})[1].splitlines()) == 1 + 2


def test_views_without_a_run_say_what_is_missing(models, wan):
    latent = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    with pytest.raises(ValueError, match="without PILA Correction"):
        execute(RouterPlot, model=wan, latent=latent)
    with pytest.raises(ValueError, match="no sampler ran"):
        execute(RouterPlot, model=corrected(wan, loaded(models)), latent=latent)


def test_expert_maps_over_frames_and_alone(models, wan, conditioning):
    model = corrected(wan, loaded(models), labels={"Fluid": 1.0}, keep_for_maps=True)
    samples = {"samples": sample(model, conditioning)}
    arguments = {"model": model, "latent": samples, "position": 1.0, "opacity": 0.7}
    shown, maps, text = execute(ExpertMaps, expert="strongest", **arguments)
    assert shown.shape == (5, 64, 64, 3)
    assert maps.shape == (5, 8, 8)
    assert float(maps.max()) == pytest.approx(1.0)
    assert "shown: Fluid" in text
    images = torch.rand(17, 64, 64, 3)
    over, _, _ = execute(ExpertMaps, expert="Fluid", images=images, **arguments)
    assert over.shape == images.shape
    with pytest.raises(ValueError, match="decoded video"):
        execute(ExpertMaps, expert="Fluid", images=images[:0], **arguments)
    unkept = corrected(wan, loaded(models))
    sample(unkept, conditioning)
    with pytest.raises(ValueError, match="keep_for_maps"):
        execute(ExpertMaps, **{**arguments, "model": unkept}, expert="Fluid")


@pytest.mark.parametrize("field", list(FIELD_MENU))
def test_every_field_can_be_seen(models, field):
    adapter = loaded(models)
    latent = {"samples": torch.randn(1, 16, 5, 8, 8)}
    arguments = {"latent": latent, "adapter": adapter, "field": field, "noise_level": 0.0, "opacity": 0.8}
    view, size = execute(AttributeBankView, **arguments)
    assert view.shape == (5, 64, 64, 3)
    assert size.shape == (5, 8, 8)
    assert 0 <= float(view.min()) <= float(view.max()) <= 1
    assert 0 <= float(size.min()) <= float(size.max()) <= 1


def test_velocity_is_painted_by_direction():
    field = torch.zeros(1, 2, 1, 2, 2)
    field[0, :, 0, 0, 0] = torch.tensor([1.0, 0.0])
    field[0, :, 0, 0, 1] = torch.tensor([-1.0, 0.0])
    colours, size = paint(field)
    torch.testing.assert_close(colours[0, 0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(colours[0, 0, 0, 1], torch.tensor([0.0, 1.0, 1.0]))
    assert colours[0, 0, 1].abs().sum() == 0
    assert size[0, 0, 0, 0] == 1.0


def test_adapters_of_another_latent_space_are_refused_with_a_reason(models, wan, make_model):
    with pytest.raises(WeightsError, match=r"trained on wan2\.1 latents, but this MODEL samples toy latents"):
        corrected(wan, loaded(models, "wan2.1"))
    with pytest.raises(WeightsError, match="cogvideox"):
        corrected(make_model("cogvideox"), loaded(models, "wan2.1"))
    with pytest.raises(ValueError, match="flow models"):  # even a file that claims to fit
        corrected(make_model("cogvideox"), loaded(models, spaces.latent_space(make_model("cogvideox"))))


def test_an_adapter_of_wan_21_fits_the_wide_wan_model(models, make_model, conditioning):
    model = corrected(make_model("wide wan"), loaded(models, "wan2.1"))
    assert torch.isfinite(sample(model, conditioning, steps=2)).all()


def test_prompts_of_another_width_are_refused_before_sampling(models, wan, conditioning):
    model = corrected(wan, loaded(models, config=dataclasses.replace(SMALL, cond_dim=4096)))
    with pytest.raises(ValueError, match="reads 4096"):
        sample(model, conditioning)


def test_stages_and_ranges_choose_the_steps(models, wan, conditioning):
    adapter = loaded(models)
    for options, steps in [
        ({"start": 0.5}, [2, 3]),
        ({"end": 0.5}, [0, 1]),
        ({"stage": "high noise", "boundary": 0.8}, None),
    ]:
        model = corrected(wan, adapter, **options)
        sample(model, conditioning, steps=4)
        trace = trace_of(model)
        if steps is not None:
            assert trace.index == steps
        else:
            assert trace.index
            assert min(trace.sigma) >= 0.8
    assert pila.PilaCorrectionNode.validate_inputs(start=0.8, end=0.2) is not True


def test_it_stacks_with_lamo(models, wan, conditioning, make_predictor):
    from latent_physics.nodes import lamo

    guided = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=25.0, active=1.0)[0]
    both = corrected(guided, loaded(models), labels={"Fluid": 1.0})
    assert len(patching.corrections(both)) == 2
    results = [sample(model, conditioning) for model in (guided, both)]
    assert torch.isfinite(results[1]).all()
    assert not torch.equal(*results)


def test_fields_of_the_video_in_a_nested_latent(models):
    """A model with sound puts both on one wire."""
    from comfy.nested_tensor import NestedTensor

    video = torch.randn(1, 16, 5, 8, 8)
    nested = NestedTensor([torch.randn(1, 8, 10, 2), video])
    arguments = {
        "adapter": loaded(models),
        "field": next(iter(FIELD_MENU)),
        "noise_level": 0.0,
        "opacity": 1.0,
    }
    alone = execute(AttributeBankView, latent={"samples": video}, **arguments)
    found = execute(AttributeBankView, latent={"samples": nested}, **arguments)
    for one, other in zip(alone, found):
        assert torch.equal(one, other)


def test_fields_over_frames_and_what_has_none(models):
    adapter = loaded(models)
    arguments = {"adapter": adapter, "field": next(iter(FIELD_MENU)), "noise_level": 0.0, "opacity": 1.0}
    latent = torch.randn(2, 16, 5, 8, 8)
    images = torch.rand(2 * 17, 64, 64, 3)
    over, _ = execute(AttributeBankView, latent={"samples": latent}, images=images, **arguments)
    alone, _ = execute(AttributeBankView, latent={"samples": latent}, **arguments)
    assert over.shape == images.shape
    for clip in range(2):  # the last image of a clip shows its last latent frame
        small = torch.nn.functional.avg_pool2d(over[clip * 17 + 16].movedim(-1, 0), 8).movedim(0, -1)
        apart = (small - alone[:, ::8, ::8]).abs().mean(dim=(1, 2, 3))
        assert int(apart.argmin()) == clip * 5 + 4
    cases = [
        (torch.full_like(latent, torch.nan), None, "NaN"),
        (torch.randn(1, 16, 8, 8), None, "needs"),
        (torch.randn(1, 12, 5, 8, 8), None, "needs"),
        (latent, images[:33], "decoded video"),
    ]
    for samples, pictures, words in cases:
        with pytest.raises(ValueError, match=words):
            execute(AttributeBankView, latent={"samples": samples}, images=pictures, **arguments)
