"""Cuts between scenes, found by PySceneDetect: a window that spans one would teach a jump that nothing
made."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from ..console import TrainingError
from .decoding import Frame

SMALL = 256
"""Frames are looked at in at most this many pixels a side; cuts are seen in less."""
ABSENT = (
    "scenes are found by scenedetect, which is not installed: pip install 'scenedetect[opencv-headless]', or "
    "leave scenes out and give films that are cut already."
)


def check_scenes() -> None:
    """Raises TrainingError, in one sentence, where scenedetect or its OpenCV is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("scenedetect", "cv2")):
        raise TrainingError(ABSENT)


def scene_starts(frames: Iterable[Frame]) -> tuple[int, ...]:
    """Numbers of the frames with which a new scene begins, ascending; 0, the clip's own start, is not among
    them.

    By scenedetect's AdaptiveDetector: the change of hue, saturation and brightness against that of the frames
    around it, so that fast motion is no cut. Raises TrainingError where it is not installed, VideoError where
    a frame cannot be decoded.
    """
    check_scenes()
    from fractions import Fraction

    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector, found, time = AdaptiveDetector(min_scene_len=1), [], None
    for number, frame in enumerate(frames):
        picture = frame.picture()
        step = max(1, -(-max(picture.shape[:2]) // SMALL))
        time = FrameTimecode(number, fps=Fraction(25))  # the rate only names frames
        found += detector.process_frame(time, picture[::step, ::step, ::-1].copy())
    if time is not None:
        found += detector.post_process(time)
    return tuple(sorted({cut.frame_num for cut in found} - {0}))
