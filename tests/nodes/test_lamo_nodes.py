"""The LaMo nodes: files, refusals, heatmaps, the trace."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from latent_physics.nodes.heatmaps import MotionDriftHeatmap, MotionFieldHeatmap
from latent_physics.nodes.host import spaces

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import folder_paths
from latent_physics.methods.lamo import MotionFieldPredictor, drift_heatmap, field_heatmap, save_predictor
from latent_physics.methods.weights import WeightsError, WeightsInfo, save_weights
from latent_physics.nodes import lamo
from latent_physics.nodes.host import files, patching

pytestmark = pytest.mark.comfy


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder for ComfyUI; previews go to a temporary folder too."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop(files.FOLDER, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files.register_folder()
    return tmp_path / "models" / files.FOLDER


@pytest.fixture
def previews(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def small(order=1):
    return MotionFieldPredictor(16, 32, width=16, blocks=1, order=order)


def execute(node, **arguments):
    with torch.inference_mode():
        return node.execute(**arguments).args


def test_menu_lists_what_fits(models):
    save_predictor(models / "mine.safetensors", small(), "wan2.1")
    save_predictor(models / "folder" / "deep.safetensors", small(), "wan2.1")
    save_weights(
        models / "other.safetensors",
        small().state_dict(),
        WeightsInfo(kind="pila_adapter", latent_space="toy", config={}),
    )
    (models / "broken.safetensors").write_bytes(b"nothing")
    (models / "pickled.pt").write_bytes(pickle.dumps([1]))
    (models / "notes.txt").write_text("hello")
    names = files.list_files("motion_predictor")
    own = [name.replace("\\", "/") for name in names if not name.startswith(files.SHIPPED_PREFIX)]
    assert sorted(own) == ["broken.safetensors", "folder/deep.safetensors", "mine.safetensors"]


def test_shipped_files_are_listed_and_found(models, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "SHIPPED_FOLDER", tmp_path)
    save_predictor(tmp_path / "motion.safetensors", small(), "toy")
    save_weights(
        tmp_path / "vae.safetensors",
        {"a": torch.zeros(1)},
        WeightsInfo(kind="vae", latent_space="toy", config={}),
    )
    assert files.list_files("motion_predictor") == ["toy/motion.safetensors"]
    assert files.find_file("toy/motion.safetensors") == tmp_path / "motion.safetensors"
    predictor, info = execute(lamo.LoadMotionPredictor, name="toy/motion.safetensors")
    assert predictor.info.latent_space == "toy"
    assert "toy latents" in info


def test_extra_model_paths_are_kept(models, tmp_path):
    extra = tmp_path / "elsewhere"
    save_predictor(extra / "far.safetensors", small(), "wan2.1")
    folder_paths.add_model_folder_path(files.FOLDER, str(extra))
    files.register_folder()
    assert "far.safetensors" in files.list_files("motion_predictor")
    assert files.find_file("far.safetensors") == extra / "far.safetensors"


def test_load_and_guide(models, wan, sample, conditioning):
    save_predictor(models / "mine.safetensors", small(), "toy", lag=1)
    predictor, info = execute(lamo.LoadMotionPredictor, name="mine.safetensors")
    assert predictor.lag(0) == 1
    assert predictor.lag(3) == 3
    assert "lag: 1" in info
    assert not any(
        parameter.is_inference() or parameter.requires_grad for parameter in predictor.network.parameters()
    )
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=predictor, strength=1.0, active=1.0)
    prompts = conditioning(1), conditioning(2)
    assert not torch.equal(sample(model, *prompts), sample(wan, *prompts))


def test_layers_without_weights_until_loaded(models, monkeypatch):
    """With dynamic memory ComfyUI's linear layers have no weights before a file is loaded into them."""
    import comfy.memory_management

    if not hasattr(comfy.memory_management, "aimdo_enabled"):
        pytest.skip("this ComfyUI has no dynamic memory")
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    network = small()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    save_predictor(models / "mine.safetensors", network, "toy")
    predictor, _ = execute(lamo.LoadMotionPredictor, name="mine.safetensors")
    frames = torch.randn(2, 16, 4, 4)
    assert torch.allclose(predictor.network(frames), network(frames), atol=1e-5)


