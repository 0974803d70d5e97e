"""Lists of captioned videos: JSONL, OpenVid's CSV, WISA-80K's JSON. A folder with .txt files beside its videos needs none of
them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PATH_KEYS = ("video", "path", "file", "file_name", "video_path", "filename", "videoid", "video_id", "id")
"""Columns that may name the video, the first that is there counts. OpenVid: video; WISA: id or video."""
CAPTION_KEYS = ("caption", "text", "prompt", "captions", "refined_caption", "description")
"""Columns that may hold the caption. OpenVid: caption; WISA: captions (a mapping or a string)."""
SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")


class CaptionError(ValueError):
    """A list of captions cannot be used. The message is one sentence for the user."""


def read_captions(path: str | Path, videos: str | Path | None = None) -> dict[Path, str]:
    """Video -> caption from a .jsonl, .json or .csv file.

    Relative names are looked up in `videos`, by default the list's own folder; names without a suffix get the one that exists.
    Raises CaptionError where the file cannot be read, a line lacks its video or caption, or no listed video exists.
    """
    path = Path(path)
    folder = Path(videos) if videos else path.parent
    if not path.is_file():
        raise CaptionError(f"{path} does not exist.")
    found: dict[Path, str] = {}
    listed = 0
    for number, row in rows_of(path):
        name, caption = pick(row, PATH_KEYS), pick(row, CAPTION_KEYS)
        if name is None or caption is None:
            what = "video" if name is None else "caption"
            raise CaptionError(f"{path.name}, entry {number}, names no {what}; its keys are {', '.join(map(str, row))}.")
        listed += 1
        video = locate(folder, str(name))
        if video is not None:
            found[video] = words(caption)
    if not found:
        raise CaptionError(f"none of the {listed} videos listed in {path.name} is in {folder}; give their folder with --videos.")
    return found


def rows_of(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Entries with their numbers, from 1. Raises CaptionError for a file that cannot be parsed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(text.splitlines()), 1)
            return
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(text)
            rows = [{"id": key, **value} for key, value in rows.items()] if isinstance(rows, dict) else rows
        else:
            raise CaptionError(f"{path.name} is no caption list; it must end in .jsonl, .json or .csv.")
    except (ValueError, OSError, csv.Error) as error:
        if isinstance(error, CaptionError):
            raise
        raise CaptionError(f"{path.name} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CaptionError(f"{path.name} must hold a list of entries, each with a video and a caption.")
    yield from enumerate(rows, 1)


def pick(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The first key's value that is there and not empty."""
    lower = {str(key).lower(): value for key, value in row.items()}
    return next((lower[key] for key in keys if lower.get(key) not in (None, "", {})), None)


def words(caption: Any) -> str:
    """A caption as text; WISA keeps several in a mapping, of which the longest describes the most."""
    if isinstance(caption, Mapping):
        caption = max(map(str, caption.values()), key=len)
    if isinstance(caption, list):
        caption = " ".join(map(str, caption))
    return " ".join(str(caption).split())


def locate(folder: Path, name: str) -> Path | None:
    """The video of that name, with one of the usual suffixes where it has none."""
    path = folder / name
    if path.is_file():
        return path
    return next((path.with_name(path.name + suffix) for suffix in SUFFIXES if path.with_name(path.name + suffix).is_file()), None)
