"""What is found in people's folders, what is passed over, and that it is named."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from latent_physics.training.data import finding
from latent_physics.training.data.left_out import LeftOut, VideoError, count_kinds
from latent_physics.training.data.videos import (
    caption_of,
    content_hash,
    decode,
    find_clips,
    sampled_hash,
    scan,
    windows,
)
from PIL import Image

SIZE = (16, 12)


def picture(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = SIZE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * len(mode) if mode in ("RGB", "RGBA") else value).save(path, **options)
    return path


def frames(folder: Path, count: int = 6, name: str = "frame_{:04}.png") -> Path:
    for number in range(count):
        picture(folder / name.format(number), 10 * number)
    return folder


def kinds(left_out: list[LeftOut]) -> list[tuple[str, str]]:
    return sorted((entry.path.name, entry.kind) for entry in left_out)


# --- folders of frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "{:04}.png",
        "frame_{}.jpg",
        "shot3_take2_{:03}.PNG",
        "f{0}_t{0}.png",
        "{:05}.webp",
        "{:03}.tif",
        "a{:02}.bmp",
    ],
)
def test_numbered_pictures_are_a_clip(tmp_path, name):
    folder = frames(tmp_path / "shot", 12, name)
    found = scan([tmp_path])
    assert found.clips == [folder]
    assert not found.left_out
    shown = [round(float(frame.picture().mean()) / 10) for frame in decode(folder)]
    assert shown == list(range(12))


@pytest.mark.parametrize(
    "names",
    [
        ["cat.png", "holiday.png", "screenshot.png"],
        ["IMG_1201.png", "IMG_1204.png", "IMG_1288.png", "IMG_1302.png", "IMG_1303.png"],
        ["rgb_0.png", "rgb_1.png", "depth_0.png", "depth_1.png"],
        ["a.png", "b.png"],
    ],
)
def test_unrelated_pictures_are_no_clip(tmp_path, names):
    for name in names:
        picture(tmp_path / "pictures" / name)
    found = scan([tmp_path])
    assert not found.clips
    assert kinds(found.left_out) == [("pictures", "no sequence")]
    assert f"{len(names)} pictures" in found.left_out[0].reason
    with pytest.raises(VideoError, match=r"There is no clip in .* 1 left out, the first: pictures: "):
        find_clips([tmp_path])


@pytest.mark.parametrize("stray", ["cover.jpg", "poster.webp", "still.gif", "Thumbs_1.png"])
def test_a_stray_still_hides_no_frame_folder(tmp_path, stray):
    folder = frames(tmp_path / "shot")
    picture(folder / stray, 200, size=(40, 40))
    found = scan([tmp_path])
    assert found.clips == [folder]
    assert len(list(decode(folder))) == 6
    assert kinds(found.left_out) == [(stray, "stray picture")]


def test_pictures_beside_films_are_counted_unless_they_are_thumbnails(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    picture(tmp_path / "a.jpg")
    assert not scan([tmp_path]).left_out
    frames(tmp_path)
    found = scan([tmp_path])
    assert found.clips == [tmp_path / "a.mp4"]
    assert [entry.reason for entry in found.left_out] == [
        f"6 pictures in {tmp_path.name}, beside films: no clip."
    ]


def test_no_window_spans_missing_frames(tmp_path):
    """Frames 0..19 without 7 and 12, 13: what moves between 6 and 8 no camera saw."""
    folder = frames(tmp_path / "shot", 20)
    for number in (7, 12, 13):
        (folder / f"frame_{number:04}.png").unlink()
    cut = list(windows(folder, frames=5, width=SIZE[0], height=SIZE[1], limit=0))
    starts = [round(float(window.frames[0].mean()) / 10) for window in cut]
    ends = [round(float(window.frames[-1].mean()) / 10) for window in cut]
    assert list(zip(starts, ends)) == [(0, 4), (14, 18)]
    assert cut[-1].corrupt == 2


def test_sixty_thousand_files_are_looked_at_once(tmp_path, monkeypatch):
    for number in range(60_000):
        os.close(os.open(tmp_path / f"{number:05}.mp4", os.O_CREAT | os.O_WRONLY))
    listed, stats = [], []
    scandir, stat = os.scandir, Path.stat
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(Path, "stat", lambda path, **more: stats.append(path) or stat(path, **more))
    clips = find_clips([tmp_path])
    assert [clip.name for clip in clips] == [f"{number:05}.mp4" for number in range(60_000)]
    assert len(listed) == 1
    assert len(stats) < 10, "a network disk answers a thousand of these a second"


# --- what is passed over ------------------------------------------------------------------------------------


def test_formats_that_are_not_read_are_named_once(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name in ("b.r3d", "c.R3D", "videos.zip", "d.mp4.part", "notes.txt", "e.exr"):
        (tmp_path / name).write_bytes(b"x")
    found = scan([tmp_path])
    assert found.clips == [tmp_path / "a.mp4"]
    assert count_kinds(found.left_out) == "4 unknown format"
    assert any("2 .r3d files" in entry.reason for entry in found.left_out)
    assert kinds(found.left_out)[0][0] == "d.mp4.part"


@pytest.mark.parametrize("suffix", ["avi", "mpg", "ts", "wmv", "flv", "3gp", "ogv", "mxf", "m2ts", "y4m"])
def test_films_of_other_formats_are_found(tmp_path, suffix):
    (tmp_path / f"a.{suffix.upper()}").write_bytes(b"x")
    assert len(find_clips([tmp_path])) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows")
def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    assert kinds(scan([tmp_path]).left_out) == [("b.mp4", "broken link")]


@contextmanager
def without_rights() -> Iterator[None]:
    """File permissions do not bind root: for a moment, this process is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows keeps rights elsewhere")
