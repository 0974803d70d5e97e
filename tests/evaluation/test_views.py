"""Views: links under the scorers' names, nothing else in their folders, and sentences for what does not
fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from latent_physics.evaluation import views
from latent_physics.evaluation.benchmarks import BENCHMARKS
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.plan import Prompt
from latent_physics.evaluation.views import build_views, check_names, fill

OWN = BENCHMARKS["own"]


def test_a_view_links_to_the_store(filled, make_plan) -> None:
    plan = make_plan("own", ["a ball.", "a cup"])
    manifest = filled(plan)
    counts = build_views(plan, OWN, manifest)
    assert counts == {f"{arm}-run_01": 2 for arm in plan.all_arms()}
    record = manifest.records["lamo", "1", 1, 0]
    view = manifest.folder / "views" / "own" / "lamo-run_01" / "1_a_ball.mp4"
    assert os.path.samefile(view, manifest.file_of(record))


def test_a_file_system_without_links_gets_copies(filled, make_plan, monkeypatch) -> None:
    def refuse(*arguments) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(views.os, "link", refuse)
    plan = make_plan("own", ["a"])
    manifest = filled(plan)
    build_views(plan, OWN, manifest)
    view = manifest.folder / "views" / "own" / "plain-run_01" / "1_a.mp4"
    assert view.read_bytes() == manifest.file_of(manifest.records["plain", "1", 1, 0]).read_bytes()
    before = view.stat().st_mtime_ns
    build_views(plan, OWN, manifest)
    assert view.stat().st_mtime_ns == before


def test_stray_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "store.mp4").write_bytes(b"film")
    folder = tmp_path / "view"
    fill(folder, {"a.mp4": tmp_path / "store.mp4", "b.mp4": tmp_path / "store.mp4"})
    (folder / "scores.json").write_text("{}")
    fill(folder, {"a.mp4": tmp_path / "store.mp4"})
    assert [path.name for path in folder.iterdir()] == ["a.mp4"]
    assert (tmp_path / "store.mp4").read_bytes() == b"film"


def test_missing_clips_are_named(filled, make_plan) -> None:
    plan = make_plan("own", ["a", "b"])
    manifest = filled(plan)
    del manifest.records["lamo", "2", 1, 0]
    with pytest.raises(
        EvaluationError, match=r"1 clips are missing \(lamo, prompt 2, run 1, clip 0\): run .* generate"
    ):
        build_views(plan, OWN, manifest)


def test_clips_of_two_sizes_are_refused(filled, make_plan) -> None:
    plan = make_plan("own", ["a", "b"])
    manifest = filled(plan)
    record = manifest.records["lamo", "2", 1, 0]
    manifest.records[record.key] = type(record)(**{**vars(record), "fps": 24.0})
    with pytest.raises(EvaluationError, match=r"the clips differ: .* at 16 fps and .* at 24 fps"):
        build_views(plan, OWN, manifest)


def test_names_that_are_too_long_or_equal_are_told_before_anything_is_made(make_plan) -> None:
    vbench = BENCHMARKS["vbench"]
    with pytest.raises(EvaluationError, match=r"has 30\d bytes, and file names end at 255"):
        check_names(make_plan("vbench", ["x" * 300]), vbench)
    same = [
        Prompt(id="1", text="A ball"),
        Prompt(id="2", text="a Ball"),
    ]  # one file where case does not count
    with pytest.raises(EvaluationError, match="both be called"):
        check_names(make_plan("vbench", same), vbench)
    check_names(make_plan("own", same), OWN)
