"""`cache --check` and the report of what was left out: what a person sees before training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from latent_physics.training.commands import cache as command
from latent_physics.training.console import TrainingError
from latent_physics.training.data import check, sources
from latent_physics.training.data.format import CacheConfig
from latent_physics.training.data.left_out import LeftOut
from latent_physics.training.data.report import write_skipped
from latent_physics.training.data.sources import ContentHashes, gather, identify
from latent_physics.training.data.videos import content_hash, sampled_hash
from PIL import Image

WIDTH, HEIGHT, FRAMES = 32, 16, 9


def animation(
    path: Path, colour: tuple[int, int, int], count: int = FRAMES, size: tuple[int, int] = (2 * WIDTH, HEIGHT)
) -> Path:
    """A left half of one colour; the right half of a wide one is cut away on both sides."""
    pictures = [Image.new("RGB", size, colour) for _ in range(count)]
    for number, picture in enumerate(pictures):
        picture.putpixel((size[0] // 2, number % size[1]), (255, 255, 255))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    return path


@pytest.fixture
def videos(tmp_path) -> Path:
    """Two clips with captions, one of them longer than the toy encoder reads, one without, and seven things
    left out."""
    folder = tmp_path / "videos"
    folder.mkdir()
    animation(folder / "red.webp", (200, 0, 0))
    animation(folder / "green.webp", (0, 200, 0), size=(WIDTH, HEIGHT))
    animation(folder / "blue.webp", (0, 0, 200), count=12)
    (folder / "red.txt").write_text("a red ball falls")
    (folder / "green.txt").write_text("word " * 25)
    (folder / "copy.webp").write_bytes((folder / "blue.webp").read_bytes())
    animation(folder / "short.webp", (1, 1, 1), count=4)
    animation(folder / "silent.webp", (9, 9, 9))
    (folder / "silent.txt").write_text(" ")
    (folder / "page.mp4").write_text("<!DOCTYPE html><title>Sign in</title>")
    (folder / "raw.r3d").write_bytes(b"x")
    for name in ("cat.png", "dog.png"):
        (folder / "pets").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "pets" / name)
    (folder / "odd.webp").write_bytes(b"RIFF\0\0\0\0WEBP")
    return folder


def arguments(videos: Path, *more: str) -> list[str]:
    out = str(videos.parent / "out")
    size = ["--width", str(WIDTH), "--height", str(HEIGHT), "--frames", str(FRAMES), "--device", "cpu"]
    return ["--videos", str(videos), "--out", out, "--backbone", "toy", *size, *more]


def test_the_table_says_what_would_be_trained_on(videos, capsys):
    assert command.main(arguments(videos, "--check")) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "clips 3 windows 3 of at most 9 frames at 32x16, 27 frames in all",
        "sizes 64x16 (2), 32x16 (1)",
        "frames per second 10 (3)",
        "captions 2 found, 1 missing (the file's name is used), 0 missing (empty)",
        "captions cut 1",
        "7 left out: 2 broken, 1 unknown format, 1 no sequence, 1 duplicate, 1 no caption, 1 too short",
        "page.mp4 cannot be decoded: it is an HTML page",
        "raw.r3d: .r3d is not a format that is read",
    ):
        assert words in said, said
    out = videos.parent / "out"
    assert not list(out.glob("*.safetensors")), "nothing is encoded"
    lines = (out / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7
    assert Counter(line.split("\t")[1] for line in lines)["broken 2/2"] == 1


def test_the_contact_sheet_shows_first_frames_as_the_model_will_see_them(videos):
    config = CacheConfig(
        videos=[videos],
        out=videos.parent / "out",
        backbone="toy",
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        device="cpu",
    )
    found = check.check_clips(gather(config), config)
    assert [tile.path.name for tile in found.tiles] == ["blue.webp", "green.webp", "red.webp"]
    assert found.sheets == [config.out / "contact_sheet_1.png"]
    sheet = np.asarray(Image.open(found.sheets[0]).convert("RGB"))
    for number, colour in enumerate(([0, 0, 200], [0, 200, 0], [200, 0, 0])):
        left = number * sheet.shape[1] // 3 + 4
        tile = sheet[4 : 4 + HEIGHT, left : left + WIDTH]
        assert (tile[:, 2] == colour).all()
        assert (tile[0] == 255).all(axis=-1).any(), "the white dot of the first frame"


def test_many_clips_take_many_sheets_and_old_ones_go(tmp_path):
    from latent_physics.training.data.contact_sheet import Tile, write_sheets

    tiles = [Tile(Path(f"{number}.mp4"), "a ball", np.zeros((4, 6, 3), np.uint8)) for number in range(450)]
    assert [path.name for path in write_sheets(tmp_path, tiles)] == [
        f"contact_sheet_{number}.png" for number in (1, 2, 3)
    ]
    write_sheets(tmp_path, tiles[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["contact_sheet_1.png"]
    assert write_sheets(tmp_path, []) == []


def test_a_check_without_one_good_clip_is_an_error(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"no film")
    assert command.main(arguments(folder, "--check")) == 1
    assert "none of the 1 clips can be used; the first: a.mp4 cannot be decoded" in capsys.readouterr().err


def test_caching_leaves_out_the_same_and_cuts_the_same_captions(videos, capsys):
    assert command.main(arguments(videos)) == 0
    said = capsys.readouterr().out
    assert "6 clips were skipped" in said
    assert "6 left out: 2 broken, 1 unknown format, 1 no sequence, 1 no caption, 1 too short" in said
    assert "duplicate: copy.webp has the same content as blue.webp; kept blue.webp." in said
    assert "1 captions are longer than the text encoder reads" in said
    assert len(list((videos.parent / "out").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("mode", [[], ["--check"]])
def test_a_console_that_cannot_print_a_name_ends_nothing(videos, mode):
    """cp1252, as on a Western European Windows, has no letter of these names."""
    (videos / "\u6c34\u304c\u6d41\u308c\u308b.mp4").write_bytes(b"no film")
    odd = os.fsdecode(os.fsencode(videos) + b"/caf\xe9.mp4")
    try:
        Path(odd).write_bytes(b"no film either")
    except OSError:
        odd = ""
    (videos / "red.webp").rename(videos / "\u8d64.webp")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "HF_HUB_OFFLINE": "1"}
    run = "import sys; from latent_physics.training.commands import cache; sys.exit(cache.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", run, *arguments(videos, *mode)], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert b"Traceback" not in done.stderr
    assert rb"\u6c34" in done.stdout
    text = (videos.parent / "out" / "skipped.txt").read_text(encoding="utf-8")
    assert "\u6c34\u304c\u6d41\u308c\u308b.mp4" in text
    assert not odd or "caf\\udce9.mp4" in text


def test_skipped_names_the_kind_and_counts_it(tmp_path):
    entries = [LeftOut(Path("b"), "b is broken.", "broken"), LeftOut(Path("s"), "s is short.", "too short")]
    write_skipped(tmp_path, [*entries, LeftOut(Path("c"), "c is broken.", "broken")])
    assert (tmp_path / "skipped.txt").read_text().splitlines() == [
        "b\tbroken 1/2\tb is broken.", "c\tbroken 2/2\tc is broken.", "s\ttoo short 1/1\ts is short."
    ]  # fmt: skip
    write_skipped(tmp_path, [])
    assert not list(tmp_path.iterdir())


# --- identity -----------------------------------------------------------------------------------------------


@pytest.fixture
def twins(tmp_path) -> list[Path]:
    """Two films of one length that agree in their first and last MiB, and a copy of the first."""
    data = bytearray(3 << 20)
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4", "copy.mp4")]
    for path, byte in zip(paths, (0, 1, 0)):
        data[len(data) // 2] = byte
        path.write_bytes(data)
    return paths


def test_twins_are_told_apart_and_copies_are_not(twins, tmp_path):
    found = identify(twins, ContentHashes(tmp_path), cached=())
    assert found == {path: content_hash(path) for path in twins}
    assert found[twins[0]] == found[twins[2]] != found[twins[1]]


def test_clips_cached_by_earlier_versions_keep_their_hash(twins, tmp_path):
    """It was sampled; the first of those that share it is the one that was cached."""
    old = sampled_hash(twins[0])
    found = identify(twins, ContentHashes(tmp_path), cached={old[:12]})
    assert found == {twins[0]: old, twins[2]: old, twins[1]: content_hash(twins[1])}
    assert identify(twins[:1], ContentHashes(tmp_path), cached={old[:12]}) == {twins[0]: old}


def test_a_film_that_did_not_change_is_read_once(twins, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    before = identify(twins, ContentHashes(folder), cached=())
    read = []
    monkeypatch.setattr(sources, "content_hash", lambda clip: read.append(clip) or content_hash(clip))
    assert identify(twins, ContentHashes(folder), cached=()) == before
    assert not read
    data = bytearray(twins[0].read_bytes())
    data[len(data) // 2] = 7
    twins[0].write_bytes(data)
    os.utime(twins[0], ns=(1, 1))
    assert (
        identify(twins, ContentHashes(folder), cached=())[twins[0]]
        == content_hash(twins[0])
        != before[twins[0]]
    )
    assert read == [twins[0]]
    (folder / sources.HASHES_FILE).write_text("[1")
    assert identify(twins[1:], ContentHashes(folder), cached=()) == {
        path: content_hash(path) for path in twins[1:]
    }


def test_a_list_without_a_folder_and_templates_without_a_match_say_so(tmp_path):
    with pytest.raises(TrainingError, match="give one folder of videos"):
        gather(CacheConfig(out=tmp_path, videos=[tmp_path, tmp_path], captions=tmp_path / "x.csv"))
    with pytest.raises(TrainingError, match="no clip of ComfyUI's template packages matches"):
        gather(CacheConfig(out=tmp_path, templates="no-such-*"))
