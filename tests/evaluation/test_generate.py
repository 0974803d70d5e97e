"""Generation: every clip once, through failures, deaths and kills of the sources."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from latent_physics.evaluation.comfy import ClipFailed, ServerGone
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.generate import Options, generate
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.video import probe, read_frames


def test_every_clip_is_made_once_by_several_sources(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b", "c"], runs=2)
    sources = [drawn(), drawn(), drawn()]
    manifest = Manifest(tmp_path, "own")
    outcome = generate(plan, manifest, sources)
    made = [key for source in sources for key in source.made]
    assert sorted(made) == sorted(job.key for job in plan.jobs())
    assert outcome.made == 12 + 12  # two baselines of six plain clips
    assert not generate(plan, Manifest(tmp_path, "own"), [drawn()]).made


def test_baselines_repeat_the_first_frame_and_shuffle_all(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a"]))
    films = {
        arm: read_frames(manifest.file_of(manifest.records[arm, "1", 1, 0]))
        for arm in ("plain", "static", "shuffled")
    }
    assert len({film.shape for film in films.values()}) == 1
    still = films["static"].astype(int)
    assert np.abs(still - still[:1]).max() <= 3
    assert np.abs(still[0] - films["plain"][0].astype(int)).mean() < 2
    plain, mixed = films["plain"].astype(int), films["shuffled"].astype(int)
    nearest = [int(np.abs(plain - frame).mean(axis=(1, 2, 3)).argmin()) for frame in mixed]
    assert sorted(nearest) == list(range(len(plain)))
    assert nearest != sorted(nearest)


def test_a_file_without_its_line_is_taken_over(tmp_path: Path, filled, make_plan, drawn) -> None:
    """What a kill between the two leaves: the file's name holds the digest of its job."""
    plan = make_plan("own", ["a", "b"])
    manifest = filled(plan)
    lines = manifest.path.read_text().splitlines(keepends=True)
    manifest.path.write_text("".join(lines[:1] + lines[2:]))
    source = drawn()
    generate(plan, Manifest(tmp_path, "own"), [source])
    assert source.made == []
    assert set(Manifest(tmp_path, "own").records) == set(manifest.records)


def test_a_broken_file_without_its_line_is_made_again(tmp_path: Path, filled, make_plan, drawn) -> None:
    plan = make_plan("own", ["a"], baselines=False)
    manifest = filled(plan)
    record = manifest.records["lamo", "1", 1, 0]
    manifest.file_of(record).write_bytes(b"half a film")
    lines = manifest.path.read_text().splitlines(keepends=True)
    manifest.path.write_text("".join(line for line in lines if '"lamo"' not in line))
    source = drawn()
    generate(plan, Manifest(tmp_path, "own"), [source])
    assert source.made == [record.key]


