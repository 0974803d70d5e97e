"""The benchmark of reading: what is read in the meantime costs no time, and every way reads the same
clips."""

from __future__ import annotations

import re
import time

import pytest
import torch
from latent_physics.benchmarks.data import reading
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.loop.ahead import drawn_ahead


def test_a_step_is_counted_without_the_first_and_reading_ahead_hides(monkeypatch):
    def slow(number):
        time.sleep(0.2 if number else 1.0)

    with drawn_ahead(slow, 0, 5, 0) as following:
        assert reading.seconds(following, 5, 0.2) == pytest.approx(0.4, rel=0.25)
    with drawn_ahead(slow, 0, 5, 2) as following:
        assert reading.seconds(following, 5, 0.2) < 0.32


def test_a_dataloaders_micro_batches_are_the_loops(tmp_path):
    clips = TrainingClips(reading.make_clips(tmp_path / "c", 5, (4, 2, 2, 2), (3, 8)), batch=2, seed=1)

    def read(number):
        return clips.read(clips.chosen(number))

    with reading.loaded(read, 4, 1) as following:
        for number in range(4):
            found, expected = following(), read(number)
            assert found.names == expected.names
            assert torch.equal(found.latent, expected.latent)


def test_the_tables_have_a_row_for_every_way(monkeypatch, capsys):
    monkeypatch.setattr(reading, "LATENT", (4, 2, 2, 2))
    monkeypatch.setattr(reading, "TOKENS", (3, 8))
    monkeypatch.setattr(reading, "FEATURES", (4, 2, 2, 2))
    monkeypatch.setattr(reading, "loaded", lambda read, steps, workers: drawn_ahead(read, 0, steps, 0))
    assert reading.main(["--clips", "6", "--steps", "3", "--computing", "0.01", "--many", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if re.match(r"(files|shards) .* \d+\.\d\d$", line)]
    assert len(rows) == 8
    assert [row.split()[-1] for row in (rows[0], rows[4])] == ["1.00", "1.00"]
    assert "3 clips in 1 shards" in lines[-1]
