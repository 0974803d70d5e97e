"""Reading clips: every container, captions, windows, thinning, and what a broken file says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.encoders.need import SAMPLED_BYTES
from latent_physics.methods.video_models import EVERY_4
from latent_physics.training.data import videos
from latent_physics.training.data.videos import VideoError, windows
from PIL import Image


def pictures(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness says their number: 8 grey levels per frame, a lighter half above, `T H W 3`."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (np.arange(count) * 8 % 200).astype(np.uint8)[:, None, None, None]
    frames[:, : height // 2] += 50
    return frames


def write_film(path: Path, frames: np.ndarray, fps: int = 8, codec: str = "mpeg4", turn: int = 0) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        if turn:
            stream.set_display_rotation(turn)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, frames: np.ndarray, duration: int = 125) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    extra = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, **extra)
    return path


def write_folder(path: Path, frames: np.ndarray) -> Path:
    path.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{number}.png")
    return path


MAKERS = {
    "a.mp4": write_film,
    "a.mov": write_film,
    "a.mkv": write_film,
    "a.webm": lambda path, frames: write_film(path, frames, codec="libvpx-vp9"),
    "a.gif": write_animation,
    "a.webp": write_animation,
    "a": write_folder,
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_container_gives_its_frames_in_order(tmp_path, name):
    frames = pictures(12)
    clip = MAKERS[name](tmp_path / name, frames)
    (window,) = windows(clip, frames=9, width=64, height=48)
    assert window.frames.shape == (9, 48, 64, 3)
    assert window.frames.dtype == np.uint8
    assert abs(window.frames.astype(int) - frames[:9].astype(int)).mean() < 4  # lossy codecs
    assert window.fps == pytest.approx(
        0 if clip.is_dir() else 8, rel=0.05
    )  # GIF counts in hundredths of a second
    assert window.last
    assert window.index == 0


def test_a_phone_film_comes_out_upright(tmp_path):
    frames = pictures(6)
    upright = write_film(tmp_path / "a.mp4", frames)
    turned = write_film(tmp_path / "b.mp4", np.ascontiguousarray(np.rot90(frames, -1, axes=(1, 2))), turn=90)
    read = [
        next(windows(clip, frames=5, width=64, height=48)).frames.astype(int) for clip in (upright, turned)
    ]
    assert abs(read[0] - read[1]).mean() < 4


def test_transparency_becomes_white(tmp_path):
    images = [Image.new("RGBA", (16, 16), (255, 0, 0, 0 if number % 2 else 255)) for number in range(6)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100, lossless=True)
    frames = next(windows(tmp_path / "a.webp", frames=5, width=16, height=16)).frames
    assert (frames[0] == [255, 0, 0]).all()
    assert (frames[1] == 255).all()


def test_crop_keeps_the_centre_and_the_aspect():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200  # the middle third, which is what a square crop keeps
    square = videos.fit(wide, 20, 20)
    assert square.shape == (20, 20, 3)
    assert (square > 180).all()
    tall = videos.fit(wide.transpose(1, 0, 2), 20, 20)
    assert (tall > 180).all()


@settings(deadline=None, max_examples=40)
@given(
    fps=st.sampled_from([5.0, 8.0, 12.5, 16.0, 23.976, 24.0, 30.0, 60.0]),
    target=st.sampled_from([4.0, 8.0, 16.0, 24.0]),
)
def test_thinning_reaches_the_rate_and_never_doubles(fps, target):
    count = 200
    kept = [number for _, number in videos.thin(((i / fps, i) for i in range(count)), target)]
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    expected = min(count, count * target / fps)
    assert abs(len(kept) - expected) <= 0.02 * expected + 2
    gaps = np.diff(kept)
    assert gaps.max() - gaps.min() <= 1  # even pace, so that no jump is made


def test_thinning_leaves_clips_without_times_alone():
    assert len(list(videos.thin([(None, i) for i in range(7)], 2.0))) == 7


def test_windows_are_consecutive_and_the_last_says_so(tmp_path):
    clip = write_animation(tmp_path / "a.webp", pictures(23))
    cut = list(windows(clip, frames=5, width=64, height=48, limit=0))
    assert [window.index for window in cut] == [0, 1, 2, 3]
    assert [window.last for window in cut] == [False, False, False, True]
    assert [window.start for window in cut] == pytest.approx([0, 0.625, 1.25, 1.875])
    assert (np.concatenate([window.frames for window in cut]) == pictures(20)).all()
    two = list(windows(clip, frames=5, width=64, height=48, limit=2))
    assert [window.last for window in two] == [False, True]


def test_reading_stops_when_enough_frames_are_there(tmp_path):
    clip = write_film(
        tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3)).astype(np.uint8)
    )
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])  # broken in the middle, whole at the start
    assert next(windows(clip, frames=5, width=64, height=48)).frames.shape[0] == 5
    with pytest.raises(VideoError, match=r"frames, 61 are needed|cannot be decoded"):
        list(windows(clip, frames=61, width=64, height=48))


def test_short_clips_are_refused_or_cut(tmp_path):
    clip = write_animation(tmp_path / "a.webp", pictures(12))
    with pytest.raises(VideoError, match=r"a\.webp has 12 frames, 17 are needed"):
        list(windows(clip, frames=17, width=64, height=48))
    (cut,) = windows(clip, frames=17, width=64, height=48, allow_short=EVERY_4)
    assert len(cut.frames) == 9
    assert cut.last
    tiny = write_animation(tmp_path / "b.webp", pictures(3))
    with pytest.raises(VideoError, match="3 frames"):
        list(windows(tiny, frames=17, width=64, height=48, allow_short=EVERY_4))


def test_frames_are_taken_in_counting_order(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(12))
    assert [path.name for path in videos.frame_files(folder)] == [
        f"frame_{number}.png" for number in range(12)
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"not a film at all", "cannot be decoded"),
        ("a.webp", b"RIFF\x00\x00\x00\x00WEBP", "cannot be decoded"),
        ("a.gif", b"GIF89a", "cannot be decoded"),
        ("a.webm", b"", "cannot be decoded"),
    ],
)
def test_broken_clips_say_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=rf"{name[0]}\.{name[2:]} {message}"):
        list(windows(tmp_path / name, frames=5, width=64, height=48))


def test_a_still_and_a_sound_file_are_no_clips(tmp_path):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.webp")
    with pytest.raises(VideoError, match=r"a\.webp is a still image"):
        list(windows(tmp_path / "a.webp", frames=5, width=64, height=48))
    import wave

    with wave.open(
        str(tmp_path / "b.mp4"), "wb"
    ) as sound:  # the container is told by its content, not by its name
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(VideoError, match=r"b\.mp4 has no picture track"):
        list(windows(tmp_path / "b.mp4", frames=5, width=64, height=48))


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    clip = write_film(tmp_path / "a.mp4", pictures(5))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        VideoError, match=r"a\.mp4 cannot be decoded without av: pip install 'imageio\[pyav\]'"
    ):
        list(windows(clip, frames=5, width=64, height=48))


def test_frames_of_two_sizes_are_refused(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(4))
    Image.new("RGB", (10, 10)).save(folder / "frame_9.png")
    with pytest.raises(VideoError, match=r"frame_9\.png is 10x10, the frames before it are 64x48"):
        list(windows(folder, frames=5, width=64, height=48))


def test_finding(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "A.MP4", "deep/c.webp", "._b.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    write_folder(tmp_path / "frames", pictures(3))
    found = videos.find_clips([tmp_path, tmp_path / "b.mp4"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "A.MP4",
        "b.mp4",
        "deep/c.webp",
        "frames",
    ]


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege there")
def test_links_into_themselves_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "film.mp4").write_bytes(b"1")
    for number in range(3):  # followed for ever, three links make more paths than there is time
        (tmp_path / "a" / f"loop{number}").symlink_to(tmp_path)
    assert videos.find_clips([tmp_path]) == [tmp_path / "a" / "film.mp4"]


def test_finding_nothing_is_one_sentence(tmp_path):
    with pytest.raises(VideoError, match="There is no clip in"):
        videos.find_clips([tmp_path])
    with pytest.raises(VideoError, match="nowhere does not exist"):
        videos.find_clips([tmp_path / "nowhere"])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(VideoError, match=r"a\.txt is not a video"):
        videos.find_clips([tmp_path / "a.txt"])


def test_captions(tmp_path):
    clip = tmp_path / "a_red-ball.01.mp4"
    clip.write_bytes(b"x")
    assert videos.caption_of(clip) == ("a red ball 01", "name")
    (tmp_path / "a_red-ball.01.txt").write_text("\ufeffA red ball\n bounces. ", encoding="utf-8")
    assert videos.caption_of(clip) == ("A red ball bounces.", "file")
    (tmp_path / "a_red-ball.01.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(VideoError, match="not UTF-8"):
        videos.caption_of(clip)
    (tmp_path / "a_red-ball.01.txt").write_text(" \n")
    with pytest.raises(VideoError, match="is empty"):
        videos.caption_of(clip)
    folder = write_folder(tmp_path / "frames", pictures(2))
    (tmp_path / "frames.txt").write_text("waves")
    assert videos.caption_of(folder) == ("waves", "file")


def test_content_hash_sees_both_ends_and_the_length(tmp_path):
    base = bytearray(3 * SAMPLED_BYTES)
    seen = set()
    for number, (place, length) in enumerate([(0, 0), (1, 0), (len(base) - 1, 0), (0, 1)]):
        data = bytearray(base)
        data[place] = number
        path = tmp_path / "clip.mp4"
        path.write_bytes(data + bytes(length))
        seen.add(videos.content_hash(path))
    assert len(seen) == 4
    (tmp_path / "other.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes())
    assert videos.content_hash(tmp_path / "other.mp4") in seen  # the name does not matter
    with pytest.raises(VideoError, match="cannot be read"):
        videos.content_hash(tmp_path / "gone")


def test_template_clips():
    clips = videos.template_clips("*wan*")
    if not clips:
        pytest.skip("ComfyUI's template packages are not installed")
    assert all("wan" in clip.name for clip in clips)
    assert set(clips) <= set(videos.template_clips())
    window = next(windows(clips[0], frames=17, width=64, height=64))
    assert window.frames.shape == (17, 64, 64, 3)
    assert window.fps > 1
    assert window.frames.std() > 5  # a picture, not a blank
    assert (window.frames[0] != window.frames[-1]).any()


@pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows")
def test_clips_outside_a_folder_can_be_kept_out(tmp_path):
    inside, away = tmp_path / "inside", tmp_path / "away"
    for folder in (inside, away, inside / "deep"):
        folder.mkdir()
        (folder / "clip.mp4").write_bytes(b"x")
    (inside / "gone").symlink_to(away)
    (inside / "film.mp4").symlink_to(away / "clip.mp4")
    (inside / "ours.mp4").symlink_to(inside / "deep" / "clip.mp4")
    (inside / "deep" / "clip.txt").symlink_to(away / "clip.mp4")
    found = videos.find_clips([inside], inside=inside)
    assert [path.relative_to(inside).as_posix() for path in found] == [
        "clip.mp4",
        "deep/clip.mp4",
        "film.mp4",
        "ours.mp4",
    ]
    strays = [videos.leads_out(path, inside) for path in found]
    assert strays == [None, inside / "deep" / "clip.txt", inside / "film.mp4", None]
    assert inside / "gone" / "clip.mp4" in videos.find_clips([inside])
    (inside / "round").symlink_to(inside / "round")
    assert not videos.is_inside(inside / "round", inside)
    assert not videos.is_inside(tmp_path / "inside_not", inside)
