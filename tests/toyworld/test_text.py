"""The toy text encoder."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.weights import WeightsError
from latent_physics.toyworld.text import ToyTextEncoder


def test_padding_is_zero_and_changes_nothing():
    torch.manual_seed(0)
    encoder = ToyTextEncoder(width=32).eval()
    tokens, mask = encoder(["a red ball", "a small red ball thrown to the left", ""])
    assert tokens.shape == (3, 24, 32)
    assert mask.sum(1).tolist() == [3, 8, 0]
    assert tokens[~mask].abs().max() == 0
    alone, _ = encoder(["a red ball"])
    assert torch.allclose(tokens[0], alone[0], atol=1e-6)


def test_unknown_words_and_long_prompts():
    encoder = ToyTextEncoder(width=16)
    ids = encoder.tokenise(["a zeppelin", "ball " * 100])
    assert ids[0, 1].item() == 1
    assert ids.shape == (2, encoder.length)
    assert encoder.tokenise(["Ball, BALL!"])[0, :2].tolist() == [encoder.index["ball"]] * 2


def test_files_round_trip(tmp_path):
    torch.manual_seed(0)
    encoder = ToyTextEncoder(width=16).eval()
    path = tmp_path / "text.safetensors"
    encoder.save(path, {"steps": 1}, dtype=torch.float32)
    again = ToyTextEncoder.load(path)
    assert again.words == encoder.words
    assert torch.allclose(
        again(["a red ball"])[0], encoder(["a red ball"])[0], atol=1e-5
    )  # one takes a fused path
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        ToyTextEncoder.load(path)
