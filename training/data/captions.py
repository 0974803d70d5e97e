"""Captions: a text file beside a clip, the clip's own name, or a list: JSONL, OpenVid's CSV, WISA-80K's
JSON."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..console import TrainingError
from .finding import ANIMATION_SUFFIXES, FILM_SUFFIXES
from .left_out import LeftOut, VideoError
from .text import one_line, read_text

PATH_KEYS = (
    "video", "path", "file", "file_name", "video_path", "video_name", "filename", "videoid", "video_id", "id",
)  # fmt: skip
"""Columns that may name the video, the first that is there counts. OpenVid: video; WISA: video_name."""
CAPTION_KEYS = ("caption", "text", "prompt", "captions", "refined_caption", "description")
"""Columns that may hold the caption. OpenVid: caption; WISA: captions (a string, or a mapping of several)."""
SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")
"""Tried first, in this order, for a name without a suffix."""
DELIMITERS = ",;\t"


@dataclass
class CaptionList:
    """A list's captions, and the rows that could not be used."""

    texts: dict[Path, str] = field(default_factory=dict)
    """Video -> caption."""
    left_out: list[LeftOut] = field(default_factory=list)


# --- beside a clip ------------------------------------------------------------------------------------------


def caption_file(clip: Path) -> Path:
    """Path of a clip's caption, if it has one: beside it, under the same name."""
    return clip.with_name(clip.name + ".txt") if clip.is_dir() else clip.with_suffix(".txt")


def caption_of(clip: Path) -> tuple[str, str]:
    """The clip's caption and where it came from: "file" (same name, .txt) or "name" (the file's own name,
    made readable).

    Raises VideoError where the .txt is empty or cannot be read.
    """
    beside = caption_file(clip)
    if not os.path.lexists(beside):
        name = clip.name if clip.is_dir() else clip.stem
        return re.sub(r"[\s_\-.]+", " ", one_line(name)).strip(), "name"
    caption = one_line(read_text(beside))
    if not caption:
        message = f"{beside.name} is empty; write the caption into it, or delete it to use the file's name."
        raise VideoError(message, "no caption")
    return caption, "file"


# --- lists --------------------------------------------------------------------------------------------------


def read_list(path: str | Path, videos: str | Path | None = None) -> CaptionList:
    """Video -> caption from a .jsonl, .json or .csv file; rows that are broken, or name no caption or no
    video that exists, are left out and named.

    Relative names are looked up in `videos`, by default the list's own folder, and names without a folder
    below it too; names without a suffix get the one that exists. Raises TrainingError where the file cannot
    be read, or no row can be used.
    """
    path = Path(path)
    folder = Path(videos) if videos else path.parent
    below = Below(folder)
    if not path.is_file():
        raise TrainingError(f"{path} does not exist.")
    found = CaptionList()
    number = 0
    for number, row in read_rows(path):
        try:
            video, caption = _entry(f"{path.name}, entry {number},", row, below)
        except VideoError as error:
            found.left_out.append(LeftOut.because(path, error))
        else:
            found.texts[video] = caption
    if not found.texts:
        reasons = [entry for entry in found.left_out if entry.kind != "missing"]
        if reasons or not number:
            raise TrainingError(
                reasons[0].reason if reasons else f"{path.name} must hold a list of entries; it holds none."
            )
        raise TrainingError(
            f"none of the {number} videos listed in {path.name} is in {folder}; give their folder with "
            f"--videos."
        )
    return found


def _entry(where: str, row: Any, below: Below) -> tuple[Path, str]:
    """(video, caption) of one row; raises VideoError where it has none. `where` starts the sentence."""
    if isinstance(row, VideoError):
        raise VideoError(f"{where} cannot be read: {row}")
    if not isinstance(row, Mapping):
        raise VideoError(
            f"{where} is {str(row)!r:.40}; the file must hold a list of entries, each with a video and a "
            f"caption."
        )
    name, caption = pick(row, PATH_KEYS), words(pick(row, CAPTION_KEYS))
    keys = ", ".join(map(str, row))
    if name is None:
        raise VideoError(f"{where} names no video; its keys are {keys:.200}.", "missing")
    if not caption:
        raise VideoError(f"{where} names no caption; its keys are {keys:.200}.", "no caption")
    video = locate(below.folder, str(name)) or below.find(str(name).strip(), where)
    if video is None:
        raise VideoError(f"{where} names {name!s:.80}, which is not in {below.folder}.", "missing")
    return video, caption