def test_bad_files_are_refused_when_queued_and_when_run(models):
    (models / "broken.safetensors").write_bytes(b"nothing")
    (models / "pickled.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    save_weights(
        models / "adapter.safetensors",
        {"a": torch.zeros(1)},
        WeightsInfo(kind="pila_adapter", latent_space="toy", config={}),
    )
    save_predictor(models / "cut.safetensors", small(), "toy")
    (models / "cut.safetensors").write_bytes((models / "cut.safetensors").read_bytes()[:-8])
    cases = {
        "missing.safetensors": "models/latent_physics",
        "../mine.safetensors": "models/latent_physics",
        "virus.pt": "models/latent_physics",
        "broken.safetensors": "not a readable safetensors file",
        "pickled.safetensors": "not a readable safetensors file",
        "cut.safetensors": "not a readable safetensors file",
        "adapter.safetensors": "holds a pila_adapter",
    }
    for name, said in cases.items():
        answer = lamo.LoadMotionPredictor.validate_inputs(name=name)
        assert isinstance(answer, str), name
        assert said in answer, name
        assert "\n" not in answer, name
        with pytest.raises(WeightsError):
            execute(lamo.LoadMotionPredictor, name=name)


def test_validation_accepts_a_good_file_and_notices_a_new_one(models):
    path = models / "mine.safetensors"
    save_predictor(path, small(), "toy")
    assert lamo.LoadMotionPredictor.validate_inputs(name="mine.safetensors") is True
    before = lamo.LoadMotionPredictor.fingerprint_inputs(name="mine.safetensors")
    save_predictor(path, small(order=2), "toy")
    assert lamo.LoadMotionPredictor.fingerprint_inputs(name="mine.safetensors") != before
    assert lamo.LoadMotionPredictor.fingerprint_inputs(name="gone.safetensors") == "missing"


def test_predictor_for_another_latent_space_is_refused(make_model, make_predictor):
    with pytest.raises(WeightsError) as caught:
        execute(
            lamo.LaMoGuidance,
            model=make_model("cogvideox"),
            predictor=make_predictor(space="wan2.1"),
            strength=1.0,
            active=0.8,
        )
    assert "'wan2.1'" in str(caught.value)
    assert "'cogvideox'" in str(caught.value)


def test_image_models_are_refused(make_predictor, wan, monkeypatch):
    import comfy.latent_formats

    image = wan.clone()
    image.add_object_patch("latent_format", comfy.latent_formats.Flux())
    with pytest.raises(ValueError, match="needs a video model"):
        execute(lamo.LaMoGuidance, model=image, predictor=make_predictor(), strength=1.0, active=0.8)


@pytest.mark.parametrize(("frames", "said"), [(1, "an image"), (2, "2 latent frames")])
def test_short_latents_are_refused_before_models_load(
    wan, make_predictor, sample, conditioning, monkeypatch, frames, said
):
    import comfy.sampler_helpers

    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=1.0, active=0.8)
    monkeypatch.setattr(
        comfy.sampler_helpers, "prepare_sampling", lambda *_, **__: pytest.fail("loaded models first")
    )
    with pytest.raises(ValueError) as caught:
        sample(model, conditioning(1), conditioning(2), shape=(1, 16, frames, 8, 8))
    assert said in str(caught.value)


def test_prompts_of_another_text_encoder_are_refused(wan, make_predictor, sample, conditioning):
    predictor = make_predictor()
    wide = lamo.MotionPredictor(
        name="wide",
        patcher=patching.manage(MotionFieldPredictor(16, 48, width=16, blocks=1)),
        info=predictor.info,
    )
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=wide, strength=1.0, active=0.8)
    with pytest.raises(ValueError, match="32 numbers per token"):
        sample(model, conditioning(1), conditioning(2))


def test_a_predictor_trained_without_prompts_fits_any_text_encoder(wan, make_predictor, sample, conditioning):
    network = MotionFieldPredictor(16, 48, width=16, blocks=1, prompted=False)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    free = lamo.MotionPredictor(name="free", patcher=patching.manage(network), info=make_predictor().info)
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=free, strength=25.0, active=0.8)
    prompts = conditioning(1), conditioning(2)
    assert not torch.equal(sample(model, *prompts), sample(wan, *prompts))


def test_nan_is_one_sentence(wan, make_predictor, sample, conditioning):
    broken = wan.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    (model,) = execute(lamo.LaMoGuidance, model=broken, predictor=make_predictor(), strength=1.0, active=0.8)
    with pytest.raises(ValueError, match="NaN or infinite values at step 3 of 4"):
        sample(model, conditioning(1), conditioning(2))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("with_images", [False, True])
def test_drift_heatmap_node(previews, batch, with_images):
    latent = torch.randn(batch, 16, 5, 6, 8)
    images = torch.rand(batch * 17, 48, 64, 3) if with_images else None
    overlay, maps, frame, _ = execute(
        MotionDriftHeatmap,
        latent={"samples": latent},
        lag=2,
        opacity=0.7,
        scale_mask=False,
        images=images,
    )
    expected, peak = drift_heatmap(latent, 2, skip=2)
    assert torch.allclose(maps, expected.flatten(0, 1))
    assert frame == int(peak[0]) * (4 if with_images else 1)
    assert overlay.shape == ((batch * 17 if with_images else batch * 3), 48, 64, 3)
    assert overlay.min() >= 0
    assert overlay.max() <= 1
    if with_images:
        unmapped = [
            n for n in range(17) if n > 8
        ]  # frames 9 on belong to the latent frames 3 and 4, which have no successor
        assert torch.equal(overlay[unmapped], images[unmapped])
        assert not torch.equal(overlay[8], images[8])
    assert list(previews.glob("*.webp"))


