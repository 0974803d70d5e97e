"""Causal surprise against loops and against a world model whose expectations are known."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.critics import CausalSurprise, CriticError
from latent_physics.methods.critics.surprise import normalised
from torch import Tensor

from .linear_world import LinearWorld, brightening


def by_loop(
    model: LinearWorld, clip: Tensor, window: int, stride: int, contexts: tuple[int, ...], distance: str
) -> Tensor:
    """Surprise of each window and context, `S M`, from the definition, a token at a time, in float64."""
    first = (clip.shape[2] - window) % stride
    table = []
    for start in range(first, clip.shape[2] - window + 1, stride):
        part = clip[:, :, start : start + window]
        row = []
        for context in contexts:
            seen = model.features(part)[0, :, context // 2 :].double()
            expected = model.predicted(part, context // 2)[0].double()
            found = []
            for f, h, w in torch.cartesian_prod(*(torch.arange(size) for size in seen.shape[1:])).tolist():
                a, b = expected[:, f, h, w], seen[:, f, h, w]
                b = (b - b.mean()) / (b.var(correction=0) + 1e-5).sqrt()
                if distance == "l1":
                    found.append((a - b).abs().mean())
                else:
                    a = (a - a.mean()) / (a.var(correction=0) + 1e-5).sqrt()
                    found.append(1 - a @ b / (a.norm() * b.norm()))
            row.append(torch.stack(found).mean())
        table.append(torch.stack(row))
    return torch.stack(table)


@pytest.mark.parametrize("distance", ["cosine", "l1"])
@pytest.mark.parametrize(("frames", "window", "stride"), [(20, 8, 2), (21, 8, 4), (16, 16, 2), (19, 10, 6)])
def test_windows_and_contexts_equal_a_loop(distance: str, frames: int, window: int, stride: int) -> None:
    clip = torch.rand(1, 3, frames, 8, 8, generator=torch.Generator().manual_seed(frames))
    contexts = (2, 4, 6)
    settings = {"window": window, "stride": stride, "contexts": contexts, "distance": distance}
    expected = by_loop(LinearWorld(), clip, window, stride, contexts, distance).float()
    for over_contexts, curve in (("mean", expected.mean(1)), ("min", expected.amin(1))):
        for over_windows, score in (("mean", curve.mean()), ("max", curve.amax())):
            critic = CausalSurprise(
                LinearWorld(), over_contexts=over_contexts, over_windows=over_windows, **settings
            )
            found = critic.judge(clip, 8.0)
            torch.testing.assert_close(found.curve[0], curve, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.implausibility[0], score, rtol=1e-4, atol=1e-5)
    for number, context in enumerate(contexts):
        torch.testing.assert_close(
            found.parts[f"context_{context}"][0], expected[:, number].mean(), rtol=1e-4, atol=1e-5
        )


def test_a_clip_that_does_what_the_model_expects_does_not_surprise() -> None:
    critic, even = CausalSurprise(LinearWorld(), window=8, contexts=(4,)), brightening()
    broken = even.clone()
    broken[:, :, 10:] = 1 - broken[:, :, 10:]
    assert float(critic.judge(even, 8.0).implausibility) == pytest.approx(0, abs=1e-6)
    assert float(critic.judge(broken, 8.0).implausibility) > 5e-4


def test_context_is_encoded_alone() -> None:
    """Only context frames reach the encoder that predicts: no window's context holds a frame of its
    targets."""
    model, clip = LinearWorld(), brightening(12)
    CausalSurprise(model, window=8, stride=2, contexts=(2, 6)).judge(clip, 8.0)
    assert {tuple(seen.shape[:3]) for seen in model.seen} == {(3, 3, 2), (3, 3, 6)}


def test_last_frame_changes_nothing_before_it() -> None:
    clip = torch.rand(1, 3, 24, 8, 8, generator=torch.Generator().manual_seed(1))
    changed = clip.clone()
    changed[:, :, -1] = 1 - changed[:, :, -1]
    before, after = (
        CausalSurprise(LinearWorld(), window=8, contexts=(2, 4)).judge(video, 8.0)
        for video in (clip, changed)
    )
    assert torch.equal(before.curve[:, :-1], after.curve[:, :-1])
    assert not torch.equal(before.curve[:, -1], after.curve[:, -1]), "the last window must see the last frame"
    assert torch.equal(before.maps[:, :-1], after.maps[:, :-1])


def test_every_curve_entry_stands_at_its_windows_last_frame() -> None:
    found = CausalSurprise(LinearWorld(), window=8, stride=4, contexts=(4,)).judge(brightening(21), 10.0)
    torch.testing.assert_close(found.times, torch.tensor([8.0, 12.0, 16.0, 20.0]) / 10)


def test_batch_equals_singles() -> None:
    clips = torch.rand(3, 3, 18, 8, 8, generator=torch.Generator().manual_seed(2))
    critic = CausalSurprise(LinearWorld(), window=8, contexts=(2, 4), distance="l1")
    together, alone = critic.judge(clips, 8.0), [critic.judge(clip[None], 8.0) for clip in clips]
    for name in ("implausibility", "motion", "gate", "curve", "maps"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_maps_show_where_it_surprises() -> None:
    """The clip goes on evenly everywhere but in one corner, from one moment on."""
    clip = brightening(16)
    clip[:, :, 12:, :4, :4] = 1 - clip[:, :, 12:, :4, :4]
    maps = CausalSurprise(LinearWorld(), window=8, contexts=(4,)).judge(clip, 8.0).maps[0]
    assert maps[6:, 0, 0].min() > 10 * maps[:, 1, 1].max()
    assert maps[:2].abs().max() == 0, "what no window predicts has no surprise"


def test_rate_picks_frames_by_the_clock() -> None:
    """A clip at 16 frames a second, looked at 8 times a second, is the clip of every second frame."""
    clip = torch.rand(1, 3, 33, 8, 8, generator=torch.Generator().manual_seed(5))
    fast = CausalSurprise(LinearWorld(), window=8, contexts=(4,), rate=8.0).judge(clip, 16.0)
    slow = CausalSurprise(LinearWorld(), window=8, contexts=(4,)).judge(clip[:, :, ::2], 8.0)
    assert torch.equal(fast.curve, slow.curve)
    torch.testing.assert_close(fast.times, slow.times)


def test_normalised_features_have_mean_0_and_deviation_1() -> None:
    found = normalised(torch.randn(2, 64, 3, 2, 2) * 5 + 7)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3, 2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(2, 3, 2, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 7}, "multiples"),
        ({"stride": 0}, "multiples"),
        ({"contexts": ()}, "multiples"),
        ({"contexts": (16,)}, "nothing to predict"),
        ({"distance": "l2"}, "distance is 'l2'"),
        ({"over_windows": "sum"}, "over_windows"),
        ({"over_contexts": "max"}, "over_contexts"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(CriticError, match=sentence):
        CausalSurprise(LinearWorld(), **settings)


@pytest.mark.parametrize(
    ("clip", "fps", "sentence"),
    [
        (torch.rand(1, 3, 9, 8, 8), 8.0, "needs 16 frames or more and was given 9"),
        (torch.rand(1, 4, 20, 8, 8), 8.0, r"reads frames \(B, 3, T, H, W\)"),
        (torch.rand(3, 20, 8, 8), 8.0, "reads frames"),
        (torch.full((2, 3, 20, 8, 8), float("nan")), 8.0, "clip 1 of 2 holds NaN"),
        (torch.rand(0, 3, 20, 8, 8), 8.0, "given 0 clips"),
        (torch.rand(1, 3, 20, 8, 8), 0.0, "fps is 0.0"),
        (torch.rand(1, 3, 20, 8, 8), float("nan"), "fps is nan"),
    ],
)
def test_bad_clips_are_refused_in_one_sentence(clip: Tensor, fps: float, sentence: str) -> None:
    with pytest.raises(CriticError, match=sentence):
        CausalSurprise(LinearWorld()).judge(clip, fps)
