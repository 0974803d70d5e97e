"""The motion field predictor: sizes, starting point, loss (LaMo, section 3.3 and eq 7), condition pooling,
file."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods import weights
from latent_physics.methods.lamo import (
    MotionFieldPredictor,
    load_predictor,
    pool_tokens,
    predictor_info,
    predictor_loss,
    save_predictor,
)
from latent_physics.methods.lamo.weights import check_use, rate_note
from latent_physics.methods.video_models import MODELS
from latent_physics.methods.weights import WeightsError


def randomised(predictor: MotionFieldPredictor, seed: int = 0) -> MotionFieldPredictor:
    """The predictor with every parameter non-zero: a zero-initialised one would hide half of its own code."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            )
    return predictor


def test_has_the_papers_size():
    count = sum(parameter.numel() for parameter in MotionFieldPredictor(16, 4096).parameters())
    assert 9e6 < count < 12e6


@pytest.mark.parametrize("order", [1, 2])
def test_starts_as_the_constant_zero_and_can_leave_it(order):
    predictor = MotionFieldPredictor(4, 6, width=8, blocks=2, order=order)
    frames, cond = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    change = torch.randn_like(frames) if order == 2 else None
    assert torch.equal(predictor(frames, cond, change), torch.zeros_like(frames))
    assert torch.equal(predictor.null_prompt, torch.zeros(6))
    for block in predictor.blocks:
        assert not block.film.weight.any()
        assert not block.film.bias.any()
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = predictor_loss(predictor(frames, cond, change), torch.roll(frames, 1, dims=3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@settings(deadline=None, max_examples=12)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    inner=st.integers(8, 24),
    order=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    with_cond=st.booleans(),
)
def test_any_size_and_dtype(n, channels, height, width, inner, order, dtype, with_cond):
    predictor = randomised(MotionFieldPredictor(channels, 7, width=inner, blocks=1, order=order)).to(dtype)
    frames = torch.randn(n, channels, height, width).to(dtype)
    out = predictor(frames, torch.randn(n, 7) if with_cond else None, frames if order == 2 else None)
    assert out.shape == frames.shape
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_the_condition_and_the_last_change_matter():
    predictor = randomised(MotionFieldPredictor(4, 6, width=8, blocks=2, order=2))
    frames, change, cond = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.randn(2, 6)
    base = predictor(frames, cond, change)
    assert not torch.allclose(base, predictor(frames, -cond, change))
    assert not torch.allclose(base, predictor(frames, None, change))
    assert not torch.allclose(base, predictor(frames, cond, -change))
    assert torch.allclose(
        base, predictor(frames, 1000 * cond, change), atol=1e-4
    )  # text encoders differ in scale


def test_null_prompt_is_a_prompt():
    predictor = randomised(MotionFieldPredictor(4, 6, width=8, blocks=1))
    frames = torch.randn(2, 4, 5, 5)
    assert torch.allclose(
        predictor(frames), predictor(frames, predictor.null_prompt.expand(2, -1)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"frames": torch.zeros(2, 3, 5, 5)}, "(N, 4, H, W)"),
        ({"frames": torch.zeros(2, 4, 3, 5, 5)}, "(N, 4, H, W)"),
        ({"frames": torch.zeros(2, 4, 5, 5), "cond": torch.zeros(2, 9)}, "(2, 6)"),
        ({"frames": torch.zeros(3, 4, 5, 5), "cond": torch.zeros(2, 6)}, "(3, 6)"),
        ({"frames": torch.zeros(2, 4, 5, 5), "previous": torch.zeros(2, 4, 5, 5)}, "order-1"),
    ],
)
def test_misfits_are_refused(arguments, said):
    with pytest.raises(ValueError) as caught:
        MotionFieldPredictor(4, 6, width=8, blocks=1)(**arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"channels": 0}, {"width": 7}, {"width": 8.5}, {"order": 3}, {"blocks": "8"}, {"prompted": 1}]
)
def test_bad_sizes_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        MotionFieldPredictor(**{"channels": 4, "cond_dim": 6, "width": 8, "blocks": 1, **bad})


