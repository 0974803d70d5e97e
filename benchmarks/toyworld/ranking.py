"""Agreement of the toy world's scores with eyes, over 40 pairs of clips that were judged by looking before
any score of them was seen.

A pair is one prompt, sampled by the base model with two noises. ranking.json holds two answers for each, A, B
or = : which clip keeps the law better (law), and which keeps its things better, in number, shape and colour
(lasting).

    python3 dev.py bench toyworld/ranking --draw FOLDER    # a picture of each pair, and an empty ranking.json
    python3 dev.py bench toyworld/ranking                  # the answers against the scores
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from latent_physics.encoders.base import digest_of
from latent_physics.methods.weights import write_atomically
from latent_physics.toyworld import WORLDS, evaluate, sample
from latent_physics.toyworld.statistics import share_interval
from latent_physics.training.backbones import load
from latent_physics.training.study.sampling import sampled_clips
from torch import Tensor

from .gallery import diagram, strip

RANKING = Path(__file__).with_name("ranking.json")
SEED = 540_000
"""Of the prompts and the noises, and of nothing else that is trained, chosen or measured."""
PER_WORLD = 5
COUNT = PER_WORLD * len(WORLDS)
CFG = 2.0
"""As the shipped graphs of the toy world sample."""
SHOWN = tuple(range(0, 33, 4))
"""Frames of a clip that the judge sees."""
QUESTIONS = {"law": "keeps the law better", "lasting": "keeps its things better"}
ANSWERS = ("A", "B", "=")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Clips to compare, pair by pair."""

    worlds: Sequence[str]
    prompts: Sequence[str]
    a: Tensor
    """`B 3 T H W` in [0, 1]."""
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Answers to a question against a measure."""

    agreed: int
    """Decided pairs in which the measure prefers the clip that the judge does."""
    decided: int
    judged_equal: int
    scored_equal: int
    """Pairs of the others in which the measure has one value for both."""


def base_digest() -> str:
    """16 digits of the files that a sampled clip depends on."""
    return digest_of(load.TOY_WEIGHTS / f"toy_{part}.safetensors" for part in load.PARTS)


def sampled_pairs() -> Pairs:
    """The pairs, sampled by the base as it ships."""
    backbone = load.load_backbone("toy")
    prompts = [prompt for name in WORLDS for prompt in sample(name, PER_WORLD, SEED)[1]]
    worlds = [name for name in WORLDS for _ in range(PER_WORLD)]
    a, b = (
        sampled_clips(backbone, prompts, cfg=CFG, seed=seed)[0].clamp(0, 1) for seed in (SEED, SEED + COUNT)
    )
    return Pairs(worlds=worlds, prompts=prompts, a=a, b=b)


def draw_pair(pairs: Pairs, index: int, path: Path) -> None:
    """One pair as a picture: A above B, frames and beside them the diagram of space and time; no score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.1), layout="constrained")  # so that a frame is a square, and a disc round
    grid = figure.add_gridspec(2, 2, width_ratios=[len(SHOWN), 1.8], wspace=0.02, hspace=0.04)
    for row, (name, clips) in enumerate((("A", pairs.a), ("B", pairs.b))):
        frames, lines = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        clip = clips[index].clamp(0, 1)
        frames.imshow(strip(clip, SHOWN).numpy(), interpolation="nearest", aspect="auto")
        lines.imshow(diagram(clip, pairs.worlds[index]).numpy(), interpolation="nearest", aspect="auto")
        for border in range(1, len(SHOWN)):
            frames.axvline(border * clip.shape[3] - 0.5, color="white", linewidth=2)
        frames.set_ylabel(name, fontsize=16, rotation=0, labelpad=14)
        for axes in (frames, lines):
            axes.set(xticks=[], yticks=[])
    figure.suptitle(f"{index}: {pairs.prompts[index]}", fontsize=11)
    figure.savefig(path, dpi=100)


