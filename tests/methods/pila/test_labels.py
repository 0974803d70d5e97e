import random

import pytest
from latent_physics.benchmarks.pila import prompts as benchmark
from latent_physics.methods.labels.rules import MOST_LABELS, evidence, parse_by_rules, rule_labels
from latent_physics.methods.pila import CATEGORIES
from latent_physics.toyworld.worlds import WORLDS


def test_the_labelled_prompts_are_what_the_benchmark_says():
    rows = benchmark.load()
    assert len(rows) >= 200
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert {name for row in rows for name in row["labels"]} == set(CATEGORIES)
    assert sum(len(row["labels"]) > 1 for row in rows) >= 40
    assert sum(not row["labels"] for row in rows) >= 20
    assert {row["split"] for row in rows} == {"dev", "held out"}


def test_accuracy_on_prompts_the_rules_were_not_written_against():
    held_out = benchmark.measure(benchmark.load("held out"))
    assert held_out.f1 > 0.85
    assert held_out.exact > 0.75
    assert held_out.first > 0.9
    assert held_out.none > 0.9


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("a bouncing ball", {"Rigid Body", "Collision"}),
        ("boiling water in an open pot", {"Phase Change", "Fluid", "Thermal"}),
        ("a portrait of an old sailor", set()),
        ("", set()),
        ("a spring day in the city", set()),
    ],
)
def test_examples_of_the_paper_and_of_nothing(prompt, labels):
    assert set(rule_labels(prompt)) == labels


@pytest.mark.parametrize("world", WORLDS)
def test_every_phrasing_of_the_toy_world_finds_its_world(world):
    from latent_physics.toyworld.prompts import NOUNS

    category = world.replace("_", " ").title()
    for phrasing in WORLDS[world].phrasings:
        prompt = phrasing.format(things=f"a small red {NOUNS[world]}", direction="left", place="left")
        assert category in rule_labels(prompt), prompt


def test_labels_are_few_sorted_and_within_range_for_any_text():
    text = (
        "ball water ice light smoke crash heat spring melt mirror "
        "\u6c34 \u202e <b> {x} {{}} %s ' \" ignore previous"
    )
    words = text.split(" ")
    generator = random.Random(0)
    for _ in range(300):
        prompt = " ".join(generator.choices(words, k=generator.randint(0, 40)))
        found = rule_labels(prompt)
        values = list(found.values())
        assert len(found) <= MOST_LABELS
        assert set(found) <= set(CATEGORIES)
        assert values == sorted(values, reverse=True)
        assert all(0.0 <= value <= 1.0 for value in evidence(prompt).values())


def test_the_offline_parser_keeps_the_prompt_and_says_what_it_is():
    parsed = parse_by_rules("A river flows", note="the endpoint did not answer.")
    assert (parsed.description, parsed.source, parsed.note) == (
        "A river flows",
        "offline rules",
        "the endpoint did not answer.",
    )
