"""Recipes that come with the pack: each says its data, and what it trains by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from latent_physics.training import recipes
from latent_physics.training.plan.cards import find_card
from latent_physics.training.plan.plan import make_plan
from latent_physics.training.recipes import load_recipe, names
from latent_physics.training.tasks.finetune import FinetuneConfig
from latent_physics.training.tasks.preview import read_sizes

KINDS = ("finetune", "motion-head", "grpo")
LARGE = [name for kind in KINDS for name in names(kind) if not name.startswith("toy-")]


@pytest.mark.parametrize("name", LARGE)
def test_a_papers_recipe_says_its_data(name):
    about = json.loads((Path(recipes.__file__).parent / f"{name}.json").read_text())["about"]
    assert "Data: " in about, name


@pytest.mark.parametrize(
    "name", ["lamo-2b-full", "lamo-5b-lora", "moalign-2b", "mtsa-2b", "tsa-2b", "repa-2b"]
)
def test_what_a_paper_does_not_state_is_said_to_be_of_others(name):
    about = json.loads((Path(recipes.__file__).parent / f"{name}.json").read_text())["about"]
    assert "VideoREPA's script" in about
    assert "weight decay" in about


def test_the_recipe_of_wan_22_5b_fits_its_vae_and_a_24_gb_card():
    config = load_recipe("lamo-wan22-5b", FinetuneConfig)
    assert config.noise.noise_preset == "wan2.2-5b"
    assert (config.width % 32, config.height % 32) == (0, 0)
    assert read_sizes([f"{config.width}x{config.height}x{config.frames}"], "wan")
    plan = make_plan(config)
    assert plan.fits(find_card("4090"))
    assert plan.step.weights > 9 * 2**30
