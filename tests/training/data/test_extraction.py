"""Which stretches of a film become clips: head, all, uniform, slide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from latent_physics.training.commands.cache import main
from latent_physics.training.console import TrainingError
from latent_physics.training.data import decoding, reader
from latent_physics.training.data.clip import Entry, read_clip, read_clip_info
from latent_physics.training.data.extraction import All, Head, Slide, Uniform, extraction_of, whole_places
from latent_physics.training.data.features import FrameSource
from latent_physics.training.data.folder import ClipFolder
from latent_physics.training.data.format import CacheConfig, format_of
from latent_physics.training.data.videos import VideoError, content_hash, windows
from PIL import Image

LENGTH, SIDE = 23, 16


def film(path, length=LENGTH, duration=100):
    """A lossless animation whose frames say their number."""
    pictures = [
        Image.fromarray(np.full((SIDE, SIDE, 3), number * 8, np.uint8) + np.uint8(3))
        for number in range(length)
    ]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=duration, lossless=True, minimize_size=False
    )
    return path


def cut(clip, text, frames=5, cuts=(), fps=0, limit=1):
    """(index, number of every frame, last, start_frame) of each window."""
    taking = extraction_of(text, limit).taking(clip, frames, fps, cuts)
    found = windows(clip, frames=frames, width=SIDE, height=SIDE, fps=fps, cuts=cuts, **taking)
    return [(w.index, [int(f[0, 0, 0]) // 8 for f in w.frames], w.last, w.start_frame) for w in found]


def starts(clip, text, **more):
    found = cut(clip, text, **more)
    assert [index for index, *_ in found] == list(range(len(found)))
    assert [last for _, _, last, _ in found] == [False] * (len(found) - 1) + [True]
    step = found[0][1][1] - found[0][1][0]
    for _, numbers, _, _ in found:
        assert np.diff(numbers).tolist() == [step] * (len(numbers) - 1)
    return [numbers[0] for _, numbers, _, _ in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head", [0]),
        ("head count=3", [0, 5, 10]),
        ("all", [0, 5, 10, 15]),
        ("slide", [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ("slide stride=7", [0, 7, 14]),
        ("slide stride=5", [0, 5, 10, 15]),
        ("uniform count=1", [0]),
        ("uniform count=2", [0, 18]),
        ("uniform", [0, 6, 12, 18]),
        ("uniform count=99", list(range(19))),
    ],
)
def test_each_kind_takes_its_stretches(tmp_path, text, expected):
    clip = film(tmp_path / "a.webp")
    assert starts(clip, text) == expected
    assert [start for *_, start in cut(clip, text)] == expected


@pytest.mark.parametrize("count", [2, 3, 4, 7, 11])
def test_uniform_is_numpys_even_spacing(tmp_path, count):
    """As musubi-tuner spaces them: `linspace` over the possible starts, as whole numbers."""
    clip = film(tmp_path / "a.webp")
    assert starts(clip, f"uniform count={count}") == np.linspace(0, LENGTH - 5, count, dtype=int).tolist()


def test_no_stretch_spans_a_cut_or_a_corrupt_frame(tmp_path, monkeypatch):
    clip = film(tmp_path / "a.webp")
    assert starts(clip, "slide stride=3", cuts=(11,)) == [0, 3, 6, 11, 14, 17]
    assert starts(clip, "slide stride=9", cuts=(7,)) == [0, 7, 16]  # a scene begins between two stretches
    allowed = [*range(7), *range(11, 19)]
    assert whole_places(clip, 5, 0, (11,)) == allowed
    assert starts(clip, "uniform count=5", cuts=(11,)) == [allowed[i * 14 // 4] for i in range(5)]
    plain = decoding._decode_animation

    def marked(path):
        for number, frame in enumerate(plain(path)):
            yield frame._replace(damaged=number == 4)

    monkeypatch.setattr(decoding, "_decode_animation", marked)
    assert starts(clip, "slide stride=2") == [6, 8, 10, 12, 14, 16, 18]
    assert starts(clip, "uniform count=2") == [5, 18]


def test_a_film_that_breaks_off_keeps_what_is_before(tmp_path, monkeypatch):
    clip, plain = film(tmp_path / "a.webp"), decoding._decode_animation

    def breaks(path):
        for number, frame in enumerate(plain(path)):
            if number == 12:
                raise ValueError("the disk was pulled out")
            yield frame

    monkeypatch.setattr(decoding, "_decode_animation", breaks)
    taking = Uniform(count=3).taking(clip, 5, 0, ())
    assert taking["starts"] == [0, 3, 7]
    reading = windows(clip, frames=5, width=SIDE, height=SIDE, **taking)
    assert [next(reading).start_frame for _ in range(3)] == [0, 3, 7]
    with pytest.raises(VideoError, match="breaks off after 3 windows of 5 frames, which are kept"):
        next(reading)


def test_a_film_that_is_too_short_says_so_in_every_kind(tmp_path):
    clip = film(tmp_path / "a.webp", 4)
    for text in ("head", "all", "uniform", "slide"):
        with pytest.raises(VideoError, match="has 4 frames, 5 are needed"):
            cut(clip, text)


def test_frames_that_no_stretch_needs_are_not_converted(tmp_path, monkeypatch):
    converted, plain = [], decoding._guarded
    monkeypatch.setattr(
        decoding,
        "_guarded",
        lambda clip, picture: lambda: converted.append(1) or plain(clip, picture)(),
    )
    clip = film(tmp_path / "a.webp")
    assert starts(clip, "uniform count=2") == [0, 18]
    assert len(converted) == 10
    assert starts(clip, "slide stride=10") == [0, 10]
    assert len(converted) == 10 + 13  # the third begins, and is not completed


@pytest.mark.parametrize(
    ("text", "windows", "sentence"),
    [
        ("middle", 1, "extraction 'middle' is unknown; choose one of head, all, uniform, slide"),
        ("slide step=4", 1, "'step=4' is not a setting of the extraction slide; it has stride"),
        ("slide stride=0", 1, "stride of the extraction slide is '0'; it must be at least 1"),
        ("uniform count=0", 1, "count of the extraction uniform is '0'; it must be at least 1"),
        ("uniform count=many", 1, "count of the extraction uniform is 'many'; it must be a whole number"),
        ("all", 4, "windows is 4 and extraction 'all'; give one of them"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_before_anything_is_read(tmp_path, text, windows, sentence):
    with pytest.raises(TrainingError, match=sentence) as caught:
        format_of(CacheConfig(out=tmp_path, extraction=text, windows=windows))
    assert str(caught.value).count("\n") == 0


def test_without_it_windows_says_what_is_taken():
    assert extraction_of(None, 1) == extraction_of("head", 1) == Head(count=1)
    assert extraction_of(None, 3) == extraction_of("head count=3", 1)
    assert extraction_of(None, 0) == extraction_of("all", 1) == All()
    assert extraction_of("slide", 1) == Slide(stride=None)


# --- in the cache -------------------------------------------------------------------------------------------


def cache(tmp_path, *arguments):
    settings = ["--videos", tmp_path / "videos", "--out", tmp_path / "out", "--frames", 9, "--width", 16]
    settings += ["--height", 16, "--backbone", "toy", "--device", "cpu", "--tokens", "--no-name-captions"]
    assert main([*map(str, [*settings, *arguments])]) == 0
    return sorted((tmp_path / "out").glob("*.safetensors"))


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos" / "a.webp")
    return tmp_path


def test_a_cache_of_even_stretches_is_resumed_and_changed(videos, monkeypatch):
    paths = cache(videos, "--extraction", "uniform count=3")
    infos = [read_clip_info(path) for path in paths]
    assert [(info.window, info.start_frame, info.last) for info in infos] == [
        (0, 0, False),
        (1, 7, False),
        (2, 14, True),
    ]
    assert [info.start for info in infos] == pytest.approx([0, 0.7, 1.4])
    before = {path: path.read_bytes() for path in paths}
    paths[1].unlink()  # as if stopped between
    assert {path: path.read_bytes() for path in cache(videos, "--extraction", "uniform count=3")} == before
    monkeypatch.setattr(reader, "windows", None)  # nothing is read again
    cache(videos, "--extraction", "uniform count=3")
    monkeypatch.undo()
    assert [
        read_clip_info(path).start_frame for path in cache(videos, "--extraction", "slide stride=14")
    ] == [
        0,
        14,
    ]
    assert len({Entry(path=p, shape=(1, 1, 1, 1), info=read_clip_info(p)).identity for p in paths[:2]}) == 2


def test_head_and_all_write_what_windows_wrote(videos):
    old = {path.name: path.read_bytes() for path in cache(videos, "--windows", 0)}
    stamps = {path: path.stat().st_mtime_ns for path in (videos / "out").glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in cache(videos, "--extraction", "all")} == old
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "clips were encoded again"
    assert all(read_clip(videos / "out" / name).info.start_frame is None for name in old)
    cache(videos, "--extraction", "head")
    assert len(list((videos / "out").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("fps", [0, 5])
def test_teachers_see_the_same_stretch(videos, fps):
    """Found by content, cut by the frame's number: also a folder of frames, which has no times."""
    clip = videos / "videos" / "a.webp"
    cache(videos, "--extraction", "slide stride=2", "--fps", fps)
    source = FrameSource(videos / "out", [clip])
    entries = ClipFolder.scan(videos / "out").entries
    assert len(entries) == (2 if fps else 8)
    every = 2 if fps else 1
    for entry in entries:
        seen = source.read(entry)[0, :, 0, 0] * 255
        first = entry.info.start_frame
        expected = [(first + place) * every * 8 + 3 for place in range(9)]
        torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float32))
    moved = replace(entries[-1], info=replace(entries[-1].info, start_frame=0))
    with pytest.raises(TrainingError, match="cannot be cut as it was"):
        source.read(moved)


