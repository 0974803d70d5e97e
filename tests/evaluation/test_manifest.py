"""The manifest survives kills and refuses what does not belong to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.manifest import Manifest, digest
from latent_physics.evaluation.plan import Plan, check_plan, load_plan, save_plan


def test_a_torn_last_line_is_cut_and_the_rest_kept(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a", "b"]))
    whole = manifest.path.read_bytes()
    manifest.path.write_bytes(whole[:-20])
    again = Manifest(manifest.folder, "own")
    assert len(again.records) == len(manifest.records) - 1
    assert manifest.path.read_bytes().endswith(b"\n")
    assert whole.startswith(manifest.path.read_bytes())


def test_a_manifest_of_another_benchmark_is_refused(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a"]))
    with pytest.raises(EvaluationError, match="holds clips of own, not of vbench"):
        Manifest(manifest.folder, "vbench")


def test_a_clip_listed_twice_and_rubbish_are_refused(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a"]))
    text = manifest.path.read_text()
    manifest.path.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(EvaluationError, match="twice"):
        Manifest(manifest.folder, "own")
    manifest.path.write_text(text + '{"arm": "plain"}\n')
    with pytest.raises(EvaluationError, match=r"line 5 .* is no record"):
        Manifest(manifest.folder, "own")


def test_a_second_process_may_not_generate_into_the_folder(tmp_path: Path) -> None:
    second = Manifest(tmp_path, "own").locked()
    with Manifest(tmp_path, "own").locked(), pytest.raises(EvaluationError, match="another process"), second:
        pass
    with Manifest(tmp_path, "own").locked():
        pass


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_a_plan_is_read_back_and_never_replaced(tmp_path: Path, make_plan) -> None:
    plan = make_plan("own", ["a", "b"], runs=2)
    save_plan(tmp_path, plan)
    assert load_plan(tmp_path) == plan
    save_plan(tmp_path, plan)
    with pytest.raises(EvaluationError, match="holds another plan"):
        save_plan(tmp_path, make_plan("own", ["a", "c"], runs=2))
    with pytest.raises(EvaluationError, match="holds another plan"):
        save_plan(tmp_path, make_plan("own", ["a", "b"], runs=2, arms={"lamo": {}, "plain": {}}))


def test_arms_share_seeds_and_clips_do_not(make_plan) -> None:
    plan = make_plan("own", ["a", "b"], runs=3)
    by_arm = {arm: [job.seed for job in plan.jobs() if job.arm == arm] for arm in plan.arms}
    assert by_arm["plain"] == by_arm["lamo"]
    assert len(set(by_arm["plain"])) == 6
    other = make_plan("own", ["a", "b"], runs=3, seed=1)
    assert not {job.seed for job in other.jobs()} & set(by_arm["plain"])


def test_a_run_is_whole_before_the_next_begins(make_plan) -> None:
    runs = [job.run for job in make_plan("own", ["a", "b"], runs=2).jobs()]
    assert runs == sorted(runs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "holds no prompt"),
        ({"runs": 0}, "runs is 0"),
        ({"arms": {}}, "holds no arm"),
        ({"arms": {"static": {}}}, "baseline's name"),
        ({"arms": {"a/b": {}}}, "part of a folder's name"),
        ({"label": "../x"}, "part of a folder's name"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_one_sentence(make_plan, settings, message) -> None:
    plan = Plan(**{**vars(make_plan("own", ["a"])), **settings})
    with pytest.raises(EvaluationError, match=message):
        check_plan(plan)


def test_a_broken_plan_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="evaluate plan"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"prompts": [{}]}))
    with pytest.raises(EvaluationError, match="no plan of an evaluation"):
        load_plan(tmp_path)
