"""Clips -> frames as a person would see them: upright, in square pixels' proportions, in SDR, on white.

The only place that decodes. Films are read by PyAV, animations and frames by Pillow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import hdr
from .finding import ANIMATION_SUFFIXES, frame_files, frames_after_gaps
from .left_out import VideoError, printable, reason_of
from .text import sniff

VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codecs whose alpha, a second stream beside the pictures, is read by these decoders alone."""

UNSPECIFIED = 2
"""FFmpeg's number of a colour matrix that a film does not name."""
ORIENTATION = 0x0112
"""EXIF's tag of how a picture is turned."""


class Frame(NamedTuple):
    """One frame of a clip."""

    time: float | None
    """Seconds; None for a folder of frames."""
    picture: Callable[[], np.ndarray]
    """Makes the pixels, `H W 3` uint8; frames that are dropped are never converted. Raises VideoError."""
    aspect: float = 1.0
    """Width of a pixel over its height."""
    damaged: bool = False
    """Whether the decoder marked it as corrupt."""
    jump: bool = False
    """Whether frames are missing before it."""
    mask: Frame | None = None
    """The frame of the clip's mask, where it has one."""


def decode(clip: Path) -> Iterator[Frame]:
    """Yields the frames of a clip in order.

    Display matrices and EXIF turns are followed, transparent pixels become white, HDR becomes SDR.
    Raises VideoError where the clip cannot be decoded, or is not what its name says.
    """
    if clip.is_dir():
        frames = _decode_folder(clip)
    elif clip.suffix.lower() in ANIMATION_SUFFIXES:
        frames = _decode_animation(clip)
    else:
        frames = _decode_film(clip)
    with _one_sentence(clip):
        if not clip.is_dir():
            _check_file(clip)
        for frame in frames:
            yield frame._replace(picture=_guarded(clip, frame.picture))


def _check_file(clip: Path) -> None:
    """Raises VideoError for files that no decoder need look at, OSError where it cannot be read."""
    if clip.stat().st_size == 0:
        raise VideoError(f"{clip.name} cannot be decoded: it is empty, 0 bytes.")
    if what := sniff(clip):
        raise VideoError(f"{clip.name} cannot be decoded: it is {what}.")


