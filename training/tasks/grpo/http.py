"""A reward behind a web address: clips go out as JSON with mp4 files in base64, scores come back."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ...console import TrainingError
from ...loop.task import Paused
from ..preview import encode_video

WAIT = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""


def check_url(url: str) -> None:
    """Raises TrainingError for what is no web address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TrainingError(f"url of the reward http is {url!r}; write http://HOST:PORT/PATH.")


def judge_by_http(
    url: str, frames: Tensor, prompts: Sequence[str], fps: float, *, timeout: float = 60.0, retries: int = 3
) -> Tensor:
    """Scores `B` of frames `B 3 T H W` in [0, 1].

    POSTs {"clips": [{"prompt", "fps", "video"}]}, where video is an mp4 in base64, and reads
    {"scores": [number, ...]}. Raises Paused, with the last failure, where every attempt fails.
    """
    clips = [
        {"prompt": prompt, "fps": fps, "video": base64.b64encode(encode_video(clip, fps)).decode("ascii")}
        for clip, prompt in zip(frames, prompts)
    ]
    body = json.dumps({"clips": clips}).encode()
    failure = ""
    for attempt in range(retries):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            return _scores(url, timeout, body, len(prompts))
        except (OSError, ValueError) as error:
            failure = str(getattr(error, "reason", error)) or type(error).__name__
    raise Paused(
        f"the reward at {url} failed {retries} times ({failure}); the state is saved: start "
        "it again, then run the same command."
    )


def _scores(url: str, timeout: float, body: bytes, count: int) -> Tensor:
    """One attempt. Raises OSError or ValueError."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        found = json.loads(answer.read())
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(f'its answer is not {{"scores": [...]}} with {count} numbers')
    values = torch.tensor([float(score) for score in scores])
    if not torch.isfinite(values).all():
        raise ValueError("its scores are not finite")
    return values
