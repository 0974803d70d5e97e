"""Captions and lists as editors, spreadsheets and data sets write them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from latent_physics.training.console import TrainingError
from latent_physics.training.data.captions import caption_of, read_list
from latent_physics.training.data.left_out import VideoError, count_kinds

CAPTIONS = {"a.mp4": "a red ball, falling", "b.mp4": "\u6c34 flows — slowly", "c.mp4": 'the "hot" pan'}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in CAPTIONS:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def as_read(folder: Path, name: str) -> dict[str, str]:
    return {path.name: caption for path, caption in read_list(folder / name).texts.items()}


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "marked utf-16-be"]
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_encoding_of_unicode_is_read(folder, encoding, ending):
    """Python's utf-16 writes a mark; -le and -be write none, as some exports do."""
    mark = codecs.BOM_UTF16_BE if encoding.startswith("marked") else b""
    encoding = encoding.removeprefix("marked ")
    quoted = {name: text.replace('"', '""') for name, text in CAPTIONS.items()}
    rows = ["video,caption", *(f'{name},"{text}"' for name, text in quoted.items())]
    (folder / "list.csv").write_bytes(mark + (ending.join(rows) + ending).encode(encoding))
    assert as_read(folder, "list.csv") == CAPTIONS
    lines = [
        json.dumps({"video": name, "caption": text}, ensure_ascii=False) for name, text in CAPTIONS.items()
    ]
    (folder / "list.jsonl").write_bytes(mark + ending.join(lines).encode(encoding))
    assert as_read(folder, "list.jsonl") == CAPTIONS
    (folder / "list.json").write_bytes(mark + json.dumps(CAPTIONS).encode(encoding))
    assert as_read(folder, "list.json") == CAPTIONS
    (folder / "b.txt").write_bytes(mark + ("a ball" + ending + "bounces" + ending).encode(encoding))
    assert caption_of(folder / "b.mp4") == ("a ball bounces", "file")


def test_other_code_pages_are_refused_and_not_guessed(folder):
    (folder / "a.txt").write_bytes("caf\u00e9".encode("cp1252"))
    with pytest.raises(VideoError, match=r"a\.txt is not UTF-8 or UTF-16 text"):
        caption_of(folder / "a.mp4")
    (folder / "list.csv").write_bytes("video,caption\na.mp4,caf\u00e9\n".encode("cp1252"))
    with pytest.raises(TrainingError, match=r"list\.csv is not UTF-8"):
        read_list(folder / "list.csv")


def test_line_breaks_inside_a_quoted_cell_belong_to_it(folder):
    (folder / "list.csv").write_bytes(
        b'video,caption\r\na.mp4,"a ball\r\nbounces,\n\ntwice"\r\nb.mp4,ice\r\n'
    )
    assert as_read(folder, "list.csv") == {"a.mp4": "a ball bounces, twice", "b.mp4": "ice"}


def test_openvids_list_is_read_as_it_is_published(folder):
    """Its ten columns, quotes doubled within quotes, and captions of several lines."""
    header = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion"
    rows = [
        f"{header},frame,fps,seconds,new_id",
        'a.mp4,"In the video, a ""ball"" rolls.\n\nIt stops, then falls.",5.1,3.2,0.99,static,150,30.0,5.0,1',
        "b.mp4,Water boils.,4.9,,0.98,pan_left,90,30.0,3.0,2",
        'gone.mp4,"Not\nhere",4.9,1,0.98,zoom_in,90,30.0,3.0,3',
    ]
    (folder / "OpenVid-1M.csv").write_bytes("\n".join(rows).encode())
    assert as_read(folder, "OpenVid-1M.csv") == {
        "a.mp4": 'In the video, a "ball" rolls. It stops, then falls.',
        "b.mp4": "Water boils.",
    }
    (reason,) = [entry.reason for entry in read_list(folder / "OpenVid-1M.csv").left_out]
    assert reason.startswith("OpenVid-1M.csv, entry 3, names gone.mp4")


