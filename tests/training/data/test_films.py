"""Films as phones, cameras, editors and browsers write them come out as a person sees them."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from latent_physics.training.data import decoding, hdr
from latent_physics.training.data.videos import VideoError, decode, fit, windows
from PIL import Image, ImageOps

HEIGHT, WIDTH = 32, 48


def write_film(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    layout: str = "rgb24",
    fps: int = 8,
    prepare: Callable = lambda stream: None,
    change: Callable = lambda frame, number: frame,
) -> Path:
    """`prepare` sets up the stream, `change` each frame before it is encoded; lossless unless another codec
    is given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        prepare(stream)
        for number, picture in enumerate(frames):
            container.mux(stream.encode(change(av.VideoFrame.from_ndarray(picture, format=layout), number)))
        container.mux(stream.encode())
    return path


def corners(count: int = 6) -> np.ndarray:
    """Red above left, green above right, blue below left, white below right: turned or mirrored, another
    picture."""
    frames = np.full((count, HEIGHT, WIDTH, 3), 255, np.uint8)
    frames[:, : HEIGHT // 2, : WIDTH // 2] = [255, 0, 0]
    frames[:, : HEIGHT // 2, WIDTH // 2 :] = [0, 255, 0]
    frames[:, HEIGHT // 2 :, : WIDTH // 2] = [0, 0, 255]
    return frames


def first(path: Path) -> np.ndarray:
    return next(iter(decode(path))).picture()


# --- display matrices and pixel aspect ----------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", ["none", "hflip", "vflip"])
def test_a_turned_and_mirrored_film_is_shown_upright(tmp_path, turn, mirror):
    """The matrix is written by hand: FFmpeg's own is what is tested. It maps stored points (x, y) to (a x + c
    y, b x + d y)."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    a, b, c, d = cos, sin, -sin, cos  # turned clockwise, as y grows downwards
    if mirror == "hflip":
        a, c = -a, -c
    if mirror == "vflip":
        b, d = -b, -d
    stored = corners()
    path = write_film(tmp_path / "a.mp4", stored, codec="libx264rgb", pix_fmt="rgb24", prepare=lossless)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[start : start + 36])[0] == 1 << 16
    data[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert (first(path) == shown_by_matrix(stored[0], a, b, c, d)).all()


def shown_by_matrix(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Pixel by pixel: every stored point is moved, then all are shifted into view."""
    points = {
        (a * x + c * y, b * x + d * y): picture[y, x]
        for y in range(picture.shape[0])
        for x in range(picture.shape[1])
    }
    left, top = min(x for x, _ in points), min(y for _, y in points)
    right, bottom = max(x for x, _ in points), max(y for _, y in points)
    return np.array([[points[x, y] for x in range(left, right + 1)] for y in range(top, bottom + 1)])


def lossless(stream) -> None:
    stream.options = {"qp": "0"}


@pytest.mark.parametrize(("aspect", "shape"), [((2, 1), (HEIGHT, 2 * WIDTH)), ((1, 2), (HEIGHT, WIDTH // 2))])
def test_pixels_that_are_not_square_are_squared(tmp_path, aspect, shape):
    """A disc that was stored squeezed is round again."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = np.where((x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 < 64, 255, 0).astype(np.uint8)
    stored = np.asarray(Image.fromarray(disc).resize((WIDTH, HEIGHT)))
    grey = b"FRAME\n" + stored.tobytes() + bytes([128]) * (2 * WIDTH * HEIGHT)
    header = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F8:1 Ip A{aspect[0]}:{aspect[1]} C444\n"
    path = tmp_path / "a.y4m"
    path.write_bytes(header.encode() + 5 * grey)
    side = min(shape)
    window = next(windows(path, frames=5, width=side, height=side))
    seen = window.frames[0, :, :, 0] > 127
    ys, xs = np.nonzero(seen)
    assert abs(np.ptp(ys) - np.ptp(xs)) <= 1, "the disc is an ellipse"
    assert abs(np.ptp(ys) + 1 - 16) <= 2


def test_square_pixels_are_cropped_as_pillow_crops():
    frame = np.random.default_rng(0).integers(0, 255, (37, 91, 3)).astype(np.uint8)
    for size in ((16, 16), (48, 16), (16, 48), (91, 20)):
        expected = np.asarray(ImageOps.fit(Image.fromarray(frame), size, method=Image.Resampling.LANCZOS))
        assert (fit(frame, *size) == expected).all(), "cached clips would not be found again"


# --- alpha --------------------------------------------------------------------------------------------------


ALPHA = {
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "prores.mov": ("prores_ks", "yuva444p10le"),
    "png.mov": ("png", "rgba"),
    "animation.mov": ("qtrle", "argb"),
    "ffv1.mkv": ("ffv1", "yuva420p"),
}


@pytest.mark.parametrize("name", ALPHA)
def test_transparent_pixels_of_films_are_white(tmp_path, name):
    codec, pix_fmt = ALPHA[name]
    frames = np.zeros((6, HEIGHT, WIDTH, 4), np.uint8)
    frames[..., 0] = 255
    frames[:, : HEIGHT // 2, :, 3] = 255
    path = write_film(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, layout="rgba")
    cut = next(windows(path, frames=5, width=WIDTH, height=HEIGHT))
    assert abs(cut.frames[:, 4].astype(int) - [255, 0, 0]).max() <= 4
    assert cut.frames[:, -4].min() >= 252
    assert cut.fps == 8


def test_half_transparent_red_is_pink(tmp_path):
    frames = np.zeros((5, HEIGHT, WIDTH, 4), np.uint8)
    frames[..., 0], frames[..., 3] = 255, 51
    path = write_film(tmp_path / "a.mov", frames, codec="png", pix_fmt="rgba", layout="rgba")
    assert (first(path) == [255, 204, 204]).all()


# --- colour -------------------------------------------------------------------------------------------------

COEFFICIENTS = {
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
    2: (0.299, 0.114),
}
"""FFmpeg's number of a matrix -> weights of red and blue in luma. 2 (not said) is read as BT.601, as FFmpeg
writes it."""
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40], [128, 128, 128], [255, 255, 255]])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 9])
def test_colour_matrices_and_ranges_are_those_that_the_film_names(tmp_path, matrix, full):
    red, blue = COEFFICIENTS[matrix]
    rgb = COLOURS / 255
    luma = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[:, 2] - luma) / (2 - 2 * blue), (rgb[:, 0] - luma) / (2 - 2 * red)
    scale, zero, chroma = (255, 0, 255) if full else (219, 16, 224)
    planes = [np.rint(zero + scale * luma), np.rint(128 + chroma * cb), np.rint(128 + chroma * cr)]
    bars = np.stack(
        [np.repeat(np.repeat(plane.clip(0, 255), 8)[None], HEIGHT, axis=0) for plane in planes]
    ).astype(np.uint8)

    def prepare(stream):
        stream.options = {"qp": "0"}
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1

    def tag(frame, number):
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        return frame

    frames = np.stack([bars] * 5)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        prepare(stream)
        for picture in frames:
            container.mux(stream.encode(tag(av.VideoFrame.from_ndarray(picture, format="yuv444p"), 0)))
        container.mux(stream.encode())
    seen = first(path)[HEIGHT // 2, 4::8].astype(int)
    assert abs(seen - COLOURS).max() <= 3


def write_hdr(
    path: Path, signal: float, transfer: int, colour: tuple[float, float, float] = (1, 1, 1)
) -> Path:
    """A film of one colour, 10 bits, BT.2020, limited range; `signal` is its code value in 0..1."""
    red, blue = COEFFICIENTS[9]
    rgb = signal * np.array(colour)
    luma = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)
    values = [round(64 + 876 * luma), round(512 + 896 * cb), round(512 + 896 * cr)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = (
            9,
            1,
            transfer,
            9,
        )
        for _ in range(5):
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuv444p10le")
            for plane, value in zip(frame.planes, values):
                plane.update(np.full((HEIGHT, plane.line_size // 2), value, "<u2").tobytes())
            frame.colorspace, frame.color_range = 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pq(light: float) -> float:
    """ST 2084, written out once more."""
    y = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


@pytest.mark.parametrize("light", [0.5, 5, 20, 50, 80])
def test_pq_keeps_dark_and_middle_tones(tmp_path, light):
    """Below the knee of BT.2390 a light of L cd/m2 is the SDR signal (L / 203)^(1 / 2.4)."""
    seen = first(write_hdr(tmp_path / "a.mkv", pq(light), 16))
    assert abs(seen.astype(int) - 255 * (light / 203) ** (1 / 2.4)).max() <= 2


@pytest.mark.parametrize("signal", [0.1, 0.3, 0.5, 0.55])
def test_hlg_keeps_dark_and_middle_tones(tmp_path, signal):
    """BT.2100: a grey's light is 1000 E^1.2, where E is the inverse OETF of the signal."""
    scene = signal**2 / 3 if signal <= 0.5 else (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    seen = first(write_hdr(tmp_path / "a.mkv", signal, 18))
    assert abs(seen.astype(int) - 255 * (1000 * scene**1.2 / 203) ** (1 / 2.4)).max() <= 2


@pytest.mark.parametrize(("transfer", "brightest"), [(16, pq(1000)), (18, 1.0)])
def test_hdr_lights_are_rolled_off_and_the_brightest_is_white(tmp_path, transfer, brightest):
    films = [
        write_hdr(tmp_path / f"{share}.mkv", brightest * share, transfer) for share in (0.7, 0.8, 0.9, 1)
    ]
    greys = [int(first(film)[0, 0, 0]) for film in films]
    assert greys == sorted(set(greys))
    assert greys[-1] >= 253


def test_the_red_of_hdr_is_red(tmp_path):
    seen = first(write_hdr(tmp_path / "a.mkv", pq(100), 16, (1, 0, 0)))[0, 0].astype(int)
    assert seen[0] > 180
    assert seen[1] <= 2
    assert seen[2] <= 2


def test_the_roll_off_is_continuous_and_never_falls():
    light = np.linspace(0, 1500, 3000)
    rolled = hdr.roll_off(light)
    assert (np.diff(rolled) >= 0).all()
    assert np.diff(rolled).max() < 1
    assert rolled[-1] == pytest.approx(hdr.WHITE, rel=1e-3)
    assert rolled[light < 85] == pytest.approx(light[light < 85], abs=0.2)


def test_ten_bit_sdr_is_no_hdr(tmp_path):
    """BT.2020 primaries with BT.709's curve (14: BT.2020's own, which is the same)."""
    seen = first(write_hdr(tmp_path / "a.mkv", 0.5, 14))
    assert abs(seen.astype(int) - 127.5).max() <= 2


def test_sixteen_bit_grey_film_is_a_ramp(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, WIDTH).astype(np.uint16)[None], HEIGHT, axis=0)
    path = write_film(tmp_path / "a.mkv", np.stack([ramp] * 5), pix_fmt="gray16le", layout="gray16le")
    seen = first(path).astype(int)
    assert abs(seen - (ramp / 257)[..., None]).max() <= 2


# --- time ---------------------------------------------------------------------------------------------------


def numbered(count: int) -> np.ndarray:
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    frames += (np.arange(count) * 5).astype(np.uint8)[:, None, None, None]
    return frames


def numbers(pictures: np.ndarray) -> list[int]:
    return [round(float(picture.mean()) / 5) for picture in pictures]


def write_transport_stream(path: Path, counts: list[int], offset: int = 0) -> Path:
    """Parts of a film, each of which counts its time from 0, joined end to end."""
    parts = []
    for number in range(len(counts)):
        part = path.with_name(f"part{number}.ts")
        frames = numbered(sum(counts))[sum(counts[:number]) : sum(counts[: number + 1])]
        write_film(part, frames, codec="mpeg2video", pix_fmt="yuv420p", fps=25)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def test_time_stamps_that_start_again_go_on(tmp_path):
    path = write_transport_stream(tmp_path / "joined.ts", [20, 20])
    times = [frame.time for frame in decode(path)]
    assert len(times) >= 38  # FFmpeg may drop a frame where parts join
    assert all(after > before for before, after in itertools.pairwise(times))
    assert times[-1] - times[0] == pytest.approx((len(times) - 1) / 25, abs=0.3)
    thinned = list(windows(path, frames=5, width=WIDTH, height=HEIGHT, fps=12.5, limit=0))
    assert len(thinned) >= 3, "everything behind the join was dropped"
    assert numbers(thinned[0].frames) == [0, 2, 4, 6, 8]


def test_variable_rates_are_thinned_by_time(tmp_path):
    """Frames at 0, 1, 2, 3, 4, 8, 12, 16, ... 24ths of a second."""
    ticks = [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 28]

    def at(frame, number):
        frame.pts, frame.time_base = ticks[number], Fraction(1, 24)
        return frame

    path = write_film(tmp_path / "a.mkv", numbered(len(ticks)), fps=24, change=at)
    assert [round(frame.time * 24) for frame in decode(path)] == ticks
    window = next(windows(path, frames=5, width=WIDTH, height=HEIGHT, fps=6))
    assert numbers(window.frames) == [0, 4, 5, 6, 7]


def test_edit_lists_leave_out_what_editors_cut(tmp_path):
    """An MP4 whose edit list starts a second late shows nothing of the first second."""
    kind = {"codec": "libx264rgb", "pix_fmt": "rgb24", "prepare": lossless, "change": every_frame_a_key}
    path = write_film(tmp_path / "a.mp4", numbered(24), **kind)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst")
    version, count = data[place + 4], struct.unpack(">I", data[place + 8 : place + 12])[0]
    assert (version, count) == (0, 1)
    timescale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    data[place + 16 : place + 20] = struct.pack(
        ">i", struct.unpack(">i", data[place + 16 : place + 20])[0] + timescale
    )
    path.write_bytes(data)
    shown = numbers(np.stack([frame.picture() for frame in decode(path)]))
    assert shown == list(range(8, 24))


def every_frame_a_key(frame, number):
    frame.pict_type = 1
    return frame


def test_sizes_that_change_in_mid_stream_are_fitted_one_by_one(tmp_path):
    big = np.repeat(np.repeat(corners(5), 2, axis=1), 2, axis=2)
    parts = []
    for number, frames in enumerate((corners(5), big)):
        parts.append(write_film(tmp_path / f"{number}.h264", frames, codec="libx264", pix_fmt="yuv420p"))
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sizes = {frame.picture().shape[:2] for frame in decode(path)}
    assert sizes == {(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)}
    window = next(windows(path, frames=9, width=WIDTH, height=HEIGHT)).frames.astype(int)
    assert abs(window - window[0]).mean() < 6


# --- damage and stand-ins -----------------------------------------------------------------------------------


def damaged(monkeypatch, *places: int) -> None:
    """The decoder marks these frames as corrupt."""
    plain = decoding._decode_film

    def marked(clip):
        for number, frame in enumerate(plain(clip)):
            yield frame._replace(damaged=number in places)

    monkeypatch.setattr(decoding, "_decode_film", marked)


def test_corrupt_frames_cost_only_their_own_windows(tmp_path, monkeypatch):
    path = write_film(tmp_path / "a.mkv", numbered(22))
    damaged(monkeypatch, 7, 21)
    cut = list(windows(path, frames=5, width=WIDTH, height=HEIGHT, limit=0))
    assert [numbers(window.frames)[0] for window in cut] == [0, 10, 15]
    assert [(window.index, window.last, window.corrupt) for window in cut] == [
        (0, False, 0),
        (1, False, 1),
        (2, True, 1),
    ], "the second is counted when the window behind it is made"
    assert numbers(next(windows(path, frames=5, width=WIDTH, height=HEIGHT)).frames) == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError, match="corrupt or missing in every window of 17") as caught:
        list(windows(path, frames=17, width=WIDTH, height=HEIGHT))
    assert caught.value.kind == "corrupt frames"


def test_a_decoder_that_conceals_errors_marks_them(tmp_path):
    """A real one: bytes of one MPEG-4 frame are overwritten, and what is shown in their place is not
    taken."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (20, HEIGHT * 2, WIDTH * 2, 3)).astype(np.uint8)
    path = write_film(tmp_path / "a.avi", frames, codec="mpeg4", pix_fmt="yuv420p")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[12]
    data[position + size // 2 : position + size // 2 + 400] = bytes(
        generator.integers(0, 255, 400).astype(np.uint8)
    )
    path.write_bytes(data)
    marks = [frame.damaged for frame in decode(path)]
    assert any(marks[12:]), "this build of FFmpeg conceals without a word"
    assert not any(marks[:12])
    assert next(windows(path, frames=9, width=32, height=32)).corrupt == 0


def test_windows_before_a_break_are_kept(tmp_path, monkeypatch):
    path = write_film(tmp_path / "a.mkv", numbered(22))
    plain = decoding._decode_film

    def breaks(clip):
        yield from itertools.islice(plain(clip), 13)
        raise ValueError("the disk was pulled out")

    monkeypatch.setattr(decoding, "_decode_film", breaks)
    reading = windows(path, frames=5, width=WIDTH, height=HEIGHT, limit=0)
    cut = [next(reading), next(reading)]
    assert [numbers(window.frames) for window in cut] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [window.last for window in cut] == [False, True]
    with pytest.raises(
        VideoError, match=r"a\.mkv breaks off after 2 windows of 5 frames, which are kept \(.*pulled out"
    ):
        next(reading)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n  <html lang='en'>", "an HTML page"),
        (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", "a server's error message"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a git-lfs pointer"),
        (b"", "it is empty, 0 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.webp", "a.gif"])
def test_files_that_only_stand_for_a_film_are_called_what_they_are(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=rf"{name[0]}\.{name[2:]} cannot be decoded: it is .*") as caught:
        list(windows(tmp_path / name, frames=5, width=WIDTH, height=HEIGHT))
    assert words in str(caught.value)


def test_frames_that_are_dropped_are_not_converted(tmp_path, monkeypatch):
    converted = []
    plain = decoding._Picture.__call__
    monkeypatch.setattr(decoding._Picture, "__call__", lambda self: converted.append(1) or plain(self))
    path = write_film(tmp_path / "a.mkv", numbered(24), fps=24)
    next(windows(path, frames=5, width=WIDTH, height=HEIGHT, fps=6))
    assert len(converted) == 5


def test_a_name_of_bytes_that_are_no_text_is_read(tmp_path):
    path = write_film(tmp_path / "a.mkv", numbered(6))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mkv")
    try:
        os.rename(path, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert numbers(next(windows(Path(odd), frames=5, width=WIDTH, height=HEIGHT)).frames) == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError) as caught:
        list(windows(Path(odd), frames=50, width=WIDTH, height=HEIGHT))
    str(caught.value).encode("ascii")