def test_order_two_needs_the_last_change():
    with pytest.raises(ValueError, match="last change"):
        MotionFieldPredictor(4, 6, width=8, blocks=1, order=2)(torch.zeros(1, 4, 3, 3))


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    alpha=st.floats(0, 2),
)
def test_loss_is_eq_7(n, channels, height, width, alpha):
    pred, target = torch.randn(2, n, channels, height, width, dtype=torch.float64)
    pred, target = (
        pred + 0.02 * pred.sign(),
        target + 0.02 * target.sign(),
    )  # eq 7 divides by norms: keep them off zero
    cosine = ((pred * target).sum(1) / (pred.norm(dim=1) * target.norm(dim=1))).mean()
    expected = (pred - target).square().mean() + alpha * (1 - cosine)
    assert predictor_loss(pred, target, alpha).item() == pytest.approx(expected.item(), rel=1e-9)


def test_loss_limits():
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert predictor_loss(target, target).item() == pytest.approx(0, abs=1e-5)
    assert predictor_loss(-target, target, alpha=1.0).item() == pytest.approx(
        4 * target.square().mean().item() + 2, rel=1e-4
    )
    start = torch.zeros_like(target, requires_grad=True)
    predictor_loss(start, target).backward()
    assert start.grad.abs().max() < 100


