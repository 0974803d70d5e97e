"""The cache command: what is in a file, what a second run does, and what survives broken clips, kills and
full disks."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_physics.methods.weights import WeightsError, load_weights, read_info, save_weights
from latent_physics.training.backbones.load import TOY_WEIGHTS, load_backbone
from latent_physics.training.commands.cache import main
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data import cache, jobs, loaders
from latent_physics.training.data.cache import cache_clips
from latent_physics.training.data.clip import KIND, DatasetError, Entry, read_clip
from latent_physics.training.data.clips import Clips
from latent_physics.training.data.format import CacheConfig, format_of
from latent_physics.training.data.report import summarise
from latent_physics.training.data.videos import find_clips, template_clips, windows
from PIL import Image

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "backbones" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

WIDTH, HEIGHT, FRAMES = 32, 16, 9


def pictures(seed: int, count: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)


def write_clip(path: Path, seed: int, count: int = FRAMES) -> np.ndarray:
    """A lossless animation, so that what is encoded can be compared exactly."""
    frames = pictures(seed, count)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, lossless=True)
    return frames


@pytest.fixture
def videos(tmp_path) -> Path:
    """Four clips; the first has a caption."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(4):
        write_clip(folder / f"clip_{seed}.webp", seed)
    (folder / "clip_0.txt").write_text("a red ball falls")
    return folder


class Encoder:
    """A stand-in backbone: pixels pooled 4x8x8 as the latent, a prompt's letters as its tokens. Counts its
    calls."""

    latent_space = "toy"

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.clips = 0

    def embed_prompts(self, prompts):
        self.prompts += prompts
        mask = torch.zeros(len(prompts), 12, dtype=torch.bool)
        tokens = torch.full((len(prompts), 12, 3), 99.0)  # padding must not leak into the mean
        for row, prompt in enumerate(prompts):
            for place, letter in enumerate(prompt[:12]):
                tokens[row, place] = torch.tensor([ord(letter), place, 1.0])
                mask[row, place] = True
        return tokens, mask

    def encode_video(self, video):
        self.clips += 1
        frames = torch.cat(
            [video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2
        )  # frame 0 stands alone, then 4 by 4
        return torch.nn.functional.avg_pool3d(frames, (4, 8, 8))


def settings(videos: Path, **changes) -> CacheConfig:
    config = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "backbone": "toy", "store": "float32"}
    return CacheConfig(videos=[videos], out=videos.parent / "cache", **{**config, **changes})


def run(config: CacheConfig, encoder: Encoder | None = None, **more):
    encoder = encoder or Encoder()
    line = ProgressLine("cache", io.StringIO())
    report = cache_clips(
        find_clips(config.videos), config, lambda: encoder, lambda: encoder, progress=line, **more
    )
    return report, encoder, line.stream.getvalue()


def nothing_to_do():
    raise AssertionError("nothing should be loaded")


def test_a_file_holds_latent_prompt_and_origin(videos):
    report, encoder, said = run(settings(videos, tokens=True))
    assert len(report.written) == 4
    path = next(path for path in report.written if path.name.startswith("clip_0"))
    clip = read_clip(path)
    video = torch.from_numpy(pictures(0)).permute(3, 0, 1, 2)[None].float() / 255
    torch.testing.assert_close(clip.latent, encoder.encode_video(video)[0], rtol=0, atol=0)
    letters = "a red ball f"
    expected = torch.tensor([[ord(letter), place, 1.0] for place, letter in enumerate(letters)])
    torch.testing.assert_close(clip.tokens, expected)
    torch.testing.assert_close(clip.cond, expected.mean(dim=0))
    assert clip.latent_space == "toy"
    info = clip.info
    assert (info.source, info.caption, info.caption_from) == ("clip_0.webp", "a red ball falls", "file")
    assert (info.frames, info.width, info.height, info.fps, info.window, info.last) == (
        FRAMES,
        WIDTH,
        HEIGHT,
        10,
        0,
        True,
    )
    other = read_clip(next(path for path in report.written if path.name.startswith("clip_2")))
    assert (other.info.caption, other.info.caption_from) == ("clip 2", "name")
    assert "3 of 4 clips have no .txt caption" in said
    assert str(videos) not in json.dumps(
        read_info(path).recipe
    )  # nobody's folders in a file that may be shared


