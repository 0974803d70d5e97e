"""Gain of best-of-N in the toy world, by critic: law score of the critic's choice, of chance and of an
oracle.

    python3 dev.py bench toyworld/best_of_n --folder FOLDER

Samples 16 candidates for every prompt with the shipped toy model and keeps, beside the clips, the denoised
estimates of some
steps: pruning changes no candidate, so what a pruned run would have chosen follows from the critic's marks at
those steps. The
files stay in FOLDER; a stopped run goes on with the same command.

Tables: rank correlation of critic and law score within a prompt; law score of the choice among N candidates,
the mean over
random draws of N of the 16, with 95 % intervals over prompts; pruned runs beside unpruned ones of the same
cost; adherence and
dynamic degree of the choice, because a law score alone can be gamed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from latent_physics.encoders.critics import load_critic
from latent_physics.methods.critics import Critic, gate_of_pool, rank
from latent_physics.methods.step import SamplingStep
from latent_physics.methods.weights import write_atomically
from latent_physics.toyworld import evaluate
from latent_physics.toyworld.statistics import paired_difference, standard_error
from latent_physics.training.backbones import Backbone, load_backbone
from latent_physics.training.backbones.sample import sample
from latent_physics.training.data.toy_prompts import toy_prompts
from latent_physics.training.study.sampling import LATENT
from torch import Tensor

FPS = 16.0
STEPS, CFG = 20, 2.0
CANDIDATES = 16
LOOKS = (3, 6)
"""Steps after which a pruned run drops the worse half: the node's defaults, 0.15 and 0.3 of 20."""
SIZES = (1, 2, 4, 8, 16)
DRAWS = 60
WEIGHTS = Path(__file__).resolve().parents[2] / "toyworld" / "weights"
SCORES = ("law", "adherence", "dynamic_degree")