def test_wisas_list_is_read_and_its_numbered_folders_are_looked_through(folder):
    """Its rows name a file, which lies in one of the folders 0, 1, 2, ..."""
    for place in ("0/melt.mp4", "1/bounce.mp4", "0/twice.mp4", "1/twice.mp4", "0/frames.png"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(b"x")
    rows = [
        {"video_name": "melt.mp4", "captions": "Ice melts\nin the sun.", "label": "melting"},
        {"video_name": "bounce.mp4", "captions": {"short": "A ball.", "long": "A ball bounces twice."}},
        {"video_name": "a.mp4", "captions": "A ball.", "physical_laws": ["gravity"]},
        {"video_name": "twice.mp4", "captions": "Which?"},
        {"video_name": "0/twice.mp4", "captions": "This one."},
        {"video_name": "frames.png", "captions": "No film."},
    ]
    (folder / "wisa-80k.json").write_text(json.dumps(rows))
    found = read_list(folder / "wisa-80k.json")
    assert {str(path.relative_to(folder)): text for path, text in found.texts.items()} == {
        "0/melt.mp4": "Ice melts in the sun.",
        "1/bounce.mp4": "A ball bounces twice.",
        "a.mp4": "A ball.",
        "0/twice.mp4": "This one.",
    }
    assert "names twice.mp4, which is in" in found.left_out[0].reason
    assert "names frames.png, which is not in" in found.left_out[1].reason


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_letters_that_python_takes_for_line_ends_are_none(folder, letter):
    line = json.dumps({"video": "a.mp4", "caption": f"a{letter}ball"}, ensure_ascii=False).replace(
        "\\u000b", "\x0b"
    )
    (folder / "list.jsonl").write_text(
        line + "\n" + '{"video": "b.mp4", "caption": "ice"}\n', encoding="utf-8", newline=""
    )
    found = as_read(folder, "list.jsonl")
    assert found["b.mp4"] == "ice"
    if letter > "\x1f":  # a raw control character is no JSON
        assert found["a.mp4"] == "a ball"
    (folder / "list.csv").write_text(
        f"video,caption\na.mp4,a{letter}ball\nb.mp4,ice\n", encoding="utf-8", newline=""
    )
    assert as_read(folder, "list.csv") == {"a.mp4": "a ball", "b.mp4": "ice"}


def test_a_quote_that_is_never_closed_takes_no_other_rows_with_it(folder):
    (folder / "list.csv").write_text('video,caption\na.mp4,"a ball\nb.mp4,"ice"\nc.mp4,steam\n')
    found = read_list(folder / "list.csv")
    assert {path.name: text for path, text in found.texts.items()} == {"b.mp4": "ice", "c.mp4": "steam"}
    assert "entry 1, cannot be read" in found.left_out[0].reason


def test_commas_that_stand_outside_quotes_cut_no_caption(folder):
    (folder / "list.csv").write_text("video,caption\na.mp4,a ball, red, falls\nb.mp4,ice\n")
    found = read_list(folder / "list.csv")
    assert [path.name for path in found.texts] == ["b.mp4"]
    assert "4 cells under 2 names" in found.left_out[0].reason


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_of_other_countries_are_read(folder, delimiter):
    (folder / "list.csv").write_text(f"Video{delimiter} Caption \na.mp4{delimiter}ice\n")
    assert as_read(folder, "list.csv") == {"a.mp4": "ice"}


def test_rows_that_cannot_be_used_are_left_out_and_counted(folder):
    rows = [
        {"video": "a.mp4", "caption": "ice"},
        {"video": "b.mp4", "caption": " \n"},
        {"video": "b.mp4", "caption": None},
        {"caption": "of nothing"},
        {"video": "gone.mp4", "caption": "x"},
        {"video": "x" * 5000, "caption": "x"},
        {"video": "nul\0.mp4", "caption": "x"},
        {},
        7,
    ]
    lines = [json.dumps(row) for row in rows] + ['{"video": "c.mp4", "capt', "[" * 5000]
    for name, text in {"list.jsonl": "\n".join(lines), "list.json": json.dumps(rows)}.items():
        (folder / name).write_text(text)
        found = read_list(folder / name)
        assert {path.name: caption for path, caption in found.texts.items()} == {"a.mp4": "ice"}
        assert len(found.left_out) == (10 if name == "list.jsonl" else 8)
        assert "missing" in count_kinds(found.left_out)
        assert "no caption" in count_kinds(found.left_out)
    (folder / "list.csv").write_text("video,caption\na.mp4,ice\nb.mp4,\n\n,\n,steam\ngone.mp4,x\n")
    found = read_list(folder / "list.csv")
    assert [path.name for path in found.texts] == ["a.mp4"]
    assert count_kinds(found.left_out) == "2 missing, 1 no caption"


@pytest.mark.parametrize(
    "content",
    ["<!DOCTYPE html><p>Sign in", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"],
)
def test_what_only_stands_for_a_text_is_called_what_it_is(folder, content):
    (folder / "list.csv").write_text(content)
    (folder / "a.txt").write_text(content)
    with pytest.raises(TrainingError, match=r"list\.csv is (an HTML page|a git-lfs pointer)"):
        read_list(folder / "list.csv")
    with pytest.raises(VideoError, match=r"a\.txt is (an HTML page|a git-lfs pointer)"):
        caption_of(folder / "a.mp4")


@pytest.mark.parametrize("name", ["list.jsonl", "list.json"])
def test_rows_that_ran_into_one_another_swap_no_captions(folder, name):
    """A gap in the file took the end of the first row and the start of the second; JSON lets the last caption
    win."""
    rows = [
        '{"video": "a.mp4", "caption": "a b", "caption": "ice"}',
        '{"video": "c.mp4", "caption": "steam"}',
    ]
    (folder / name).write_text("\n".join(rows) if name == "list.jsonl" else f"[{', '.join(rows)}]")
    found = read_list(folder / name)
    assert {path.name: text for path, text in found.texts.items()} == {"c.mp4": "steam"}
    assert "has a key twice" in found.left_out[0].reason
    (folder / "list.json").write_text('{"a.mp4": "ice", "a.mp4": "steam"}')
    with pytest.raises(TrainingError, match="it has a key twice"):
        read_list(folder / "list.json")


def test_halves_of_surrogate_pairs_and_control_characters_are_no_caption(folder):
    (folder / "list.jsonl").write_text(
        r'{"video": "a.mp4", "caption": "a \ud83d ball\u0000 \u200b\ud83d\ude00"}'
    )
    assert as_read(folder, "list.jsonl") == {"a.mp4": "a ball \U0001f600"}


def test_a_list_may_name_folders_of_frames(folder):
    (folder / "shot").mkdir()
    (folder / "list.jsonl").write_text(
        '{"video": "shot", "caption": "ice"}\n{"video": "..", "caption": "all"}'
    )
    assert as_read(folder, "list.jsonl")["shot"] == "ice"