def draw(pairs: Pairs, folder: Path) -> None:
    """A picture of each pair, and a form for the answers where the folder holds none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(pairs.prompts)):
        draw_pair(pairs, index, folder / f"pair_{index:02}.png")
    form = folder / RANKING.name
    if not form.exists():
        empty = ",\n".join(json.dumps(dict.fromkeys(QUESTIONS, "")) for _ in pairs.prompts)
        write_atomically(form, f'{{"base": "{base_digest()}", "pairs": [\n{empty}\n]}}\n'.encode())


def answers_in(path: Path, base: str, count: int) -> list[dict[str, str]]:
    """The answers of a ranking, one dictionary a pair, by question. Raises ValueError where there are none,
    or they are not of these pairs."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: draw the pairs with --draw FOLDER, look, and fill it in.")
    try:
        ranking = json.loads(path.read_text(encoding="utf-8"))
        made_on, pairs = ranking["base"], [{key: pair[key] for key in QUESTIONS} for pair in ranking["pairs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no ranking ({error}); one is "
            f'{{"base": ..., "pairs": [{{"law": "A", "lasting": "="}}, ...]}}.'
        ) from error
    if made_on != base:
        raise ValueError(
            f"{path} ranks clips of the base {made_on} and this one is {base}: draw its pairs with --draw "
            f"FOLDER and judge them anew."
        )
    if len(pairs) != count:
        raise ValueError(f"{path} ranks {len(pairs)} pairs and there are {count}: judge each of them once.")
    for index, pair in enumerate(pairs):
        for question, answer in pair.items():
            if answer not in ANSWERS:
                raise ValueError(
                    f"{path} answers {answer!r} to {question} of pair {index}; answers are "
                    f"{', '.join(ANSWERS)}."
                )
    return pairs


def preferences(pairs: Pairs) -> dict[str, list[float]]:
    """Measure -> how much it prefers A in each pair: above 0 A, below B, 0 neither."""
    a, b = (evaluate(clips, pairs.worlds, pairs.prompts) for clips in (pairs.a, pairs.b))
    return {
        "law score": (a.law - b.law).tolist(),
        "residual": (b.residual - a.residual).tolist(),  # the smaller, the better
        "permanence": (a.permanence - b.permanence).tolist(),
    }


def agreement(answers: Sequence[str], preferred: Sequence[float]) -> Agreement:
    """Answers A, B or = against how much a measure prefers A. Raises ValueError where lengths differ."""
    if len(answers) != len(preferred):
        raise ValueError(
            f"{len(answers)} answers meet {len(preferred)} scored pairs; give one of each a pair."
        )
    chosen = [(answer, value) for answer, value in zip(answers, preferred) if answer != "="]
    decided = [(answer, value) for answer, value in chosen if value != 0]
    return Agreement(
        agreed=sum((answer == "A") == (value > 0) for answer, value in decided),
        decided=len(decided),
        judged_equal=len(answers) - len(chosen),
        scored_equal=len(chosen) - len(decided),
    )


def table(answers: Sequence[dict[str, str]], preferred: dict[str, list[float]]) -> str:
    """Every question against every measure, as Markdown."""
    lines = [
        "| judged | measure | pairs that agree | share, 95 % interval | judged equal | scored equal |",
        "|---|---|---|---|---|---|",
    ]
    for question, words in QUESTIONS.items():
        for measure, values in preferred.items():
            found = agreement([pair[question] for pair in answers], values)
            share = share_interval(found.agreed, found.decided)
            lines.append(
                f"| {words} | {measure} | {found.agreed} of {found.decided} | {share.mean:.2f} "
                f"[{share.low:.2f}, {share.high:.2f}] | {found.judged_equal} | {found.scored_equal} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the pairs, or prints the table. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="draw the pairs there and score nothing")
    parser.add_argument("--ranking", type=Path, default=RANKING, help="file of the answers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # one noise, one clip: sums in another order would be another film
    if args.draw:
        draw(sampled_pairs(), args.draw)
        print(args.draw)
        return 0
    try:
        answers = answers_in(args.ranking, base_digest(), COUNT)
    except ValueError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    print(f"{COUNT} pairs, judged before they were scored\n\n{table(answers, preferences(sampled_pairs()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