def test_pooling_equals_a_loop():
    tokens = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    expected = torch.stack([tokens[0, :2].mean(0), tokens[1, :4].mean(0)])
    assert torch.allclose(pool_tokens(tokens, mask), expected)
    assert torch.allclose(pool_tokens(tokens * mask[..., None]), expected)
    assert torch.allclose(pool_tokens(tokens), tokens.mean(1))
    assert torch.equal(pool_tokens(torch.zeros(1, 4, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("order", [1, 2])
def test_file_round_trip(tmp_path, order):
    predictor = randomised(MotionFieldPredictor(4, 6, width=8, blocks=2, order=order))
    path = tmp_path / "prior.safetensors"
    save_predictor(path, predictor, "toy", lag=3, recipe={"steps": 10})
    state = torch.random.get_rng_state()
    loaded, info = load_predictor(path, latent_space="toy")
    assert torch.equal(state, torch.random.get_rng_state())
    assert info == predictor_info(predictor, "toy", 3, {"steps": 10})
    assert info.config == {
        "channels": 4,
        "cond_dim": 6,
        "width": 8,
        "blocks": 2,
        "order": order,
        "prompted": True,
        "lag": 3,
    }
    frames = torch.randn(2, 4, 5, 5)
    change = frames if order == 2 else None
    assert torch.equal(loaded(frames, None, change), predictor(frames, None, change))


def test_file_of_another_latent_space_is_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    save_predictor(path, MotionFieldPredictor(4, 6, width=8, blocks=1), "cogvideox")
    with pytest.raises(weights.WeightsError) as caught:
        load_predictor(path, latent_space="wan2.1")
    assert "cogvideox" in str(caught.value)
    assert "wan2.1" in str(caught.value)


def test_broken_files_are_refused(tmp_path):
    good = tmp_path / "good.safetensors"
    save_predictor(good, MotionFieldPredictor(4, 6, width=8, blocks=1), "toy")
    state = safetensors.torch.load_file(good)
    cases = {
        "missing": None,
        "pickled": pickle.dumps({"weights": [1, 2, 3]}),
        "truncated": good.read_bytes()[:-100],
        "empty": b"",
        "foreign": safetensors.torch.save({"a": torch.zeros(2)}),
    }
    info = predictor_info(MotionFieldPredictor(4, 6, width=8, blocks=1), "toy")
    odd = {
        "other sizes": {"width": 16},
        "huge": {"width": 10**7},
        "no number": {"blocks": "many"},
        "no lag": {"lag": 0},
    }
    odd["more blocks than could ever be built"] = {"blocks": 10**12}
    for name, config in odd.items():
        weights.save_weights(
            tmp_path / "made", state, dataclasses.replace(info, config={**info.config, **config})
        )
        cases[name] = (tmp_path / "made").read_bytes()
    weights.save_weights(tmp_path / "made", state, dataclasses.replace(info, kind="pila_adapter"))
    cases["other kind"] = (tmp_path / "made").read_bytes()
    metadata = [
        "[]",
        "[" * 100000,
        '{"kind": "motion_predictor", "latent_space": "toy", "config": {}, "version": "2"}',
        '{"kind": 1, "latent_space": "toy", "config": {}}',
        '{"kind": "motion_predictor", "latent_space": "toy", "config": []}',
        '{"kind": "motion_predictor", "latent_space": "toy", "config": {}}',
    ]
    for text in metadata:
        cases[text[:80]] = safetensors.torch.save(state, {weights.METADATA_KEY: text})
    for name, content in cases.items():
        path = tmp_path / "case.safetensors"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(weights.WeightsError) as caught:
            load_predictor(path)
        assert "case.safetensors" in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "prior.safetensors"
    save_predictor(path, MotionFieldPredictor(4, 6, width=8, blocks=1), "toy")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_predictor(path, MotionFieldPredictor(4, 6, width=8, blocks=1), "wan2.1")
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert (
        json.loads(weights.safetensors.safe_open(path, "pt").metadata()["latent_physics"])["latent_space"]
        == "toy"
    )


def test_a_predictor_trained_without_prompts_answers_alike_to_every_text_encoder(tmp_path):
    predictor = randomised(MotionFieldPredictor(4, 6, width=8, blocks=1, prompted=False))
    save_predictor(tmp_path / "prior.safetensors", predictor, "toy")
    loaded, info = load_predictor(tmp_path / "prior.safetensors")
    assert info.config["prompted"] is False
    frames = torch.randn(2, 4, 5, 5)
    for size in (6, 3840, 6144):
        assert torch.equal(loaded(frames, torch.randn(2, size)), predictor(frames))
    prompted = MotionFieldPredictor(4, 6, width=8, blocks=1)
    prompted.load_state_dict(predictor.state_dict())
    assert not torch.equal(prompted(frames, torch.randn(2, 6)), predictor(frames))


def test_a_file_that_does_not_say_so_was_trained_with_prompts(tmp_path):
    predictor = randomised(MotionFieldPredictor(4, 6, width=8, blocks=1))
    info = predictor_info(predictor, "toy")
    old = {key: value for key, value in info.config.items() if key != "prompted"}
    weights.save_weights(
        tmp_path / "old.safetensors", predictor.state_dict(), dataclasses.replace(info, config=old)
    )
    loaded, _ = load_predictor(tmp_path / "old.safetensors")
    assert loaded.prompted is True


# --- rate and use -------------------------------------------------------------------------------------------


def info_of(**recipe):
    return predictor_info(MotionFieldPredictor(16, 8, width=8, blocks=1), "wan2.1", recipe=recipe)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, None),
        (0, None),
        ("fast", None),
        (16, None),
        (15, None),
        (20, None),
        (8, "2 times"),
        (30, "0.53"),
    ],
)
def test_a_rate_that_the_model_does_not_have_is_said(fps, expected):
    note = rate_note(info_of(fps=fps), [MODELS["wan2.1"]], "mine.safetensors")
    assert (note is None) == (expected is None)
    if note:
        assert f"learned from clips of {fps} frames per second" in note
        assert f"Wan 2.1 and Wan 2.2 14B makes 16: it expects {expected}" in note


def test_one_of_several_models_is_enough_for_a_rate():
    both = [MODELS["cogvideox1.5"], MODELS["cogvideox-5b"]]
    assert rate_note(info_of(fps=8), both, "mine") is None
    assert rate_note(info_of(fps=30), both, "mine") is not None
    assert rate_note(info_of(fps=30), [], "mine") is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [({"lag": 0}, "its lag is 0"), ({"lag": None}, "its lag is None"), ({"order": 3}, "its order is 3")],
)
def test_a_lag_or_an_order_of_no_use_is_told_from_the_metadata_alone(config, sentence):
    info = info_of()
    wrong = dataclasses.replace(info, config={**info.config, **config})
    check_use(info, "mine")
    with pytest.raises(WeightsError, match=sentence):
        check_use(wrong, "mine")