def test_a_deleted_clip_is_made_again(tmp_path: Path, filled, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b"])
    manifest = filled(plan)
    manifest.file_of(manifest.records["plain", "2", 1, 0]).unlink()
    source = drawn()
    generate(plan, Manifest(tmp_path, "own"), [source])
    assert source.made == [("plain", "2", 1, 0)]


def test_clips_of_another_graph_are_not_mixed(tmp_path: Path, filled, make_plan, drawn) -> None:
    plan = make_plan("own", ["a"])
    filled(plan)
    source = drawn()
    source.origin = lambda arm: drawn.origin(source, arm + " changed")
    with pytest.raises(EvaluationError, match="made with other settings"):
        generate(plan, Manifest(tmp_path, "own"), [source])


def test_a_source_that_dies_gives_its_clip_to_another(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b", "c"])
    dying, living = drawn(), drawn()

    def gone(*arguments) -> None:
        raise ServerGone("no answer")

    dying.make, dying.ready = gone, lambda: False
    living.ready = lambda: True
    generate(plan, Manifest(tmp_path, "own"), [dying, living], Options(patience=0.2))
    assert sorted(living.made) == sorted(job.key for job in plan.jobs())


def test_a_server_that_returns_works_on(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b"])
    source, calls = drawn(), []
    make = source.make

    def flaky(*arguments) -> None:
        calls.append(1)
        if len(calls) in (1, 3):
            raise ServerGone("restarting")
        make(*arguments)

    source.make = flaky
    generate(plan, Manifest(tmp_path, "own"), [source], Options(patience=30))
    assert sorted(source.made) == sorted(job.key for job in plan.jobs())


def test_no_source_left_is_one_sentence_and_the_rest_is_kept(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b"])
    source = drawn()
    source.ready = lambda: False
    with pytest.raises(EvaluationError, match="no server answers at drawn"):
        generate(plan, Manifest(tmp_path, "own"), [source])
    source.ready = lambda: not source.made
    make = source.make

    def once(*arguments) -> None:
        if source.made:
            raise ServerGone("dead")
        make(*arguments)

    source.make = once
    with pytest.raises(EvaluationError, match="3 clips are left and drawn no longer works"):
        generate(plan, Manifest(tmp_path, "own"), [source], Options(patience=0.1))
    assert len(Manifest(tmp_path, "own").records) == 1


def test_a_clip_that_fails_is_tried_again_and_then_reported(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b"], baselines=False)
    source, tries = drawn(), []
    make = source.make

    def failing(job, digest, attempt, target, progress) -> None:
        if job.key == ("lamo", "1", 1, 0):
            tries.append(attempt)
            raise ClipFailed("node 5: out of memory")
        make(job, digest, attempt, target, progress)

    source.make = failing
    outcome = generate(plan, Manifest(tmp_path, "own"), [source], Options(retries=2))
    assert tries == [0, 1, 2]
    assert outcome.failed == {"lamo, prompt 1, run 1, clip 0": "node 5: out of memory"}
    assert len(Manifest(tmp_path, "own").records) == 3


def test_the_first_clip_that_cannot_be_scored_ends_the_run(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b", "c"])
    source = drawn()
    check = Options(check=lambda record: "the clip is too short." if record.frames < 80 else None)
    with pytest.raises(EvaluationError, match="too short"):
        generate(plan, Manifest(tmp_path, "own"), [source], check)
    assert len(source.made) == 1


def test_too_small_a_disk_is_told_after_the_first_clip(tmp_path: Path, make_plan, drawn, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("latent_physics.evaluation.generate.shutil.disk_usage", lambda path: usage)
    with pytest.raises(EvaluationError, match=r"4 clips of .* MiB need .* GiB, and .* GiB are free"):
        generate(make_plan("own", ["a", "b"]), Manifest(tmp_path, "own"), [drawn()])


def test_a_stop_ends_after_the_clip_under_way(tmp_path: Path, make_plan, drawn) -> None:
    plan = make_plan("own", ["a", "b", "c"])
    source, begun = drawn(), threading.Event()
    make = source.make

    def slow(job, digest, attempt, target, progress) -> None:
        begun.set()
        for _ in range(200):
            threading.Event().wait(0.02)
            progress(0.5)
        make(job, digest, attempt, target, progress)

    source.make = slow
    outcome = generate(plan, Manifest(tmp_path, "own"), [source], stopping=begun.is_set)
    assert outcome.stopped
    assert not source.made
    assert not list(tmp_path.glob("clips/**/*.mp4"))


def test_written_clips_last_exactly_their_frames(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a"]), frames=80)
    facts = probe(manifest.file_of(manifest.records["plain", "1", 1, 0]))
    assert (facts.frames, facts.fps, facts.seconds) == (80, 16.0, 5.0)


def test_a_film_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match=r"a.mp4 is not a readable video"):
        probe(tmp_path / "a.mp4")
    with pytest.raises(EvaluationError, match=r"a.mp4 cannot be decoded"):
        read_frames(tmp_path / "a.mp4")