def test_frames_without_times_are_told_apart(tmp_path):
    folder = tmp_path / "videos" / "shot"
    folder.mkdir(parents=True)
    for number in range(LENGTH):
        Image.fromarray(np.full((SIDE, SIDE, 3), number * 8 + 3, np.uint8)).save(folder / f"{number:03}.png")
    cache(tmp_path, "--extraction", "slide stride=7")
    slide = ClipFolder.scan(tmp_path / "out").entries
    cache(tmp_path, "--windows", 0)
    whole = ClipFolder.scan(tmp_path / "out").entries
    assert slide[1].info.start == whole[1].info.start == 0  # nothing but the number tells them
    assert slide[1].identity != whole[1].identity
    assert slide[1].info.source_hash == content_hash(folder)
    seen = FrameSource(tmp_path / "out", [tmp_path / "videos"]).read(slide[1])[0, 0, 0, 0] * 255
    assert int(seen) == 7 * 8 + 3


def test_clips_thinned_to_other_rates_are_told_apart(videos):
    """The same film, size, length and start: a teacher's features of the one are not those of the other."""
    entries = []
    for fps in (5, 2.5):
        cache(videos, "--frames", 5, "--fps", fps)
        entries.append(ClipFolder.scan(videos / "out").entries[0])
    assert entries[0].info.start == entries[1].info.start == 0
    assert entries[0].shape == entries[1].shape
    assert entries[0].identity != entries[1].identity
    kept = replace(entries[0], info=replace(entries[0].info, fps_limit=0.0))
    assert "fps" not in kept.identity  # nothing was thinned: as it was always called
