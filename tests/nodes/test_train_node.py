"""Train Motion Predictor: what it learns, what it writes, what it refuses."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
import comfy.utils
import folder_paths
from latent_physics.methods.lamo import pool_tokens
from latent_physics.nodes import files, lamo, patching, train

pytestmark = pytest.mark.comfy

TEXT = 32


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder for ComfyUI; previews go to a temporary folder too."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop(files.FOLDER, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files.register_folder()
    return tmp_path / "models" / files.FOLDER


def moving(clips=3, channels=16, frames=6, size=6):
    """Clips whose frames shift by one place per frame."""
    first = torch.randn(clips, channels, size, size, generator=torch.Generator().manual_seed(3))
    return torch.stack([first.roll(step, dims=-1) for step in range(frames)], dim=2)


def run(latent, positive=None, **changes):
    settings = {"latent_space": "toy", "name": "mine", "recipe": "toy", "order": 1, "lag": 1, "steps": 5, "minutes": 0.0}
    arguments = {**settings, "seed": 0, "batch": 4, "positive": positive, **changes}
    with torch.inference_mode():
        return train.TrainMotionPredictor.execute(latent={"samples": latent}, **arguments).args


def test_trains_saves_and_guides(models, wan, sample, conditioning):
    predictor, plot, info = run(moving(), conditioning(1))
    assert plot.ndim == 4
    assert plot.shape[3] == 3
    assert "saved as mine.safetensors" in info
    assert "3 clips" in info
    assert "unexplained" in info
    assert [path.name for path in models.iterdir()] == ["mine.safetensors"]
    assert "mine.safetensors" in files.list_files("motion_predictor")
    with torch.inference_mode():
        loaded, _ = lamo.LoadMotionPredictor.execute(name="mine.safetensors").args
        (model,) = lamo.LaMoGuidance.execute(model=wan, predictor=loaded, strength=5.0, active=1.0).args
        (same,) = lamo.LaMoGuidance.execute(model=wan, predictor=predictor, strength=5.0, active=1.0).args
    prompts = conditioning(1), conditioning(2)
    guided = sample(model, *prompts)
    assert not torch.equal(guided, sample(wan, *prompts))
    assert torch.equal(guided, sample(same, *prompts))


def test_it_is_the_training_of_the_command(models, conditioning):
    """The same data and settings by `train_predictor`, from latents in the sampler's scale: the same weights."""
    import dataclasses

    from latent_physics.training.dataset import Clips
    from latent_physics.training.predictor import RECIPES, train_predictor

    video, prompt = moving(), conditioning(1)
    predictor, _, _ = run(video, prompt, order=2)
    scaled = patching.latent_format("toy").process_in(video)
    assert not torch.allclose(scaled, video)
    cond = pool_tokens(prompt[0][0])[0]
    config = dataclasses.replace(RECIPES["toy"], order=2, lag=1, steps=5, batch=4, device="cpu")
    expected = train_predictor(Clips.from_tensors(list(scaled), [cond] * 3, "toy"), config)
    assert predictor.info.recipe["seed"] == 0
    for key, value in expected.state_dict().items():
        assert torch.equal(predictor.network.state_dict()[key], value), key


def test_never_replaces_a_file_and_may_save_none(models):
    video = moving(clips=1)
    for _ in range(3):
        _, _, info = run(video, steps=1, name="twice.safetensors")
    assert "twice_3.safetensors" in info
    assert "no clip was held out" in info
    predictor, _, info = run(video, steps=1, name="")
    assert "not saved" in info
    assert predictor.network.order == 1
    assert sorted(path.name for path in models.iterdir()) == [f"twice{n}.safetensors" for n in ("", "_2", "_3")]


def test_a_full_disk_is_told_before_training_and_loses_nothing_after_it(models, monkeypatch, caplog):
    usage = type("Usage", (), {"free": 1_000_000})
    with monkeypatch.context() as patch:
        patch.setattr(train.shutil, "disk_usage", lambda folder: usage)
        patch.setattr(train, "train", lambda training: pytest.fail("trained for nothing"))
        with pytest.raises(ValueError, match="has 1 MB free and needs 67"):
            run(moving())

    def forbidden(dir):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(train.tempfile, "TemporaryFile", forbidden)
        with pytest.raises(ValueError, match="Permission denied"):
            run(moving())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.os, "fsync", full)
    predictor, _, info = run(moving())
    assert "NOT SAVED" in info
    assert "No space left on device" in info
    assert "NOT SAVED" in caplog.text
    assert predictor.network(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4)
    assert not list(models.iterdir())


BAD_NAMES = ["../mine", "a/b", "a\\b", "/etc/x", ".hidden", "C:x", "a\nb", "x" * 101, "..", "a\x00", "NUL", "com1.safetensors"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(models, name):
    assert "file name" in train.TrainMotionPredictor.validate_inputs(name=name)
    with pytest.raises(ValueError, match="file name"):
        run(moving(), name=name)
    assert not list(models.iterdir())


def test_one_prompt_for_each_clip(conditioning):
    each = [conditioning(seed)[0] for seed in range(3)]
    pooled = train.pooled_prompts(each, 3)
    assert torch.equal(pooled, torch.stack([pool_tokens(tokens)[0] for tokens, _ in each]))
    assert torch.equal(train.pooled_prompts(each[:1], 3), pooled[:1].expand(3, -1))
    assert train.pooled_prompts(None, 3) is None
    with pytest.raises(ValueError, match="2 prompts for 3 clips"):
        train.pooled_prompts(each[:2], 3)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    masked = train.pooled_prompts([[each[0][0], {"attention_mask": mask}]], 1)
    assert torch.allclose(masked, each[0][0][:, :2].mean(dim=1))


def test_without_prompts_it_ignores_them(models):
    predictor, _, _ = run(moving(), steps=20)
    network, frames = predictor.network, torch.randn(2, 16, 4, 4)
    assert network.cond_dim == 4096
    assert torch.equal(network(frames, torch.randn(1, 4096)), network(frames))
    assert network(frames).abs().sum() > 0


def test_cancelling_writes_nothing(models, monkeypatch):
    calls = []

    def cancel(bar, value, total=None, preview=None):
        calls.append(value)
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(moving())
    assert calls == [200]
    assert not list(models.iterdir())


@pytest.mark.parametrize(
    ("latent", "changes", "sentence"),
    [
        (torch.zeros(1, 16, 8, 8), {}, "video latent"),
        (torch.zeros(2, 4, 6, 6, 6), {}, "4 channels"),
        (torch.full((2, 16, 6, 6, 6), torch.nan), {}, "not finite"),
        (torch.randn(2, 16, 2, 6, 6), {"lag": 4}, "2 latent frames"),
        (torch.zeros(2, 16, 6, 6, 6), {}, "do not move"),
    ],
)
def test_latents_that_cannot_be_learned_from(models, latent, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(latent, **changes)
    assert not list(models.iterdir())


def test_long_logs_are_averaged(models):
    rows = [{"step": float(step), "loss": 2.0 * step} for step in range(1, 1001)]

    class Done:
        log = type("Log", (), {"rows": rows})

    (panel,) = train.curves(Done)
    (curve,) = panel.curves
    assert len(curve.x) <= train.POINTS
    assert curve.y == pytest.approx([2 * x for x in curve.x])