class Below:
    """Videos in the folders below one, by name: WISA-80K's lie in numbered folders that its list does not
    name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, list[Path]] | None = None

    def find(self, name: str, where: str) -> Path | None:
        """The one video of that file name, or None. Raises VideoError where there are several; `where` starts
        the sentence."""
        if self._found is None:
            self._found = self._look()
        found = self._found.get(name, [])
        if len(found) > 1:
            raise VideoError(
                f"{where} names {name!s:.80}, which is in {found[0].parent} and in {found[1].parent}; write "
                f"the folder before the name.",
                "missing",
            )
        return found[0] if found else None

    def _look(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.folder):
            for name in sorted(names):
                if Path(name).suffix.lower() in FILM_SUFFIXES | ANIMATION_SUFFIXES:
                    found.setdefault(name, []).append(Path(folder) / name)
        return found


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Entries with their numbers, from 1; a VideoError in place of an entry that cannot be parsed. Raises
    TrainingError for a file that cannot."""
    try:
        text = read_text(path)
    except VideoError as error:
        raise TrainingError(str(error)) from error
    readers = {".csv": csv_rows, ".jsonl": jsonl_rows, ".json": json_rows}
    if path.suffix.lower() not in readers:
        raise TrainingError(f"{path.name} is no caption list; it must end in .jsonl, .json or .csv.")
    try:
        yield from enumerate(readers[path.suffix.lower()](text), 1)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path.name} cannot be read: {' '.join(str(error).split())}.") from error


def jsonl_rows(text: str) -> Iterator[Any]:
    """One JSON value a line. Lines end at line feeds alone: U+2028 and U+0085 are letters of a caption."""
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_entry_once)
            except (ValueError, RecursionError) as error:
                yield VideoError(f"{error}.")


def json_rows(text: str) -> Iterator[Any]:
    """A list of entries, or a mapping of a video to its entry. Raises ValueError for anything else."""
    rows = json.loads(text, object_pairs_hook=_entry_once)
    if isinstance(rows, VideoError):
        raise rows
    if isinstance(rows, dict):
        return (
            {"id": key, **value} if isinstance(value, dict) else {"id": key, "caption": value}
            for key, value in rows.items()
        )
    if not isinstance(rows, list) or not any(isinstance(row, (dict, VideoError)) for row in rows):
        raise ValueError("it must hold a list of entries, each with a video and a caption")
    return iter(rows)


def _entry_once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | VideoError:
    """A JSON object; an error in place of one that says a thing twice: rows that ran into one another would
    swap captions."""
    entry = dict(pairs)
    return entry if len(entry) == len(pairs) else VideoError("it has a key twice.")


def csv_rows(text: str) -> Iterator[dict[str, str] | VideoError]:
    """Rows under the names of the first. A cell in quotes may hold line breaks.

    After a row whose quotes do not close, reading starts again at the next line, so that the rest is not
    taken for its caption.
    """
    lines = _lines(text)
    place, header, delimiter = 0, None, _delimiter(lines[0] if lines else "")
    while place < len(lines):
        cells, taken = _record(lines, place, delimiter)
        place += taken
        if isinstance(cells, VideoError):
            yield cells
        elif header is None:
            header = cells
        elif len(cells) > len(header):
            yield VideoError(
                f"it has {len(cells)} cells under {len(header)} names; put a caption with commas in quotes."
            )
        elif any(cell.strip() for cell in cells):
            yield dict(itertools.zip_longest(header, cells, fillvalue=""))


def _lines(text: str) -> list[str]:
    """Lines with their ends, which are those of the csv module alone."""
    return re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text.replace("\0", ""))


def _delimiter(header: str) -> str:
    """Separator of cells: Excel writes semicolons where commas are decimal points."""
    return max(DELIMITERS, key=header.count)


def _record(lines: Sequence[str], place: int, delimiter: str) -> tuple[list[str] | VideoError, int]:
    """(cells of the record that starts at a line, number of lines it takes); one line where it is broken."""
    reader = csv.reader(
        (lines[index] for index in range(place, len(lines))), delimiter=delimiter, strict=True
    )
    try:
        return next(reader, []), max(1, reader.line_num)
    except csv.Error as error:
        return VideoError(f"{error}."), 1


def pick(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The first key's value that is there and not empty."""
    lower = {str(key).strip().lower(): value for key, value in row.items()}
    return next((lower[key] for key in keys if not _is_empty(lower.get(key))), None)


def _is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, (dict, list)) and not value)
    )


def words(caption: Any) -> str:
    """A caption as text; WISA keeps several in a mapping, of which the longest describes the most."""
    if isinstance(caption, Mapping):
        caption = max((str(value) for value in caption.values() if value is not None), key=len, default="")
    if isinstance(caption, list):
        caption = " ".join(map(str, caption))
    return "" if caption is None else one_line(str(caption))


def locate(folder: Path, name: str) -> Path | None:
    """The video of that name, with one of the usual suffixes where it has none; a folder of frames counts
    too."""
    path = folder / name.strip()
    if path == folder or "\0" in name:
        return None
    rest = sorted((FILM_SUFFIXES | ANIMATION_SUFFIXES) - set(SUFFIXES))
    candidates = (
        [path, *(path.with_name(path.name + suffix) for suffix in (*SUFFIXES, *rest))] if path.name else []
    )
    found = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    return found or (path if os.path.isdir(path) else None)
