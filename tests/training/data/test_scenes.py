"""What `cache` does with cuts between scenes, with clips of several shapes, and with several processes."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from latent_physics.training.commands.cache import main
from latent_physics.training.console import TrainingError
from latent_physics.training.data import reader, scenes
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import read_clip_info
from latent_physics.training.data.clips import Clips, DatasetError
from latent_physics.training.data.format import CacheConfig, format_of, sizes_of
from latent_physics.training.data.videos import decode, nearest_size, windows
from latent_physics.training.loop import processes
from PIL import Image

FIRST, SECOND = 10, 12
"""Frames of the two scenes of `film`."""


def film(path, lengths=(FIRST, SECOND), width=64, height=64):
    """Scenes of a picture each, that moves; each of another colour."""
    pictures = []
    for scene, length in enumerate(lengths):
        rng = np.random.default_rng(scene)
        coarse = Image.fromarray(rng.integers(0, 40, (4, 4, 3)).astype(np.uint8))
        colour = np.array([150, 20, 20] if scene % 2 else [0, 60, 160])
        base = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int) + colour
        moved = (np.roll(base, step, axis=1).clip(0, 255).astype(np.uint8) for step in range(length))
        pictures += [Image.fromarray(picture) for picture in moved]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    return path


def toy(*arguments):
    return main([*map(str, arguments), "--backbone", "toy", "--device", "cpu", "--no-name-captions"])


def found(clip, **settings):
    return [(w.index, w.start, len(w.frames), w.corrupt) for w in windows(clip, limit=0, **settings)]


# --- scenes -------------------------------------------------------------------------------------------------


def test_no_window_spans_a_cut_and_none_is_called_corrupt(tmp_path):
    clip, size = film(tmp_path / "film.webp"), {"frames": 9, "width": 16, "height": 16}
    whole, cut = found(clip, **size), found(clip, cuts=(FIRST,), **size)
    assert [window[1] for window in whole] == pytest.approx([0, 0.36])
    assert [window[1] for window in cut] == pytest.approx([0, 0.40])  # the second scene from its own start
    assert [window[3] for window in cut] == [0, 0]
    assert found(clip, cuts=(0,), **size) == whole


def test_a_cut_is_found_where_it_is_and_fast_motion_is_none(tmp_path):
    pytest.importorskip("scenedetect", reason="needs the extra `scenes`")
    assert scenes.scene_starts(decode(film(tmp_path / "film.webp"))) == (FIRST,)
    assert scenes.scene_starts(decode(film(tmp_path / "three.webp", (9, 9, 9)))) == (9, 18)
    assert scenes.scene_starts(decode(film(tmp_path / "one.webp", (20,)))) == ()
    assert scenes.scene_starts(iter(())) == ()


def test_the_command_asks_for_cuts_and_the_file_keeps_them(tmp_path, monkeypatch):
    film(tmp_path / "film.webp")
    monkeypatch.setattr(reader, "scene_starts", lambda frames: (FIRST,) if len(list(frames)) == 22 else ())
    for module in ("data.format", "data.scenes"):
        monkeypatch.setattr(sys.modules[f"latent_physics.training.{module}"], "check_scenes", lambda: None)
    settings = ["--videos", tmp_path / "film.webp", "--frames", 9, "--windows", 0, "--width", 32]
    settings += ["--height", 32]
    assert toy(*settings, "--scenes", "--out", tmp_path / "out") == 0
    infos = [read_clip_info(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [info.start for info in infos] == pytest.approx([0, 0.4])
    assert [list(info.cuts) for info in infos] == [[FIRST], [FIRST]]
    assert toy(*settings, "--out", tmp_path / "out") == 0  # without: encoded again
    infos = [read_clip_info(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [list(info.cuts) for info in infos] == [[], []]
    assert infos[1].start == pytest.approx(0.36)


def test_without_scenedetect_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"^scenes are found by scenedetect, which is not installed: pip"):
        format_of(CacheConfig(out=tmp_path, scenes=True))


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(16 / 9, (64, 32)), (1.5, (64, 32)), (1.4, (48, 48)), (1.1, (48, 48)), (0.5, (32, 64))],
)
def test_a_clip_gets_the_size_that_crops_least(aspect, size):
    sizes = [(64, 32), (48, 48), (32, 64)]
    assert nearest_size(aspect, sizes) == size

    def kept(width, height):
        return min(aspect, width / height) / max(aspect, width / height)

    assert max(sizes, key=lambda one: kept(*one)) == size


def test_a_folder_of_several_sizes_is_trained_on_in_buckets(tmp_path):
    for name, width, height in (("wide", 96, 48), ("tall", 48, 96), ("wide_2", 90, 50)):
        film(tmp_path / f"{name}.webp", (9 + len(name),), width, height)
    settings = ["--videos", *tmp_path.glob("*.webp"), "--frames", 9, "--width", 64, "--height", 32]
    assert toy(*settings, "--sizes", "32x64", "48x48", "--tokens", "--out", tmp_path / "out") == 0
    clips = TrainingClips(tmp_path / "out", batch=1, seed=0)
    assert {shape[2:]: len(members) for shape, members in clips.buckets.items()} == {(4, 8): 2, (8, 4): 1}
    with pytest.raises(DatasetError, match="one training needs one size"):
        Clips.from_folder(tmp_path / "out")


@pytest.mark.parametrize(("text", "sentence"), [("64", "write width x height"), ("64x40", "multiples of 16")])
def test_sizes_that_do_not_fit_are_said_at_once(tmp_path, text, sentence):
    with pytest.raises(TrainingError, match=sentence):
        format_of(CacheConfig(out=tmp_path, sizes=[text]))
    assert sizes_of(CacheConfig(out=tmp_path, sizes=["64x48"])) == [(64, 48)]


# --- processes ----------------------------------------------------------------------------------------------


def test_processes_share_the_clips_of_a_folder(tmp_path, monkeypatch, capsys):
    for seed in range(5):
        film(tmp_path / f"clip_{seed}.webp", (9 + seed,), 32, 32)
    (tmp_path / "broken.webp").write_bytes(b"no film")
    settings = ["--videos", *tmp_path.glob("*.webp"), "--frames", 9, "--width", 32, "--height", 32]
    assert toy(*settings, "--out", tmp_path / "alone") == 0
    written = []
    for number in range(3):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "3")
        before = {path.name for path in (tmp_path / "shared").glob("*.safetensors")}
        assert toy(*settings, "--out", tmp_path / "shared") == 0
        after = {path.name for path in (tmp_path / "shared").glob("*.safetensors")}
        written.append(after - before)
    assert "in process 3 of 3" in capsys.readouterr().err
    assert max(map(len, written)) < 5, "one process did it all"
    alone = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "shared").glob("*.safetensors")} == alone
    assert len(alone) == 5


def test_a_launch_is_read_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes.place_among() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes.place_among() == (3, 8)