@contextmanager
def _one_sentence(clip: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a VideoError."""
    try:
        yield
    except VideoError:
        raise
    except ImportError as error:
        raise VideoError(
            f"{clip.name} cannot be decoded without {error.name}: pip install 'imageio[pyav]' pillow."
        ) from error
    except PermissionError as error:
        raise VideoError(f"{clip.name} cannot be read ({reason_of(error)}).", "unreadable") from error
    except (
        Exception
    ) as error:  # decoders raise a dozen types of their own; every one of them means: this clip is broken
        raise VideoError(f"{clip.name} cannot be decoded ({type(error).__name__}: {error}).") from error


def _guarded(clip: Path, picture: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    def guarded() -> np.ndarray:
        with _one_sentence(clip):
            return picture()

    return guarded


# --- films --------------------------------------------------------------------------------------------------


def _decode_film(clip: Path) -> Iterator[Frame]:
    import av

    with ExitStack() as opened:
        # FFmpeg takes names in UTF-8 alone; Python opens the others.
        source = str(clip) if printable(str(clip)) == str(clip) else opened.enter_context(clip.open("rb"))
        container = opened.enter_context(av.open(source, metadata_errors="replace"))
        if not container.streams.video:
            raise VideoError(f"{clip.name} has no picture track.", "no film")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        step, offset, before = (1 / rate if rate else 1.0), 0.0, None
        for frame in _decoded(container, stream):
            time = (
                frame.time if frame.time is not None else (0.0 if before is None else before - offset + step)
            )
            if before is not None and time + offset <= before:  # films joined end to end start to count again
                offset = before + step - time
            before = time + offset
            matrix = _display_matrix(frame)
            yield Frame(
                before,
                _Picture(clip, stream, frame, matrix),
                _aspect(stream, frame, matrix),
                frame.is_corrupt,
            )


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream, with their alpha where it is stored beside the pictures."""
    import av

    codec = stream.codec_context.name
    if codec not in VPX or stream.metadata.get("alpha_mode") != "1" or VPX[codec] not in av.codecs_available:
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(VPX[codec], "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the matrix that a stored frame is shown through: x' = a x + c y, y' = b x + d y."""
    data = next((bytes(entry) for entry in frame.side_data if entry.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = struct.unpack("=5i", data[:20])
    return (a, b, c, d)


def _lies(matrix: tuple[int, int, int, int]) -> bool:
    """Whether a matrix turns a frame on its side; odd angles count as the nearest right one."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A stored frame `H W C` as it is shown: turned, mirrored."""
    a, b, c, d = matrix
    if _lies(matrix):
        picture, (right, down) = picture.transpose(1, 0, 2), (c, b)
    else:
        right, down = a, d
    return picture[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _aspect(stream: Any, frame: Any, matrix: tuple[int, int, int, int]) -> float:
    """Width of a pixel over its height, as shown."""
    found = getattr(frame, "sample_aspect_ratio", None) or stream.sample_aspect_ratio
    aspect = float(found) if found and found > 0 else 1.0
    return 1 / aspect if _lies(matrix) else aspect


class _Picture:
    """The conversion of one film frame, done when it is asked for."""

    def __init__(self, clip: Path, stream: Any, frame: Any, matrix: tuple[int, int, int, int]) -> None:
        self.clip, self.stream, self.frame, self.matrix = clip, stream, frame, matrix

    def __call__(self) -> np.ndarray:
        frame = self.frame
        transfer = hdr.TRANSFERS.get(
            int(getattr(frame, "color_trc", 0) or self.stream.codec_context.color_trc or 0)
        )
        if transfer:
            matrix = {"src_colorspace": "BT2020"} if int(frame.colorspace) == UNSPECIFIED else {}
            picture = hdr.to_sdr(frame.to_ndarray(format="rgb48le", **matrix), transfer)
        elif has_alpha(frame.format):
            picture = on_white(frame.to_ndarray(format="rgba"))
        else:
            picture = frame.to_ndarray(format="rgb24")
        return upright(picture, self.matrix)


def has_alpha(pixel_format: Any) -> bool:
    """Whether a pixel format may hold transparent pixels."""
    return pixel_format.name == "pal8" or any(component.is_alpha for component in pixel_format.components)


def on_white(picture: np.ndarray) -> np.ndarray:
    """`H W 4` uint8 -> `H W 3`, laid on white."""
    alpha = picture[..., 3:].astype(np.uint16)
    mixed = picture[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


# --- animations and folders of frames -----------------------------------------------------------------------


def _decode_animation(clip: Path) -> Iterator[Frame]:
    from PIL import Image, ImageSequence

    with Image.open(clip) as image:
        if getattr(image, "n_frames", 1) < 2:
            raise VideoError(f"{clip.name} is a still image.", "no film")
        turn = _turn(image)
        milliseconds = 0  # summed as whole numbers, so that cutting a clip again finds the same times
        for frame in ImageSequence.Iterator(image):
            frame.load()
            picture = still_pixels(frame, turn)
            yield Frame(milliseconds / 1000, lambda picture=picture: picture)
            milliseconds += round(
                frame.info.get("duration") or 100
            )  # a duration of 0 is shown as 100 ms by browsers


def _decode_folder(clip: Path) -> Iterator[Frame]:
    from PIL import Image

    size, frames = None, frame_files(clip)
    jumps = frames_after_gaps(frames)
    for path in frames:
        if what := sniff(path):
            raise VideoError(f"{clip.name}: {path.name} is {what}.")
        with Image.open(path) as image:
            picture = still_pixels(image, _turn(image))
        found = (picture.shape[1], picture.shape[0])
        size = size or found
        if found != size:
            sizes = [f"{width}x{height}" for width, height in (found, size)]
            raise VideoError(f"{clip.name}: {path.name} is {sizes[0]}, the frames before it are {sizes[1]}.")
        yield Frame(None, lambda picture=picture: picture, jump=path in jumps)


def _turn(image: Any) -> int:
    """EXIF orientation, 1..8; 1 where there is none, or none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture is not broken because its notes are
        return 1


def still_pixels(image: Any, turn: int = 1) -> np.ndarray:
    """A Pillow image as it is shown, `H W 3` uint8. `turn`: its EXIF orientation, 1..8."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        pixels = _wide_grey(image)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        pixels = on_white(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image.convert("RGB"))
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    return np.asarray(Image.fromarray(pixels).transpose(methods[turn])) if turn in methods else pixels


def _wide_grey(image: Any) -> np.ndarray:
    """Grey of 16 bits or more, where Pillow's own conversion would cut everything above 255 to white."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = values * (255 if values.max(initial=0) <= 1 else 1)
    else:
        values = values / 257
    grey = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(np.asarray(image) == transparent, 255, grey).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
