"""The fuzz benchmark: a few cases find nothing, and a reader that is wrong is found out."""

from __future__ import annotations

import csv

import pytest
from latent_physics.benchmarks.data import fuzz
from latent_physics.methods.labels import llm
from latent_physics.training.data import captions, finding


def wrong(results: dict) -> dict[str, int]:
    return {
        word: sum(counts[word] for counts in results.values())
        for word in ("tracebacks", "lost", "another's caption")
    }


def test_a_few_cases_find_nothing_and_are_counted():
    results = fuzz.fuzz(cases=60, seed=1, seconds=300)
    assert wrong(results) == {"tracebacks": 0, "lost": 0, "another's caption": 0}
    assert {kind: counts["cases"] for kind, counts in results.items()} == {
        "films": 24,
        "lists": 18,
        "captions": 6,
        "answers": 12,
    }
    assert all(counts["read"] + counts["refused"] == counts["cases"] for counts in results.values())
    assert "            60" in fuzz.table(results).splitlines()[-1]


def test_the_time_is_bounded():
    assert sum(counts["cases"] for counts in fuzz.fuzz(cases=1000, seed=0, seconds=0).values()) == 0


def test_a_csv_reader_that_closes_quotes_itself_is_found_out(monkeypatch):
    """Python's reader, unless it is told to be strict, takes the next rows for part of a cell."""

    def lenient(lines, place, delimiter):
        reader = csv.reader(iter(lines[place:]), delimiter=delimiter)
        return next(reader, []), max(1, reader.line_num)

    monkeypatch.setattr(captions, "_record", lenient)
    monkeypatch.setattr(fuzz, "SHARES", {"films": 0, "lists": 1, "captions": 0, "answers": 0})
    assert wrong(fuzz.fuzz(cases=400, seed=0, seconds=300))["lost"] > 0


def test_a_reader_that_leaves_out_names_but_not_their_captions_is_found_out(monkeypatch):
    def shifted(path):
        found = captions.read_list(path)
        if found.left_out:
            found.texts = dict(zip(found.texts, [*list(found.texts.values())[1:], ""]))
        return found

    monkeypatch.setattr(fuzz, "read_list", shifted)
    monkeypatch.setattr(fuzz, "SHARES", {"films": 0, "lists": 1, "captions": 0, "answers": 0})
    assert wrong(fuzz.fuzz(cases=100, seed=0, seconds=300))["another's caption"] > 0


@pytest.mark.parametrize("kind", ["films", "captions", "answers"])
def test_what_ends_a_run_is_found_out(monkeypatch, kind):
    monkeypatch.setattr(fuzz, "SHARES", {name: float(name == kind) for name in fuzz.KINDS})
    if kind == "films":
        monkeypatch.setattr(finding, "FILM_SUFFIXES", frozenset())
        monkeypatch.setattr(finding, "ANIMATION_SUFFIXES", frozenset())
        assert wrong(fuzz.fuzz(cases=10, seed=0, seconds=300))["lost"] == 10
        return
    if kind == "captions":
        monkeypatch.setattr(captions, "read_text", lambda path: path.read_text(encoding="utf-8"))
    else:
        monkeypatch.setattr(llm, "clean", lambda text: text)
    results = fuzz.fuzz(cases=200, seed=0, seconds=300)
    assert wrong(results)["tracebacks"] > 0