class Estimates:
    """A correction that changes nothing and keeps the denoised estimates of some steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps, self.kept = steps, {}

    def correct(self, x0: Tensor, step: SamplingStep) -> Tensor:
        if step.index + 1 in self.steps:
            self.kept[f"x{step.index + 1}"] = x0.clone()
        return x0


def sample_prompt(backbone: Backbone, prompt: str, seed: int, path: Path) -> dict[str, Tensor]:
    """The candidates of one prompt: "final" and "xSTEP", each `16 C T H W`; read from `path` where they
    are there."""
    if not path.is_file():
        tokens, mask = backbone.embed_prompts([prompt] * CANDIDATES)
        estimates, null = Estimates(LOOKS), backbone.embed_prompts([""])
        with torch.no_grad():
            final = sample(
                backbone,
                tokens,
                mask,
                LATENT,
                steps=STEPS,
                cfg=CFG,
                null=null,
                seed=seed,
                corrections=[estimates],
            )
        write_atomically(path, safetensors.torch.save({**estimates.kept, "final": final}))
    return safetensors.torch.load_file(path)


def make_critics(stride: int) -> dict[str, Critic]:
    """The critics by name."""
    return {
        "surprise": load_critic("surprise", "toy_vjepa2", stride=stride),
        "geometry": load_critic("geometry", "toy_videomae"),
        "motion order 1": load_critic("motion", WEIGHTS / "toy_predictor_order1.safetensors"),
        "motion order 2": load_critic("motion", WEIGHTS / "toy_predictor_order2.safetensors"),
    }


def mark_prompt(
    backbone: Backbone, critics: dict[str, Critic], tensors: dict[str, Tensor], prompt: str, world: str
) -> dict:
    """Scores and marks of one prompt's candidates: {"law": [...], "marks": {critic: {look: {plausibility,
    motion}}}}."""
    marks: dict[str, dict] = {name: {} for name in critics}
    for look in (*(f"x{step}" for step in LOOKS), "final"):
        latent = tensors[look]
        clips = torch.cat([backbone.decode_latent(part).cpu() for part in latent.split(4)])
        for name, critic in critics.items():
            found = critic.judge(clips, FPS) if critic.reads == "frames" else critic.judge(latent, FPS / 4)
            marks[name][look] = {"plausibility": found.plausibility.tolist(), "motion": found.motion.tolist()}
    scores = evaluate(clips, world, [prompt] * len(clips))
    return {"prompt": prompt, "world": world, "marks": marks} | {
        name: getattr(scores, name).tolist() for name in SCORES
    }


def choice(row: dict, critic: str, pool: Sequence[int], reads: str, pruned: bool) -> int:
    """The candidate that the critic keeps of a pool, as Best-of-N Sampler decides."""
    left = list(pool)
    for look in (*(f"x{step}" for step in LOOKS if pruned), "final"):
        marks = row["marks"][critic][look]
        gate = gate_of_pool(torch.tensor([marks["motion"][number] for number in left]), reads)
        order = rank(torch.tensor([marks["plausibility"][number] for number in left]), gate)
        keep = 1 if look == "final" else (len(left) + 1) // 2
        left = [left[place] for place in order[:keep]]
    return left[0]


def draws(size: int, prompt: int) -> list[list[int]]:
    """Random pools of `size` of the candidates; the same for every critic."""
    rng = np.random.default_rng((size, prompt))
    if size == CANDIDATES:
        return [list(range(CANDIDATES))]
    return [rng.choice(CANDIDATES, size, replace=False).tolist() for _ in range(DRAWS)]


def chosen(rows: list[dict], who: str, size: int, score: str = "law", pruned: bool = False) -> list[float]:
    """Mean score of the choice among `size` candidates, a number per prompt. who: a critic, "random" or
    "oracle"."""
    found = []
    for number, row in enumerate(rows):
        values = []
        for pool in draws(size, number):
            if who == "random":
                values.append(np.mean([row[score][one] for one in pool]))
                continue
            if who == "oracle":
                best = max(pool, key=lambda one: row["law"][one])
            else:
                best = choice(row, who, pool, "latent" if who.startswith("motion") else "frames", pruned)
            values.append(row[score][best])
        found.append(float(np.mean(values)))
    return found


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; 0 where one of them is constant."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (one, other)]
    if min(np.ptp(np.asarray(values)) for values in (one, other)) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def print_correlation(rows: list[dict], critics: Sequence[str]) -> None:
    """Rank correlation with the law score, within each prompt, at every look."""
    looks = (*(f"x{step}" for step in LOOKS), "final")
    print("\nRank correlation of plausibility with the law score, within a prompt (mean +- standard error)\n")
    print("| critic | " + " | ".join(looks) + " |\n|---|" + "---|" * len(looks))
    for critic in critics:
        cells = []
        for look in looks:
            found = [spearman(row["marks"][critic][look]["plausibility"], row["law"]) for row in rows]
            cells.append(f"{np.mean(found):+.2f} +- {standard_error(found, range(len(found))):.2f}")
        print(f"| {critic} | " + " | ".join(cells) + " |")


def print_sizes(rows: list[dict], critics: Sequence[str]) -> None:
    """Law score of the choice over N, less that of chance."""
    print(
        "\nLaw score of the choice among N candidates; below it the gain over chance with its 95 % interval\n"
    )
    print("| choice | " + " | ".join(f"N = {size}" for size in SIZES) + " |\n|---|" + "---|" * len(SIZES))
    base = {size: chosen(rows, "random", size) for size in SIZES}
    for who in ("random", "oracle", *critics):
        cells = []
        for size in SIZES:
            found = chosen(rows, who, size)
            gain = paired_difference(found, base[size], range(len(rows)))
            cells.append(f"{np.mean(found):.3f}" + ("" if who == "random" or size == 1 else f" ({gain})"))
        print(f"| {who} | " + " | ".join(cells) + " |")


def print_pruned(rows: list[dict], critics: Sequence[str]) -> None:
    """Pruned runs beside unpruned ones: all candidates, and as many as cost the same."""
    print("\nPruned after steps 3 and 6 of 20: law score of the choice")
    print("(gain over the unpruned run of the same cost)\n")
    titles = (
        "3 unpruned",
        "8 pruned (3.2 clips)",
        "8 unpruned",
        "6 unpruned",
        "16 pruned (6.4 clips)",
        "16 unpruned",
    )
    print("| critic | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
    for critic in critics:
        cells = []
        for same, size in ((3, 8), (6, 16)):
            cheap, pruned = chosen(rows, critic, same), chosen(rows, critic, size, pruned=True)
            gain = paired_difference(pruned, cheap, range(len(rows)))
            whole = np.mean(chosen(rows, critic, size))
            cells += [f"{np.mean(cheap):.3f}", f"{np.mean(pruned):.3f} ({gain})", f"{whole:.3f}"]
        print(f"| {critic} | " + " | ".join(cells) + " |")


def print_watch(rows: list[dict], critics: Sequence[str]) -> None:
    """Other changes with the choice of 8."""
    print("\nChoice among 8\n\n| choice | " + " | ".join(SCORES) + " |\n|---|---|---|---|")
    for who in ("random", "oracle", *critics):
        print(
            f"| {who} | "
            + " | ".join(f"{np.mean(chosen(rows, who, 8, score)):.3f}" for score in SCORES)
            + " |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="keeps candidates and marks")
    parser.add_argument("--prompts", type=int, default=16, help="prompts, the eight worlds in turn")
    parser.add_argument("--seed", type=int, default=20000)
    parser.add_argument(
        "--stride", type=int, default=8, help="frames from one window of causal surprise to the next"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    backbone, critics = load_backbone("toy"), make_critics(args.stride)
    prompts, worlds = toy_prompts(args.prompts, args.seed)
    rows = []
    for number, (prompt, world) in enumerate(zip(prompts, worlds)):
        marks = args.folder / f"{number:03}-stride{args.stride}.json"
        if not marks.is_file():
            tensors = sample_prompt(
                backbone, prompt, args.seed + 1000 * number, args.folder / f"{number:03}.safetensors"
            )
            write_atomically(
                marks, json.dumps(mark_prompt(backbone, critics, tensors, prompt, world)).encode()
            )
        rows.append(json.loads(marks.read_text()))
    print(f"{len(rows)} prompts, {CANDIDATES} candidates each, {STEPS} steps, cfg {CFG:g}")
    for table in (print_correlation, print_sizes, print_pruned, print_watch):
        table(rows, list(critics))


if __name__ == "__main__":
    main()