def test_what_may_not_be_read_is_named_and_the_rest_is_found(open_folder):
    (open_folder / "a.mp4").write_bytes(b"x")
    (open_folder / "locked").mkdir()
    (open_folder / "locked" / "b.mp4").write_bytes(b"x")
    (open_folder / "c.mp4").write_bytes(b"x")
    (open_folder / "c.txt").write_text("a ball")
    shot = frames(open_folder / "shot")
    for path in (
        open_folder / "locked",
        open_folder / "c.txt",
        open_folder / "a.mp4",
        shot / "frame_0003.png",
    ):
        path.chmod(0)
    with without_rights():
        found = scan([open_folder])
        assert found.clips == [open_folder / "a.mp4", open_folder / "c.mp4", shot]
        assert kinds(found.left_out) == [("locked", "unreadable")]
        assert "permission denied" in found.left_out[0].reason
        for read in (
            lambda: caption_of(open_folder / "c.mp4"),
            lambda: content_hash(open_folder / "a.mp4"),
            lambda: list(decode(open_folder / "a.mp4")),
            lambda: list(decode(shot)),
            lambda: content_hash(shot),
            lambda: scan([open_folder / "locked" / "b.mp4"]),
        ):
            with pytest.raises(VideoError, match="permission denied") as caught:
                read()
            assert caught.value.kind == "unreadable"


