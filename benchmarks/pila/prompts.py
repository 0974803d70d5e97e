"""Accuracy of the offline prompt rules on labelled prompts written for this project.

python3 dev.py bench pila/prompts            # figures
python3 dev.py bench pila/prompts --errors   # and every prompt that was not labelled exactly
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latent_physics.methods.labels.rules import rule_labels
from latent_physics.methods.labels.taxonomy import CATEGORIES

DATA = Path(__file__).resolve().parents[2] / "tests" / "data" / "pila_prompts.jsonl"


@dataclass(frozen=True)
class Accuracy:
    """Result of a labeller on one split."""

    prompts: int
    exact: float
    """Share of prompts whose label set is exactly right."""
    first: float
    """Share of labelled prompts whose strongest label is one of the right ones."""
    precision: float
    recall: float
    none: float
    """Share of prompts without physics that got no label."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall over all labels."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


def load(split: str | None = None) -> list[dict]:
    """The labelled prompts; `split` is "dev" (the rules were written against these) or "held out"."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split in (None, row["split"])]


def measure(rows: list[dict], labeller: Callable[[str], dict[str, float]] = rule_labels) -> Accuracy:
    """Compares a labeller with the truth."""
    pairs = [(list(labeller(row["prompt"])), set(row["labels"])) for row in rows]
    hits = sum(len(truth.intersection(found)) for found, truth in pairs)
    physical = [(found, truth) for found, truth in pairs if truth]
    empty = [found for found, truth in pairs if not truth]
    return Accuracy(
        prompts=len(pairs),
        exact=sum(set(found) == truth for found, truth in pairs) / len(pairs),
        first=sum(bool(found) and found[0] in truth for found, truth in physical) / max(1, len(physical)),
        precision=hits / max(1, sum(len(found) for found, _ in pairs)),
        recall=hits / max(1, sum(len(truth) for _, truth in pairs)),
        none=sum(not found for found in empty) / max(1, len(empty)),
    )


def main() -> int:
    """Prints one line per split and one per category."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--errors", action="store_true", help="also print every prompt that was not labelled exactly"
    )
    args = parser.parse_args()
    print("| prompts | count | exact set | strongest right | precision | recall | F1 | none stays none |")
    print("|---|---|---|---|---|---|---|---|")
    for split in ("dev", "held out", None):
        a = measure(load(split))
        cells = [f"{value:.2f}" for value in (a.exact, a.first, a.precision, a.recall, a.f1, a.none)]
        print(f"| {split or 'all'} | {a.prompts} | {' | '.join(cells)} |")
    print()
    for category in CATEGORIES:
        rows = load("held out")
        found = [category in rule_labels(row["prompt"]) for row in rows]
        truth = [category in row["labels"] for row in rows]
        hit = sum(f and t for f, t in zip(found, truth))
        print(f"{category:18s} held out: recall {hit}/{sum(truth)}, precision {hit}/{sum(found)}")
    if args.errors:
        for row in load():
            got = rule_labels(row["prompt"])
            if set(got) != set(row["labels"]):
                print(f"{row['split']:8s} {row['prompt']}\n         want {row['labels']}, got {got}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
