"""Video files of an evaluation: probing, reading, writing and cutting them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .errors import EvaluationError

SAME_BYTES = {"x264-params": "mbtree=0"}
"""Without x264's macroblock tree, which now and then makes other bytes from the same small frames."""
QUALITY = 10
"""x264's constant rate factor of clips written here: visually lossless, so that scorers see what the model
drew.
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Facts of a video file."""

    fps: float
    """Frames per second of the video stream."""
    frames: int
    """Number of frames."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seconds: float
    """Duration of the container, the number that ffprobe prints as format=duration."""


def probe(path: str | os.PathLike[str]) -> Probe:
    """Facts of a video file; frames are decoded and counted only if the container does not state their
    number.

    Raises EvaluationError for a file that is no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(1 for _ in container.decode(stream))
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            seconds = container.duration / av.time_base if container.duration else count / max(fps, 1e-9)
            found = Probe(fps=fps, frames=count, width=stream.width, height=stream.height, seconds=seconds)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise EvaluationError(
            f"{Path(path).name} is not a readable video ({error}); make it again."
        ) from error
    if not found.frames or not found.fps:
        raise EvaluationError(f"{Path(path).name} holds no frames or states no frame rate; make it again.")
    return found


def read_frames(path: str | os.PathLike[str], limit: int | None = None) -> np.ndarray:
    """The first `limit` frames (all of them by default), `T H W 3` uint8.

    Raises EvaluationError for a broken file.
    """
    import av

    frames = []
    try:
        if Path(path).suffix.lower() in (".webp", ".gif", ".png"):
            return _animation(Path(path))[:limit]
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == limit:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise EvaluationError(f"{Path(path).name} cannot be decoded ({error}); make it again.") from error
    if not frames:
        raise EvaluationError(f"{Path(path).name} holds no frame; make it again.")
    return np.stack(frames)


def _animation(path: Path) -> np.ndarray:
    """Frames of an animated image: PyAV reads no animated WebP."""
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def animation_fps(path: Path) -> float:
    """Frame rate of an animated image, from its mean frame duration; 0 if it states none."""
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        times = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            times.append(frame.info.get("duration") or 0)
    return 1000 * len(times) / sum(times) if sum(times) else 0.0


def write_video(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames (`H W 3` uint8 each, sides even) as H.264 in an mp4 file whose duration is exactly frames
    / fps.

    Raises EvaluationError if no frame is given or a side is odd, OSError if the disk is full.
    """
    import av

    stream = None
    with av.open(str(path), "w", format="mp4") as container:
        for frame in frames:
            if stream is None:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise EvaluationError(
                        f"frames are {width}x{height}; H.264 needs even sides: crop or resize them."
                    )
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream(
                    "libx264", rate=rate, options={"crf": str(QUALITY), "preset": "fast", **SAME_BYTES}
                )
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is None:
            raise EvaluationError(f"{Path(path).name} would hold no frame.")
        container.mux(stream.encode())
