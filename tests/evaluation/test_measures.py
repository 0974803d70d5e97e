"""Our own measures against films whose motion is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from latent_physics.encoders import load_teacher
from latent_physics.encoders.critics import load_critic
from latent_physics.evaluation import measures
from latent_physics.evaluation.errors import EvaluationError
from latent_physics.evaluation.measures import (
    dynamic_degree,
    flicker,
    flow_size,
    load,
    measure,
    measures_for,
    motion,
    read_measures,
)
from latent_physics.methods.critics import TrajectoryGeometry


class KnownFlow:
    """Flow of `speed` pixels to the right in a share of the picture."""

    identity = "known"

    def __init__(self, speed: float, share: float = 1.0) -> None:
        self.speed, self.share = speed, share

    def flow(self, video: torch.Tensor, step: int, size: tuple[int, int]) -> torch.Tensor:
        flow = torch.zeros(1, 2, 1, *size)
        flow[:, 0, :, : round(size[0] * self.share)] = self.speed
        return flow


def film(frames: int = 17, side: int = 32, step: int = 0) -> np.ndarray:
    clip = np.zeros((frames, side, side, 3), np.uint8)
    for number, frame in enumerate(clip):
        x = (step * number) % (side - 8)
        frame[12:20, x : x + 8] = 255
    return clip


def test_flicker_is_vbenchs_formula() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    steps = [abs(clip[n].astype(float) - clip[n + 1]).mean() for n in range(4)]
    assert flicker(clip, 16.0) == pytest.approx((255 - sum(steps) / 4) / 255)
    assert flicker(film(), 16.0) == 1.0
    assert flicker(film()[:1], 16.0) == 1.0


def test_a_still_clip_has_no_motion_and_a_moving_one_has() -> None:
    assert motion(film(), 16.0) == 0.0
    assert motion(film(step=1), 16.0) > 0.05


@pytest.mark.parametrize(
    ("speed", "share", "moves"),
    [(3.1, 1.0, 1.0), (2.9, 1.0, 0.0), (3.1, 0.06, 1.0), (3.1, 0.02, 0.0)],
)
def test_dynamic_degree_has_vbenchs_limit_and_share(speed: float, share: float, moves: float) -> None:
    """6/256 of the shorter side, here 128: 3 pixels, over the fastest 5 % of the picture."""
    assert dynamic_degree(film(side=64), 16.0, KnownFlow(speed, share)) == moves


def test_dynamic_degree_needs_a_quarter_of_the_pairs() -> None:
    class Sometimes(KnownFlow):
        calls = 0

        def flow(self, video: torch.Tensor, step: int, size: tuple[int, int]) -> torch.Tensor:
            self.calls += 1
            return super().flow(video, step, size) * (self.calls <= self.speed)

    # 32 frames at 16 a second: 16 are looked at, in 15 pairs, of which round(4) must move
    for moving, moves in ((4, 1.0), (3, 0.0)):
        source = Sometimes(moving)
        source_flow = dynamic_degree(film(32), 16.0, source)
        assert source.calls == 15
        assert source_flow == moves


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 832), (480, 832)), ((64, 64), (128, 128)), ((60, 104), (128, 224))]
)
def test_raft_gets_a_size_that_it_takes(size, expected) -> None:
    assert flow_size(*size) == expected


def test_raft_from_a_file_measures_a_real_clip(tmp_path) -> None:
    from safetensors.torch import save_file
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    save_file(raft_small(weights=None).state_dict(), tmp_path / "raft.safetensors")
    compute, by = measures_for(raft=str(tmp_path / "raft.safetensors"))["dynamic"]
    assert compute(film(5), 16.0) in (0.0, 1.0)
    assert "raft.safetensors" in by
    with pytest.raises(EvaluationError, match=r"no.safetensors is neither"):
        measures_for(raft=str(tmp_path / "no.safetensors"))


def test_the_toy_world_model_is_the_surprise_critic(filled, make_plan) -> None:
    compute, by = measures_for(world_model="toy_vjepa2")["surprise"]
    clip = film(33, 64, step=1)
    assert 0 < compute(clip, 16.0) <= 1
    assert compute(film(33, 64), 16.0) == 0.0, "a still clip must not win"
    assert math.isnan(compute(clip[:4], 16.0))
    assert "toy_vjepa2" in by
    with pytest.raises(EvaluationError, match="predicts nothing"):
        measures_for(world_model="toy_videomae")
    with pytest.raises(EvaluationError, match="unknown"):
        measures_for(encoder="vgg")


def test_the_geometry_critic_sees_each_frame_alone() -> None:
    """As the node, the reward and the critics' benchmark do: in a whole clip a video encoder's features move
    although nothing does."""
    clip = film(33, 64, step=1)
    clip[:9] = clip[8]  # stands still at first, so that the gate is open and features must not move there
    compute, by = measures_for(encoder="toy_videomae")["geometry"]
    frames = measures.as_clip(clip)
    assert compute(clip, 16.0) == pytest.approx(
        float(load_critic("geometry", "toy_videomae").judge(frames, 16.0).score), rel=1e-5
    )
    whole = TrajectoryGeometry(load_teacher("toy_videomae"))
    assert compute(clip, 16.0) != pytest.approx(float(whole.judge(frames, 16.0).score), rel=1e-2)
    assert by != load_teacher("toy_videomae").identity, "values of whole clips would be taken for these"


def test_measures_are_computed_once_and_survive_a_torn_line(filled, make_plan, monkeypatch) -> None:
    manifest = filled(make_plan("own", ["a", "b"]))
    calls = []

    def counted(frames: np.ndarray, fps: float) -> float:
        calls.append(fps)
        return float(frames.mean())

    named = {"motion": (counted, "1")}
    measure(manifest, named)
    path = manifest.folder / measures.FILE
    assert len(calls) == 8
    path.write_bytes(path.read_bytes()[:-10])
    measure(manifest, named)
    assert len(calls) == 9
    measure(manifest, {"motion": (counted, "2")})
    assert len(calls) == 17
    reading = read_measures(manifest)
    assert [column.key for column in reading.columns] == ["motion"]
    assert len(reading.clips) == 8
    path.write_text('{"job": "a"}\n')
    with pytest.raises(EvaluationError, match="no measure"):
        load(path)


def test_a_value_that_is_none_is_written_as_null_and_read_as_nan(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a"], arms={"plain": {}}, baselines=False))
    measure(manifest, {"surprise": (lambda frames, fps: math.nan, "1")})
    (line,) = (manifest.folder / measures.FILE).read_text().splitlines()
    assert json.loads(line)["value"] is None
    assert math.isnan(read_measures(manifest).clips[0].values["surprise"])


def test_baselines_frame_the_measures(filled, make_plan) -> None:
    manifest = filled(make_plan("own", ["a", "b", "c"]), frames=17)
    measure(manifest, measures_for())
    reading = read_measures(manifest)
    values = {arm: reading.of_run(arm, 1, "motion") for arm in ("static", "plain", "shuffled")}
    assert values["static"] < 0.02 < values["plain"]
    assert reading.of_run("static", 1, "flicker") > reading.of_run("plain", 1, "flicker")
    assert reading.of_run("plain", 1, "flicker") > reading.of_run("shuffled", 1, "flicker")
