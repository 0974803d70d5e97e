"""Reading text that people wrote with any editor: UTF-8 or UTF-16, with a byte order mark or without; and
files that are not what their name says."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from .left_out import VideoError, reason_of

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SNIFFED_BYTES = 1024


def read_text(path: Path) -> str:
    """A text file's content. Raises VideoError where it cannot be read, is a stand-in (`stand_in`), or in no
    known encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VideoError(f"{path.name} cannot be read ({reason_of(error)}).", "unreadable") from error
    if what := stand_in(data):
        raise VideoError(f"{path.name} is {what}.")
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise VideoError(f"{path.name} is not UTF-8 or UTF-16 text; save it as UTF-8.") from error


def encoding_of(data: bytes) -> str:
    """The encoding of a text: by its mark, or UTF-16 where every other byte of many is zero, or UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if len(data) % 2 == 0 and max(even, odd) > 0.2 * len(data) / 2 and min(even, odd) < 0.1 * max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


def stand_in(data: bytes) -> str | None:
    """Kind of a file that only stands for the real one: "an HTML page, ..."; None otherwise. `data`: its
    first bytes."""
    if not data:
        return None
    if data.startswith(LFS_POINTER):
        return "a git-lfs pointer, not the file itself: run git lfs pull"
    start = data[:SNIFFED_BYTES].lstrip(codecs.BOM_UTF8 + b" \t\r\n").lower()
    if re.match(rb"<(!doctype html|html|head|body)\b", start) or (
        start.startswith(b"<?xml") and b"<html" in start
    ):
        return "an HTML page, saved in place of the file: download it again"
    if re.match(rb"<\?xml[^>]*>\s*<error\b", start):
        return "a server's error message, saved in place of the file: download it again"
    return None


def sniff(path: Path) -> str | None:
    """`stand_in` of a file on disk. Raises OSError."""
    with path.open("rb") as file:
        return stand_in(file.read(SNIFFED_BYTES))


def one_line(text: str) -> str:
    """A caption as the text encoders take it: one line, without control characters and halves of surrogate
    pairs."""
    kept = "".join(
        " " if letter.isspace() else letter if letter.isprintable() or letter in JOINERS else ""
        for letter in text
    )
    return " ".join(kept.encode("utf-8", "replace").decode("utf-8").split())


JOINERS = frozenset("\u200c\u200d")
"""Not printable by themselves, but parts of words and emoji."""
