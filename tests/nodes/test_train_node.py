"""Train Motion Predictor: what it learns, what it writes, what it refuses."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from latent_physics.nodes.host import spaces
from latent_physics.nodes.host.latents import clips_of_folder, pooled_prompts
from latent_physics.nodes.views.traces import POINTS, curves
from latent_physics.training.commands.cache import main
from latent_physics.training.data import first
from PIL import Image

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import comfy.model_management
import comfy.utils
import folder_paths
from latent_physics.methods.lamo import pool_tokens
from latent_physics.nodes import lamo, toyworld, train
from latent_physics.nodes.host import files, video_folder

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
    settings = {
        "latent_space": "toy",
        "name": "mine",
        "recipe": "toy",
        "order": 1,
        "lag": 1,
        "steps": 5,
        "minutes": 0.0,
    }
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
    """The same data and settings by `train_predictor`, from latents in the sampler's scale: the same
    weights."""
    import dataclasses

    from latent_physics.training.data.clips import Clips
    from latent_physics.training.tasks.predictor import RECIPES, train_predictor

    video, prompt = moving(), conditioning(1)
    predictor, _, _ = run(video, prompt, order=2)
    scaled = spaces.latent_format("toy").process_in(video)
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
    assert sorted(path.name for path in models.iterdir()) == [
        f"twice{n}.safetensors" for n in ("", "_2", "_3")
    ]


def test_a_full_disk_is_told_before_training_and_loses_nothing_after_it(models, monkeypatch, caplog):
    usage = type("Usage", (), {"free": 1_000_000})
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda folder: usage)
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


BAD_NAMES = [
    "../mine",
    "a/b",
    "a\\b",
    "/etc/x",
    ".hidden",
    "C:x",
    "a\nb",
    "x" * 101,
    "..",
    "a\x00",
    "NUL",
    "com1.safetensors",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(models, name):
    assert "file name" in train.TrainMotionPredictor.validate_inputs(name=name)
    with pytest.raises(ValueError, match="file name"):
        run(moving(), name=name)
    assert not list(models.iterdir())


def test_one_prompt_for_each_clip(conditioning):
    each = [conditioning(seed)[0] for seed in range(3)]
    pooled = pooled_prompts(each, 3)
    assert torch.equal(pooled, torch.stack([pool_tokens(tokens)[0] for tokens, _ in each]))
    assert torch.equal(pooled_prompts(each[:1], 3), pooled[:1].expand(3, -1))
    assert pooled_prompts(None, 3) is None
    with pytest.raises(ValueError, match="2 prompts for 3 clips"):
        pooled_prompts(each[:2], 3)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    masked = pooled_prompts([[each[0][0], {"attention_mask": mask}]], 1)
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

    (panel,) = curves(Done)
    (curve,) = panel.curves
    assert len(curve.x) <= POINTS
    assert curve.y == pytest.approx([2 * x for x in curve.x])


# --- ComfyUI's own clips ------------------------------------------------------------------------------------


def test_comfyuis_own_clips_need_no_folder_and_no_prompt(models, monkeypatch):
    if not first.template_clips():
        pytest.skip("ComfyUI's template packages are not installed")
    few = [clip for clip in first.template_clips() if clip.name.startswith("video_wan2_2_5B")]
    monkeypatch.setattr(first, "template_clips", lambda: few)
    vae, clip = Vae(), Clip()
    predictor, _, info = run_folder(video_folder.FIRST, vae=vae, clip=clip, width=0, height=0, frames=0)
    assert len(vae.seen) == len(few) == 3
    assert {pixels.shape for pixels in vae.seen} == {(33, 64, 64, 3)}
    assert clip.prompts == []
    assert not predictor.network.prompted
    assert predictor.info.recipe["fps"] == pytest.approx(30, rel=1e-3)
    assert re.search(r"(?:Usable|NOT usable yet): .* usable below", info)


def test_without_the_packages_it_is_one_sentence_before_the_run(models, monkeypatch):
    monkeypatch.setattr(first, "template_folders", lambda: iter(()))
    sentence = train.TrainMotionPredictor.validate_inputs(name="", folder=video_folder.FIRST, vae=None)
    assert sentence.startswith("no clip of ComfyUI's template packages is installed: pip install")
    assert "\n" not in sentence


# --- a folder of videos -------------------------------------------------------------------------------------


@pytest.fixture
def input_folder(models, tmp_path, monkeypatch):
    """ComfyUI's input folder with `clips`: three short videos, a caption, and a broken one."""
    folder = tmp_path / "input" / "clips"
    folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    for seed in range(3):
        write_video(folder / f"ball_{seed}.webp", seed)
    (folder / "ball_0.txt").write_text("a large red ball")
    (folder / "broken.mp4").write_bytes(b"no film")
    return tmp_path / "input"