def test_mask_in_unit_range(previews):
    latent = 30 * torch.randn(2, 16, 5, 6, 8)
    _, maps, *_ = execute(MotionDriftHeatmap, latent={"samples": latent}, lag=1, opacity=1.0, scale_mask=True)
    assert maps.shape == (8, 6, 8)
    assert maps[:4].max() == pytest.approx(1)
    assert maps[4:].max() == pytest.approx(1)


def test_field_heatmap_node(previews, make_predictor, conditioning):
    import comfy.latent_formats

    predictor, latent, positive = make_predictor(order=2), torch.randn(2, 16, 5, 6, 8), conditioning(1)
    overlay, maps, _ = execute(
        MotionFieldHeatmap,
        latent={"samples": latent},
        predictor=predictor,
        lag=0,
        opacity=0.5,
        scale_mask=False,
        positive=positive,
    )
    inside = comfy.latent_formats.Wan21().process_in(latent)
    cond = positive[0][0][:, :4].mean(dim=1)
    expected, _ = field_heatmap(inside, predictor.network, cond, 2, skip=2)
    assert torch.allclose(maps, expected.flatten(0, 1), atol=1e-5)
    assert overlay.shape == (6, 48, 64, 3)


def test_heatmaps_refuse_what_has_no_motion(make_predictor):
    view = {"opacity": 0.5, "scale_mask": False}
    cases = [
        (torch.randn(1, 16, 8, 8), "image"),
        (torch.randn(1, 16, 1, 8, 8), "image"),
        (torch.randn(1, 16, 2, 8, 8), "2 latent frames"),
        (torch.full((1, 16, 5, 8, 8), float("nan")), "NaN"),
    ]
    for latent, said in cases:
        with pytest.raises(ValueError, match=said):
            execute(MotionDriftHeatmap, latent={"samples": latent}, lag=2, **view)
        with pytest.raises(ValueError, match=said):
            execute(MotionFieldHeatmap, latent={"samples": latent}, predictor=make_predictor(), lag=0, **view)
    with pytest.raises(ValueError, match="4 channels"):
        execute(
            MotionFieldHeatmap,
            latent={"samples": torch.randn(1, 4, 5, 8, 8)},
            predictor=make_predictor(),
            lag=0,
            **view,
        )
    with pytest.raises(ValueError, match="7 images"):
        execute(
            MotionDriftHeatmap,
            latent={"samples": torch.randn(2, 16, 5, 8, 8)},
            lag=2,
            images=torch.rand(7, 8, 8, 3),
            **view,
        )


def test_heatmaps_take_the_video_of_a_nested_latent(previews):
    from comfy.nested_tensor import NestedTensor

    video = torch.randn(1, 16, 5, 6, 8)
    nested = NestedTensor([video, torch.randn(1, 8, 10, 2)])
    _, maps, *_ = execute(
        MotionDriftHeatmap, latent={"samples": nested}, lag=2, opacity=0.5, scale_mask=False
    )
    assert torch.allclose(maps, drift_heatmap(video, 2, skip=2)[0][0])


def test_the_drift_heatmap_can_look_at_latents_as_the_model_samples_them(previews):
    latent = torch.randn(1, 16, 5, 6, 8)
    settings = {"latent": {"samples": latent}, "lag": 2, "opacity": 0.5, "scale_mask": False, "skip": 0}
    _, maps, *_ = execute(MotionDriftHeatmap, **settings, latent_space="wan2.1")
    inside = spaces.latent_format("wan2.1").process_in(latent)
    assert torch.allclose(maps, drift_heatmap(inside, 2)[0][0])
    assert not torch.allclose(maps, drift_heatmap(latent, 2)[0][0])


@pytest.mark.parametrize("full", [False, True])
def test_trace(previews, wan, make_predictor, sample, conditioning, full):
    arguments = {"strength": 0.05, "active": 0.5, "full_trace": full, "window": "steps"}
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), **arguments)
    for _ in range(2):  # only the last run is shown
        samples = sample(model, conditioning(1), conditioning(2))
    plot, table = execute(lamo.GuidanceTraceNode, model=model, latent={"samples": samples})
    assert plot.shape == (1, 1080, 960, 3)
    assert plot.std() > 0.01
    lines = [line.split(",") for line in table.splitlines()[1:]]
    assert [line[1] for line in lines] == (["0", "1", "2", "3"] if full else ["2", "3"])
    for line in lines[-2:]:
        assert float(line[7]) > 0
        if full:
            assert float(line[6]) < float(line[5])
        else:
            assert line[6] == ""