def test_names_of_bytes_that_are_no_text_are_found_and_printable(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff"))
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (odd / "a.mp4").write_bytes(b"x")
    clip = Path(os.fsdecode(os.fsencode(odd) + b"/b\xe9ll.mp4"))
    clip.write_bytes(b"x")
    found = scan([tmp_path])
    assert len(found.clips) == 2
    assert caption_of(clip) == ("bll", "name")
    for text in (str(VideoError(f"{clip} is broken.")), LeftOut(clip, f"{clip} is broken.", "broken").reason):
        text.encode("utf-8")
        assert "\\udce9" in text
    assert content_hash(clip) == content_hash(odd / "a.mp4")


# --- content ------------------------------------------------------------------------------------------------


def test_films_that_agree_at_both_ends_are_told_apart(tmp_path):
    data = bytearray(np.random.default_rng(0).integers(0, 255, 3 << 20).astype(np.uint8))
    for name in ("a.mp4", "copy.mp4"):
        (tmp_path / name).write_bytes(data)
    data[len(data) // 2] ^= 1
    (tmp_path / "b.mp4").write_bytes(data)
    hashes = {path.name: content_hash(path) for path in tmp_path.iterdir()}
    assert hashes["a.mp4"] == hashes["copy.mp4"] != hashes["b.mp4"]
    assert sampled_hash(tmp_path / "a.mp4") == sampled_hash(tmp_path / "b.mp4")


def test_hashes_of_short_files_are_those_of_earlier_versions(tmp_path):
    """Written down before whole files were read: caches made then are found again."""
    import hashlib

    for size in (0, 5, (1 << 20) + 7, 2 << 20):
        path = tmp_path / "a.mp4"
        data = np.random.default_rng(size).integers(0, 255, size).astype(np.uint8).tobytes()
        path.write_bytes(data)
        old = hashlib.blake2b(f":{size}\n".encode(), digest_size=16)
        old.update(data[: 1 << 20])
        old.update(data[1 << 20 :])
        assert content_hash(path) == sampled_hash(path) == old.hexdigest()


# --- pixels of pictures -------------------------------------------------------------------------------------


def shown(path: Path) -> np.ndarray:
    """The first frame of a folder that holds a picture twice."""
    folder = path.with_suffix("")
    folder.mkdir()
    for number in range(2):
        shutil.copy(path, folder / f"{number}{path.suffix}")
    return next(decode(folder)).picture()


def test_sixteen_bit_grey_is_a_ramp(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert (shown(tmp_path / "a.png") == np.arange(256)[None, :, None]).all()


def test_float_grey_is_a_ramp(tmp_path):
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, axis=0)).save(tmp_path / "a.tif")
    assert (shown(tmp_path / "a.tif") == np.arange(256)[None, :, None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGB key", "L key", "grey 16 key"])
def test_transparent_pixels_of_pictures_are_white(tmp_path, mode):
    """Left half transparent, right half opaque and dark."""
    path = tmp_path / "a.png"
    left = np.zeros((8, 16), bool)
    left[:, :8] = True
    if mode == "RGBA":
        Image.fromarray(np.where(left[..., None], [9, 9, 9, 0], [40, 40, 40, 255]).astype(np.uint8)).save(
            path
        )
    elif mode == "LA":
        Image.fromarray(np.where(left[..., None], [9, 0], [40, 255]).astype(np.uint8), "LA").save(path)
    elif mode in ("P", "PA"):
        image = Image.fromarray(np.where(left, 0, 1).astype(np.uint8)).convert("P")
        image.putpalette([9, 9, 9, 40, 40, 40])
        image.save(path, transparency=bytes([0, 255]) if mode == "PA" else 0)
    elif mode == "RGB key":
        Image.fromarray(np.where(left[..., None], [9, 9, 9], [40, 40, 40]).astype(np.uint8)).save(
            path, transparency=(9, 9, 9)
        )
    elif mode == "L key":
        Image.fromarray(np.where(left, 9, 40).astype(np.uint8)).save(path, transparency=9)
    else:
        Image.fromarray(np.where(left, 9 * 257, 40 * 257).astype(np.uint16)).save(path, transparency=9 * 257)
    pixels = shown(path)
    assert (pixels[:, :8] == 255).all()
    assert (pixels[:, 8:] == 40).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_turned_as_their_exif_says(tmp_path, turn, suffix):
    """Written out from the standard's table: which corner of the stored picture row 0, column 0 stand for."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = [250, 0, 0], [0, 250, 0], [0, 0, 250]
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0,
        2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[turn]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(
        tmp_path / f"a{suffix}", exif=exif, **({"quality": 100, "subsampling": 0} if suffix == ".jpg" else {})
    )
    seen = shown(tmp_path / f"a{suffix}").astype(int)
    assert seen.shape == upright.shape
    assert abs(seen - upright).mean() < 3


def test_a_picture_is_not_broken_because_its_exif_is(tmp_path):
    picture(tmp_path / "a.jpg", 90, exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert abs(shown(tmp_path / "a.jpg").astype(int) - 90).max() <= 2


def test_a_frame_that_is_a_pointer_is_called_so(tmp_path):
    folder = frames(tmp_path / "shot")
    (folder / "frame_0002.png").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(VideoError, match=r"shot: frame_0002\.png is a git-lfs pointer"):
        list(decode(folder))


def test_the_order_of_numbers_is_that_of_counting():
    names = [Path(f"f{number}.png") for number in (10, 9, 1, 2, 3, 4, 5, 6, 7, 8)]
    assert [path.name for path in finding.choose_sequence(Path("x"), names)] == [
        f"f{number}.png" for number in range(1, 11)
    ]