def write_video(path, seed, frames=9, size=32):
    first = np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8)
    images = [Image.fromarray(np.roll(first, 2 * step, axis=1)) for step in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=60, lossless=True)


class Vae:
    """Pixels pooled 4 x 8 x 8, repeated to 16 channels, as ComfyUI's video VAEs take and give them."""

    def __init__(self, channels=16):
        self.channels, self.seen = channels, []

    def encode(self, pixels):
        self.seen.append(pixels)
        video = pixels.permute(3, 0, 1, 2).mean(dim=0)[None, None]
        video = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2)
        return torch.nn.functional.avg_pool3d(video, (4, 8, 8)).repeat(1, self.channels, 1, 1, 1)


class Clip:
    """A prompt's length in every number."""

    def __init__(self):
        self.prompts = []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.prompts.append(text)
        return [[torch.full((1, 2, TEXT), float(len(text))), {}]]


def run_folder(name="clips", **changes):
    settings = {
        "latent_space": "toy",
        "name": "mine",
        "recipe": "toy",
        "order": 1,
        "lag": 1,
        "steps": 3,
        "minutes": 0.0,
    }
    small = {"seed": 0, "batch": 4, "vae": Vae(), "width": 32, "height": 32, "frames": 9}
    with torch.inference_mode():
        return train.TrainMotionPredictor.execute(folder=name, **{**settings, **small, **changes}).args


def test_a_folder_is_encoded_and_learned_from(input_folder, models, tmp_path):
    vae, clip = Vae(), Clip()
    predictor, _, info = run_folder(vae=vae, clip=clip)
    assert "3 clips of toy latents" in info
    assert "1 clips were skipped:\n  broken.mp4 cannot be decoded" in info
    assert [pixels.shape for pixels in vae.seen] == [(9, 32, 32, 3)] * 3
    assert sorted(clip.prompts) == ["a large red ball", "ball 1", "ball 2", "broken"]
    assert predictor.network.cond_dim == TEXT
    assert (models / "mine.safetensors").is_file()
    assert not list(tmp_path.glob("latent_physics_*")), "latents are left in the folder for temporary files"


def test_a_folder_is_the_batch_of_its_clips(input_folder, models, conditioning):
    """One clip, so that no order matters: by LATENT and by folder the same weights, but for the files' half
    precision."""
    for name in ("ball_1.webp", "ball_2.webp", "broken.mp4"):
        (input_folder / "clips" / name).unlink()
    vae = Vae()
    network = run_folder(vae=vae, positive=conditioning(1))[0].network
    latent = vae.encode(vae.seen[0])
    form = spaces.latent_format("toy")
    half = form.process_out(form.process_in(latent).half().float())
    expected = run(half, conditioning(1), steps=3)[0].network
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_without_prompts_a_folder_is_learned_without_them(input_folder):
    network = run_folder(steps=5)[0].network
    frames = torch.randn(2, 16, 4, 4)
    assert torch.equal(network(frames, torch.randn(1, 4096)), network(frames))


def test_the_toy_world_encodes_as_the_command_does(input_folder, tmp_path):
    """ComfyUI's VAE and CLIP against those of `latent-physics cache`, on the same videos."""
    from latent_physics.training.data.clips import Clips

    with torch.inference_mode():
        _, clip, vae = toyworld.LoadToyWorld.execute().args
        cut = video_folder.Cut(width=32, height=32, frames=9)
        clips, skipped = clips_of_folder("clips", "toy", vae, clip, None, cut, tmp_path / "scratch")
    assert len(skipped) == 1
    size = ["--width", "32", "--height", "32", "--frames", "9", "--device", "cpu", "--backbone", "toy"]
    assert main(["--videos", str(input_folder / "clips"), "--out", str(tmp_path / "cache"), *size]) == 0
    expected = Clips.from_folder(tmp_path / "cache")
    assert clips.names == expected.names
    torch.testing.assert_close(clips.conds, expected.conds, rtol=2e-3, atol=2e-3)
    for index in range(3):
        torch.testing.assert_close(clips.latent(index), expected.latent(index), rtol=1e-2, atol=1e-2)


BAD_FOLDERS = [
    *(
        "/etc",
        "..",
        "../clips",
        "clips/../..",
        "./clips",
        "clips//x",
        "clips/",
        "C:clips",
        "C:/x",
        "\\\\host\\x",
        "clips\\..",
    ),
    *("clips\x00", ".hidden", "clips /x", "clips/.. ", "clips..."),
]


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_folders_that_lead_elsewhere_are_refused(input_folder, name):
    sentence = train.TrainMotionPredictor.validate_inputs(name="", folder=name, vae=None)
    assert "cannot be the video folder" in sentence
    assert "\n" not in sentence
    with pytest.raises(ValueError, match="cannot be the video folder"):
        run_folder(name)


@pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows")
def test_links_that_leave_the_input_folder_are_not_followed(input_folder, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    write_video(away / "secret.webp", 7)
    (away / "secret.txt").write_text("secret words")
    (input_folder / "linked").symlink_to(away)
    (input_folder / "round").symlink_to(input_folder / "round")
    for name in ("linked", "round"):
        with pytest.raises(ValueError, match="leads out of ComfyUI's input folder by a link"):
            video_folder.find_folder(name)
    clips = input_folder / "clips"
    (clips / "deeper").symlink_to(away)
    (clips / "film.webp").symlink_to(away / "secret.webp")
    (clips / "ball_1.txt").symlink_to(away / "secret.txt")
    (clips / "frames").mkdir()
    for number in range(9):
        Image.new("RGB", (32, 32)).save(clips / "frames" / f"{number}.png")
    (clips / "frames" / "3.png").unlink()
    (clips / "frames" / "3.png").symlink_to(away / "secret.webp")
    clip = Clip()
    _, _, info = run_folder(clip=clip)
    assert sorted(clip.prompts) == ["a large red ball", "ball 2", "broken"]
    for name, stray in (("film.webp", "film.webp"), ("ball_1.webp", "ball_1.txt"), ("frames", "3.png")):
        assert f"{name} was left out: {stray} is a link that leads out" in info
    assert "linked" not in video_folder.list_folders()
    (input_folder / "again").symlink_to(clips)  # stays inside
    assert video_folder.find_folder("again")


def test_the_menu_lists_folders_that_hold_clips(input_folder):
    for name in ("empty", "deep/er", ".hidden", "pictures", "notes", "one"):
        (input_folder / name).mkdir(parents=True)
    write_video(input_folder / "deep" / "er" / "a.gif", 1)
    write_video(input_folder / ".hidden" / "a.webp", 1)
    for name in ("pictures/1.png", "pictures/2.png", "one/1.png", "1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(input_folder / name)
    (input_folder / "notes" / "a.txt").write_text("x")
    own = "ComfyUI's own clips"
    assert video_folder.list_folders() == ["none", own, "clips", "deep", "deep/er", "pictures"]


def test_exactly_one_source_is_asked_for_before_anything_runs(input_folder):
    """As ComfyUI calls it: an input whose wire is still to be computed is None, one without a wire is not
    there."""
    check = train.TrainMotionPredictor.validate_inputs
    assert check(name="mine", latent=None) is True
    assert check(name="mine", folder="none", latent=None, vae=None) is True
    assert check(name="mine", folder="clips", vae=None) is True
    assert check(name="mine", folder=None, vae=None) is True
    assert check(name=None, latent=None) is True
    assert "nothing to learn from" in check(name="mine", folder="none")
    assert "nothing to learn from" in check(name="mine", vae=None)
    assert "two things to learn from" in check(name="mine", folder="clips", latent=None, vae=None)
    assert "wire the vae" in check(name="mine", folder="clips")
    assert "has no folder 'gone'" in check(name="mine", folder="gone", vae=None)
    for changes, sentence in [
        ({"latent": {"samples": moving()}}, "two things"),
        ({"name": "none"}, "nothing to learn"),
        ({"vae": None}, "wire the vae"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            run_folder(**changes) if "name" not in changes else run_folder("none")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clip": Clip(), "positive": [[torch.ones(1, 2, TEXT), {}]]}, "two sources of prompts"),
        ({"vae": Vae(channels=4)}, "4 channels"),
        (
            {"frames": 33},
            "no clip in clips can be used; the first: .* 9 frames, 33 are needed|cannot be decoded",
        ),
        ({"frames": 8}, "a multiple of 4 plus 1"),
        ({"width": 40}, "a multiple of 16"),
    ],
)
def test_folders_that_cannot_be_learned_from_are_one_sentence(input_folder, models, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        run_folder(**changes)
    assert "\n" not in str(caught.value)
    assert not list(models.iterdir())


def test_a_changed_folder_is_trained_on_again(input_folder):
    mark = train.TrainMotionPredictor.fingerprint_inputs
    before = mark(folder="clips", latent=None, name="mine")
    assert before == mark(folder="clips")
    (input_folder / "clips" / "ball_1.txt").write_text("a caption")
    after = mark(folder="clips")
    assert after != before
    write_video(input_folder / "clips" / "ball_9.webp", 9)
    assert mark(folder="clips") != after
    assert mark(folder="none", latent=None) == mark(latent=None) == ""
    assert mark(folder="../x") == mark(folder="gone") == "unreadable"


def test_cancelling_while_encoding_ends_it(input_folder, models, tmp_path):
    class Cancelled(Vae):
        def encode(self, pixels):
            comfy.model_management.interrupt_current_processing(True)
            return super().encode(pixels)

    vae = Cancelled()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_folder(vae=vae)
    assert len(vae.seen) == 1
    assert not comfy.model_management.processing_interrupted()
    assert not list(models.iterdir())
    assert not list(tmp_path.glob("latent_physics_*"))
