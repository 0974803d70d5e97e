"""Which captions a text encoder cuts: told by its tokenizer, exactly at the limit."""

from __future__ import annotations

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.limit import load_is_cut
from latent_physics.training.backbones.text import longer_than


def words(prompts, length):
    """A tokenizer of one token a word and one for the end, as T5's: cut off where longer."""
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        mask[row, : min(length, len(prompt.split()) + 1)] = 1
    return mask, mask


def test_a_prompt_that_just_fits_is_not_cut():
    prompts = ["a " * count for count in (0, 8, 9, 10, 50)]
    assert longer_than(words, prompts, 10) == [False, False, False, True, True]
    assert longer_than(words, [], 10) == []


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_the_tokenizer_alone_tells_what_the_backbone_cuts(tmp_path, family):
    source = tiny.diffusers_folder(tmp_path / family, family)
    backbone = load_backbone(family, source, parts=("text",))
    prompts = ["a ball", "a red ball falls " * 200]
    assert load_is_cut(family, str(source))(prompts) == backbone.is_cut(prompts) == [False, True]
    tokens, _ = backbone.embed_prompts(prompts)
    assert tokens.shape[1] == backbone.text_length


def test_the_toy_encoder_counts_its_words():
    assert load_is_cut("toy")(["a ball " * 12, "a ball " * 13]) == [False, True]


def test_a_tokenizer_that_is_not_there_is_not_fetched(tmp_path):
    assert load_is_cut("wan", "nobody/no-such-model") is None
    assert load_is_cut("wan", {"vae": tmp_path / "v", "text": tmp_path / "gone.safetensors"}) is None