def test_the_trace_says_where_the_bound_acted(previews, wan, make_predictor, sample, conditioning):
    (model,) = execute(
        lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=25.0, active=0.8, share=0.25
    )
    samples = sample(model, conditioning(1), conditioning(2), steps=8)
    _, table = execute(lamo.GuidanceTraceNode, model=model, latent={"samples": samples})
    rows = [dict(zip(table.splitlines()[0].split(","), line.split(","))) for line in table.splitlines()[1:]]
    assert rows
    for row in rows:
        limit = 3 / (2 + 2 * 0.5)  # three pairs, chains of at most three frames: 2 + 2 cos(pi / 3)
        free = 25.0 * float(row["sigma"]) ** 2 / limit
        assert float(row["share"]) == pytest.approx(min(0.25, free), rel=1e-4)
        assert row["bounded"] == ("1" if free > 0.25 else "0")


@pytest.mark.parametrize("off", [{"share": 0.0}, {"strength": 0.0}])
def test_no_push_is_the_plain_model(wan, make_predictor, sample, conditioning, off):
    settings = {"strength": 25.0, "active": 0.8, **off}
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), **settings)
    prompts = conditioning(1), conditioning(2)
    assert torch.equal(sample(model, *prompts), sample(wan, *prompts))


def test_the_paper_s_mode_has_no_bound(wan, make_predictor):
    (model,) = execute(
        lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=9.0, active=0.8, mode="paper"
    )
    ((_, guidance),) = patching.corrections(model)
    assert (guidance.scale, guidance.bound) == (9.0, None)


def test_trace_of_two_guidance_nodes(previews, wan, make_predictor, sample, conditioning):
    model = wan
    for _ in range(2):
        (model,) = execute(
            lamo.LaMoGuidance, model=model, predictor=make_predictor(), strength=0.1, active=1.0, start=1.0
        )
    samples = sample(model, conditioning(1), conditioning(2), sampler="heun")
    _, table = execute(lamo.GuidanceTraceNode, model=model, latent={"samples": samples})
    assert {line.split(",")[0] for line in table.splitlines()[1:]} == {"lamo.1", "lamo.2"}
    assert len(table.splitlines()) == 1 + 2 * 7


def test_trace_without_guidance_or_without_a_run(wan, make_predictor):
    latent = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    with pytest.raises(ValueError, match="without LaMo Guidance"):
        execute(lamo.GuidanceTraceNode, model=wan, latent=latent)
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=1.0, active=0.5)
    with pytest.raises(ValueError, match="found nothing"):
        execute(lamo.GuidanceTraceNode, model=model, latent=latent)


def test_a_run_without_a_step_has_no_trace(previews, wan, make_predictor, sample, conditioning):
    (model,) = execute(lamo.LaMoGuidance, model=wan, predictor=make_predictor(), strength=1.0, active=0.8)
    prompts = conditioning(1), conditioning(2)
    first = sample(model, *prompts)
    _, shown = execute(lamo.GuidanceTraceNode, model=model, latent={"samples": first})
    assert (
        execute(lamo.GuidanceTraceNode, model=model, latent={"samples": first})[1] == shown
    )  # the sampler was not run again
    untouched = sample(model, *prompts, latent=torch.ones(1, 16, 5, 8, 8), denoise=0.0)
    with pytest.raises(ValueError, match="found nothing"):
        execute(lamo.GuidanceTraceNode, model=model, latent={"samples": untouched})
    again = sample(model, *prompts, seed=6)
    assert execute(lamo.GuidanceTraceNode, model=model, latent={"samples": again})[1] != shown


def test_a_missing_predictor_leads_to_the_graph_that_makes_one(tmp_path):
    sentence = lamo.LoadMotionPredictor.validate_inputs(name="absent.safetensors")
    assert "absent.safetensors is not in models/latent_physics" in sentence
    assert "first_predictor" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("fps", "said"), [(8.0, True), (16.0, False), (15.0, False), (None, False)])
def test_a_rate_that_the_model_does_not_have_is_said_where_it_is_guided(
    make_model, make_predictor, caplog, fps, said
):
    predictor = make_predictor(space="wan2.1")
    info = dataclasses.replace(predictor.info, recipe={"fps": fps})
    wired = dataclasses.replace(predictor, info=info)
    lamo.LaMoGuidance.execute(model=make_model("wide wan"), predictor=wired, strength=5.0, active=1.0)
    assert ("learned from clips of 8 frames per second" in caplog.text) == said
    assert ("NOTE: " in lamo._describe("mine", info)) == said