def test_names_need_not_be_captions(videos):
    report, encoder, _ = run(settings(videos, name_captions=False, limit=None), encoder=Empty())
    assert sorted(encoder.prompts) == ["", "a red ball falls"]
    assert {read_clip(path).info.caption_from for path in report.written} == {"file", "none"}


class Empty(Encoder):
    def embed_prompts(self, prompts):
        tokens, mask = super().embed_prompts([prompt or "." for prompt in prompts])
        self.prompts = self.prompts[: -len(prompts)] + list(prompts)
        return tokens, mask


def test_a_second_run_does_nothing(videos):
    config = settings(videos)
    report, _, _ = run(config)
    before = {path: path.stat().st_mtime_ns for path in report.written}
    again = cache_clips(
        find_clips([videos]), config, nothing_to_do, nothing_to_do, progress=ProgressLine("", io.StringIO())
    )
    assert again.finished_before == 4
    assert again.written == []
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_only_what_changed_is_encoded_again(videos):
    report, _, _ = run(settings(videos))
    (videos / "clip_1.txt").write_text("a new caption")
    write_clip(videos / "clip_2.webp", 20)
    damaged = next(path for path in report.written if path.name.startswith("clip_3"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    again, encoder, _ = run(settings(videos))
    assert encoder.clips == 3
    assert again.finished_before == 1
    assert read_clip(damaged).latent.shape[0] == 3
    resized, _, _ = run(settings(videos, width=16))
    assert len(resized.written) == 4
    shapes = {read_clip(path).latent.shape for path in (videos.parent / "cache").glob("clip_[013]*")}
    assert shapes == {(3, 3, 2, 2)}


def test_new_toy_encoders_encode_everything_again(videos, monkeypatch, tmp_path):
    """The pack's own weights change with its version, under the same names."""
    from latent_physics.training.backbones import load

    run(settings(videos))
    weights = tmp_path / "weights"
    shutil.copytree(TOY_WEIGHTS, weights)
    monkeypatch.setattr(load, "TOY_WEIGHTS", weights)
    assert run(settings(videos))[0].finished_before == 4
    (weights / "toy_vae.safetensors").write_bytes(b"another one")
    before = Clips.from_folder(settings(videos).out).fingerprint()
    assert len(run(settings(videos))[0].written) == 4
    assert Clips.from_folder(settings(videos).out).fingerprint() != before, (
        "a resumed training would not notice"
    )


def test_a_clip_that_breaks_the_process_costs_only_itself(videos):
    class Dies(Encoder):
        def encode_video(self, video):
            if self.clips == 2:
                raise KeyboardInterrupt
            return super().encode_video(video)

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(settings(videos), encoder=Dies())
    assert threading.active_count() == threads  # the reading threads are gone
    folder = videos.parent / "cache"
    assert len(list(folder.glob("*.safetensors"))) == 2
    again, encoder, _ = run(settings(videos))
    assert (encoder.clips, again.finished_before) == (2, 2)
    assert not list(folder.glob(".*"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is a POSIX thing")
def test_kill_9_while_writing_leaves_no_half_file(videos):
    """The process dies between writing the temporary file and renaming it, at the second clip."""
    config = settings(videos)
    script = textwrap.dedent(
        f"""
        import importlib.util, os, signal
        spec = importlib.util.spec_from_file_location("mine", {__file__!r})
        mine = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mine)
        replace, seen = os.replace, []
        def dies(*paths):
            seen.append(paths)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
        os.replace = dies
        mine.run(mine.settings(mine.Path({str(videos)!r})))
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(config.out.glob("*.safetensors"))) == 1
    (left,) = config.out.glob(".*.tmp")
    os.utime(left, (0, 0))
    again, encoder, _ = run(config)
    assert (again.finished_before, encoder.clips) == (1, 3)
    assert not left.exists()


def test_stop_ends_after_the_clip_at_hand(videos):
    stop = StopRequest()

    class Stops(Encoder):
        def encode_video(self, video):
            stop.asked = True
            return super().encode_video(video)

    report, _, _ = run(settings(videos), encoder=Stops(), stop=stop)
    assert report.stopped
    assert len(report.written) == 1
    assert run(settings(videos))[0].finished_before == 1


def test_broken_clips_are_reported_and_skipped(videos):
    (videos / "broken.mp4").write_bytes(b"no film")
    write_clip(videos / "short.webp", 9, count=5)
    (videos / "clip_3.txt").write_bytes(b"\xff\xfe")
    report, _, said = run(settings(videos))
    assert len(report.written) == 3
    reasons = {path.name: reason for path, reason in report.skipped}
    assert set(reasons) == {"broken.mp4", "short.webp", "clip_3.webp"}
    assert "cannot be decoded" in reasons["broken.mp4"]
    assert "5 frames, 9 are needed" in reasons["short.webp"]
    assert "skipped: broken.mp4" in said
    skipped = videos.parent / "cache" / "skipped.txt"
    assert len(skipped.read_text().splitlines()) == 3
    for name in ("broken.mp4", "short.webp", "clip_3.txt"):
        (videos / name).unlink()
    run(settings(videos))
    assert not skipped.exists()


def test_latents_that_are_not_finite_are_skipped(videos):
    class Overflows(Encoder):
        def encode_video(self, video):
            return super().encode_video(video) * (1e9 if self.clips == 1 else 1)

    report, _, _ = run(settings(videos, store="float16"), encoder=Overflows())
    assert len(report.written) == 3
    assert "not finite in float16" in report.skipped[0][1]


def test_the_same_content_is_taken_once(videos):
    shutil.copy(videos / "clip_1.webp", videos / "copy.webp")
    report, _, _ = run(settings(videos))
    assert len(report.written) == 4
    assert [(a.name, b.name) for a, b in report.same] == [("copy.webp", "clip_1.webp")]


def test_renaming_a_captioned_video_changes_nothing(videos):
    run(settings(videos))
    for suffix in (".webp", ".txt"):
        (videos / f"clip_0{suffix}").rename(videos / f"new_name{suffix}")
    again, _, _ = run(settings(videos))
    assert (again.finished_before, again.written) == (4, [])
    (videos / "new_name.txt").write_text("another caption")
    again, _, _ = run(settings(videos))
    assert [path.name[:7] for path in again.written] == [
        "clip_0-"
    ]  # in place, so that no copy is left to train on
    assert read_clip(again.written[0]).info.source == "new_name.webp"


def test_windows_of_a_long_clip(videos):
    frames = write_clip(videos / "long.webp", 7, count=30)
    config = settings(videos, windows=0)
    report, _, _ = run(config)
    cut = sorted(path for path in report.written if path.name.startswith("long"))
    assert [read_clip(path).info.window for path in cut] == [0, 1, 2]
    assert [read_clip(path).info.last for path in cut] == [False, False, True]
    video = torch.from_numpy(frames[18:27]).permute(3, 0, 1, 2)[None].float() / 255
    torch.testing.assert_close(read_clip(cut[2]).latent, Encoder().encode_video(video)[0])
    clips = Clips.from_folder(config.out)
    assert len({clips.groups[clips.names.index(path.name)] for path in cut}) == 1
    cut[1].unlink()  # one window lost: it alone is encoded again
    _, encoder, _ = run(config)
    assert encoder.clips == 1
    assert cut[1].exists()
    run(settings(videos, windows=1))
    assert [path.exists() for path in cut] == [True, False, False]


def test_a_cached_window_can_be_cut_again(videos):
    write_clip(videos / "long.webp", 7, count=40)
    report, encoder, _ = run(settings(videos, windows=0, fps=5))
    cut = sorted(path for path in report.written if path.name.startswith("long"))
    assert len(cut) == 2
    info = read_clip(cut[1]).info
    assert (info.fps, info.fps_limit, info.start) == (5, 5, 1.8)  # every other of 10 frames a second
    size = {"frames": info.frames, "width": info.width, "height": info.height}
    again = list(windows(videos / "long.webp", **size, fps=info.fps_limit, limit=0))[info.window]
    video = torch.from_numpy(again.frames).permute(3, 0, 1, 2)[None].float() / 255
    torch.testing.assert_close(read_clip(cut[1]).latent, encoder.encode_video(video)[0])


def test_disk_full_is_one_sentence_and_loses_nothing(videos):
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX thing")
    config = settings(videos, limit=2)
    run(CacheConfig(**{**config.__dict__, "videos": [videos / "clip_0.webp"]}))
    finished = list(config.out.glob("*.safetensors"))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (500, old[1])
    )  # every file is cut off at 500 bytes, as on a full disk
    try:
        with pytest.raises(
            TrainingError, match=r"Could not write .*safetensors: .*; the clips finished so far are safe"
        ):
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(config.out.iterdir()) == finished  # no half file, no temporary file
    assert read_clip(finished[0]).info.source == "clip_0.webp"
    assert run(config)[0].finished_before == 1


def test_a_disk_that_will_be_full_is_told_early(videos, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    assert run(settings(videos))[2].count("warning: the clips still to come need") == 1


def test_a_folder_keeps_to_one_latent_space(videos):
    run(settings(videos))
    (videos / "clip_1.txt").write_text("new")

    class Other(Encoder):
        latent_space = "wan2.1"

    with pytest.raises(TrainingError, match=r"holds clips of toy, this backbone makes wan2\.1"):
        run(settings(videos), encoder=Other())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, r"width is 100; it must be a multiple of 16, for example 96\."),
        ({"height": 0}, r"height is 0; it must be a multiple of 16, for example 16\."),
        ({"frames": 48}, r"frames is 48; it must be a multiple of 4 plus 1, for example 49\."),
        ({"frames": 1}, "frames is 1; .* for example 5"),
        ({"fps": -1}, "fps is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_settings_that_do_not_fit_say_what_would(videos, changes, message):
    with pytest.raises(TrainingError, match=message):
        format_of(settings(videos, **changes))


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_the_command_with_real_architectures(videos, family, tmp_path, capsys):
    source = tiny.diffusers_folder(tmp_path / family, family)
    (videos / "broken.mp4").write_bytes(b"no film")
    arguments = [
        "--videos",
        str(videos),
        "--out",
        str(tmp_path / "out"),
        "--backbone",
        family,
        "--source",
        str(source),
    ]
    arguments += [
        "--width",
        str(WIDTH),
        "--height",
        str(HEIGHT),
        "--frames",
        str(FRAMES),
        "--fps",
        "0",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--tokens"]) == 0
    out = capsys.readouterr()
    assert "4 files written" in out.out
    assert "broken.mp4 cannot be decoded" in out.out
    backbone = load_backbone(family, source, parts=("vae", "text"))
    path = next((tmp_path / "out").glob("clip_0*"))
    clip = read_clip(path)
    video = torch.from_numpy(pictures(0)).permute(3, 0, 1, 2)[None].float() / 255
    torch.testing.assert_close(clip.latent.float(), backbone.encode_video(video)[0], rtol=1e-3, atol=1e-3)
    tokens, mask = backbone.embed_prompts(["a red ball falls"])
    torch.testing.assert_close(clip.cond.float(), tokens[0][mask[0]].mean(dim=0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(clip.tokens.float(), tokens[0][mask[0]], rtol=1e-3, atol=1e-3)
    assert clip.latent_space == {"wan": "wan2.1", "cogvideox": "cogvideox"}[family]
    clips = Clips.from_folder(tmp_path / "out")
    assert (len(clips), clips.channels, clips.size, clips.cond_dim) == (4, 16, (2, 4), 32)
    assert main([*arguments, "--tokens"]) == 0
    assert "0 files written" in capsys.readouterr().out


def test_cogvideox_files_need_the_transformer_that_says_which_scale(videos, tmp_path, monkeypatch):
    """The VAE file of 2B and 5B is one and the same; a transformer's 48 heads tell 5B."""
    from latent_physics.training.backbones import load
    from safetensors.torch import save_file

    def stand_in(model_type, config, state, path, dtype):
        return torch.nn.Identity()

    monkeypatch.setattr(load, "_fill", stand_in)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("vae", "text", "dit")}
    save_file({"x": torch.zeros(1)}, files["vae"])
    for heads, space, scale in ((30, "cogvideox", 1.15258426), (48, "cogvideox1.5", 0.7)):
        save_file({"patch_embed.proj.weight": torch.zeros(heads * 64, 16, 2, 2)}, files["dit"])
        _, load_vae = loaders.loaders(settings(videos, backbone="cogvideox", device="cpu", **files))
        vae = load_vae()
        assert vae.latent_space == space
        assert vae.normalise(torch.ones(1)).item() == pytest.approx(scale)
    keys = [
        jobs.encoders_of(settings(videos, backbone="cogvideox", **{**files, "dit": tmp_path / name}))
        for name in "ab"
    ]
    assert keys[0] != keys[1], "another model's latents would be taken for finished"
    with pytest.raises(TrainingError, match=r"give the model's file as dit, too\.$"):
        loaders.loaders(settings(videos, backbone="cogvideox", **{**files, "dit": None}))
    with pytest.raises(TrainingError, match="a source says itself"):
        loaders.loaders(settings(videos, backbone="cogvideox", source="x", dit=files["dit"]))


def test_template_clips_through_a_tiny_vae(tmp_path):
    if not template_clips():
        pytest.skip("ComfyUI's template packages are not installed")
    source = tiny.diffusers_folder(tmp_path / "wan", "wan")
    arguments = [
        "--templates",
        "*wan2*t2v*",
        "--limit",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--source",
        str(source),
    ]
    assert main([*arguments, "--width", "32", "--height", "32", "--frames", "17", "--device", "cpu"]) == 0
    clips = Clips.from_folder(tmp_path / "out")
    assert len(clips) == 3
    assert clips.lengths == [5, 5, 5]
    assert all(clips.latent(clip).diff(dim=1).abs().mean() > 1e-3 for clip in range(3))  # they move
    assert main(["--templates", "no-such-*", "--out", str(tmp_path / "out")]) == 1


def test_bad_input_is_one_line_and_status_1(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    cases = {
        "There is no clip in": ["--videos", str(tmp_path / "empty")],
        "does not exist": ["--videos", str(tmp_path / "nowhere")],
        "width is 30": ["--videos", str(tmp_path / "empty"), "--width", "30"],
        "vae and text go together": ["--videos", str(tmp_path), "--vae", "x.safetensors"],
        "no_such could not be loaded": [
            "--videos",
            str(tmp_path),
            "--source",
            str(tmp_path / "no_such"),
            "--device",
            "cpu",
        ],
        "device is 'abacus'": ["--videos", str(tmp_path), "--device", "abacus"],
        "is encoded by its VAE's file": ["--videos", str(tmp_path), "--model", "ltx2.3"],
    }
    for message, arguments in cases.items():
        if message not in ("There is no clip in", "does not exist", "width is 30"):
            write_clip(tmp_path / "clip.webp", 1)
        assert main(["--out", str(tmp_path / "out"), *arguments]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    (tmp_path / "empty" / "broken.mp4").write_bytes(b"x")
    config = CacheConfig(out=tmp_path / "out", videos=[tmp_path / "empty"])
    report, _, _ = run(config)
    with pytest.raises(
        TrainingError, match=r"none of the 1 clips could be used; the first: broken\.mp4 cannot be decoded"
    ):
        summarise(report, config)
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "needs tyro, which is not installed: pip install tyro" in capsys.readouterr().err


def test_reading_back_refuses_what_does_not_fit(videos):
    config = settings(videos)
    with pytest.raises(DatasetError, match="is not a folder; make it with"):
        Clips.from_folder(config.out)
    config.out.mkdir()
    with pytest.raises(DatasetError, match="holds no cached clip"):
        Clips.from_folder(config.out)
    report, _, _ = run(config)
    whole = report.written[0].read_bytes()
    report.written[0].write_bytes(whole[:-4])
    with pytest.raises(DatasetError, match="run the cache command again"):
        Clips.from_folder(config.out)
    report.written[0].write_bytes(whole)
    small, _, _ = run(
        CacheConfig(**{**settings(videos, width=16).__dict__, "videos": [videos / "clip_0.webp"]})
    )
    assert len(small.written) == 1
    with pytest.raises(DatasetError, match="one training needs one size"):
        Clips.from_folder(config.out)
    with pytest.raises(WeightsError, match="does not exist"):
        read_clip(config.out / "gone.safetensors")


@pytest.mark.parametrize(
    ("recipe", "config", "words"),
    [
        ({"key": None}, {}, "its metadata lacks key"),
        ({"colour": "red"}, {}, "its metadata has an unknown colour"),
        (
            {"fps": None, "start": None, "mood": 1},
            {},
            "its metadata lacks fps, start and has an unknown mood",
        ),
        ({}, {"shape": None}, "its metadata lacks shape"),
    ],
)
def test_clip_of_another_version_is_one_sentence_and_cached_again(videos, recipe, config, words):
    """None takes a field away."""
    report, _, _ = run(settings(videos))
    path = report.written[1]
    tensors, info = load_weights(path, KIND)
    source = info.recipe["source"]
    changed = {
        part: {key: value for key, value in {**getattr(info, part), **change}.items() if value is not None}
        for part, change in {"recipe": recipe, "config": config}.items()
    }
    save_weights(path, tensors, dataclasses.replace(info, **changed))
    name = re.escape(path.name)
    sentence = (
        f"^{name} was cached by another version \\({words}\\); run the cache command again: [a-z ]+\\.$"
    )
    for read in (lambda: read_clip(path), lambda: Clips.from_folder(path.parent)):
        with pytest.raises(DatasetError, match=sentence):
            read()
    again, _, _ = run(settings(videos))
    assert again.written == [path]
    assert read_clip(path).info.source == source


def test_clip_without_a_tensor_is_one_sentence(videos):
    report, _, _ = run(settings(videos))
    tensors, info = load_weights(report.written[0], KIND)
    save_weights(report.written[0], {"cond": tensors["cond"]}, info)
    with pytest.raises(DatasetError, match=r"holds no latent; run the cache command again"):
        read_clip(report.written[0])


def test_lazy_and_in_memory_reading_agree(videos):
    config = settings(videos)
    run(config)
    memory, lazy = Clips.from_folder(config.out), Clips.from_folder(config.out, memory_gb=0)
    assert isinstance(lazy.latents[0], Entry)
    assert isinstance(memory.latents[0], torch.Tensor)
    for clip in range(4):
        assert torch.equal(memory.latent(clip), lazy.latent(clip))
        assert torch.equal(memory.frames(clip, [2, 0]), lazy.frames(clip, [2, 0]))
    assert memory.fingerprint() == lazy.fingerprint()
    os.remove(config.out / lazy.names[1])
    with pytest.raises(DatasetError, match="can no longer be read"):
        lazy.latent(1)
