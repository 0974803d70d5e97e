"""Power of each critic in the toy world: real clips against the same scenes with broken dynamics.

    python3 dev.py bench toyworld/critics --clips 12

For every law and every way to break it: AUC, the chance that a real clip is found more plausible than a
broken one, with its standard error (0.5: the critic cannot tell; below: it prefers the broken ones). Score is
plausibility x motion gate, as the nodes rank. Each critic's raw parts follow, without the gate. Then, per
pool of one scene and all its versions: how often the frozen clip comes first by plausibility alone, and by
score. Cost is processor time on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from latent_physics.encoders import Teacher, VJEPATeacher, load_teacher
from latent_physics.encoders.critics import critic_through, load_critic
from latent_physics.methods.critics import Critic, Judgement, gate_of_pool, rank
from latent_physics.methods.weights import write_atomically
from latent_physics.toyworld import WORLDS
from latent_physics.toyworld.corruption import VIOLATIONS
from latent_physics.toyworld.statistics import auc, standard_error
from latent_physics.training.backbones import load_backbone
from torch import Tensor

FPS = 16.0
LATENT_FPS = FPS / 4
REAL = "real"
ENCODERS = ("toy_videomae", "toy_vjepa2")
WEIGHTS = Path(__file__).resolve().parents[2] / "toyworld" / "weights"


class Remembering:
    """A world model that answers the same question once: several critics share its passes."""

    def __init__(self, model: VJEPATeacher) -> None:
        self.model, self.patch, self.known = model, model.patch, {}

    def features(self, video: Tensor) -> Tensor:
        return self._ask(video, None)

    def predicted(self, video: Tensor, context: int) -> Tensor:
        return self._ask(video, context)

    def _ask(self, video: Tensor, context: int | None) -> Tensor:
        key = (video.numpy().tobytes(), context)
        if key not in self.known:
            found = self.model.features(video) if context is None else self.model.predicted(video, context)
            self.known[key] = found
        return self.known[key]


def make_critics(
    stride: int, contexts: Sequence[int], encoders: Sequence[str] = ENCODERS
) -> tuple[dict[str, Critic], list[Remembering]]:
    """(the critics by name, the models to clear between clips)."""
    from latent_physics.methods.critics import CausalSurprise

    world = Remembering(load_teacher("toy_vjepa2"))
    settings = {"stride": stride, "contexts": tuple(contexts)}
    critics: dict[str, Critic] = {
        f"surprise {distance}": CausalSurprise(world, distance=distance, **settings)
        for distance in ("cosine", "l1")
    }
    for name in encoders:
        encoder: Teacher = load_teacher(name)
        critics[f"geometry {name.removeprefix('toy_')}"] = critic_through(encoder, "geometry")
    for order in (1, 2):
        critics[f"motion order {order}"] = load_critic(
            "motion", WEIGHTS / f"toy_predictor_order{order}.safetensors"
        )
    return critics, [world]


def versions(name: str, number: int, seed: int) -> dict[str, np.ndarray]:
    """Kind -> frames (T,3,H,W): one scene as it is, and broken in every way."""
    world = WORLDS[name]
    scene = world.draw(np.random.default_rng((seed, number)))
    broken = {
        kind: make(world, scene, np.random.default_rng((seed + 1, number)))
        for kind, make in VIOLATIONS.items()
    }
    return {REAL: world.render(scene), **broken}


def row_of(found: Judgement) -> dict[str, float]:
    """Plausibility, motion, score, and the parts with their sign turned: higher is more plausible in all
    of them."""
    columns = {"score": found.score, "plausibility": found.plausibility, "motion": found.motion}
    columns |= {f"part {name}": -value for name, value in found.parts.items()}
    return {name: float(value[0]) for name, value in columns.items()}


def judge_all(args: argparse.Namespace) -> list[dict]:
    """A row per world, scene, kind and critic; kept in the file named by --rows, where a stopped run goes
    on."""
    critics, models = make_critics(args.stride, args.contexts, args.encoders)
    backbone = load_backbone("toy")
    rows = json.loads(args.rows.read_text()) if args.rows and args.rows.is_file() else []
    seen = {(row["world"], row["scene"]) for row in rows}
    for number in range(args.clips):
        for name in WORLDS:
            if (name, number) in seen:
                continue
            for kind, frames in versions(name, number, args.seed).items():
                clip = torch.from_numpy(np.ascontiguousarray(frames)).movedim(0, 1)[None].contiguous()
                latent = backbone.encode_video(clip)
                for title, critic in critics.items():
                    begin = time.process_time()
                    reads_frames = critic.reads == "frames"
                    found = critic.judge(
                        clip if reads_frames else latent, FPS if reads_frames else LATENT_FPS
                    )
                    place = {"world": name, "scene": number, "kind": kind, "critic": title}
                    rows.append({**place, **row_of(found), "seconds": time.process_time() - begin})
                for model in models:
                    model.known.clear()
            if args.rows:
                write_atomically(args.rows, json.dumps(rows).encode())
    return rows


def column(rows: list[dict], name: str, critic: str, kind: str, world: str | None = None) -> list[float]:
    """Values of one column, in the order of the scenes."""
    chosen = (r for r in rows if (r["critic"], r["kind"]) == (critic, kind) and world in (None, r["world"]))
    return [row[name] for row in chosen]


def over_laws(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of several AUCs and its error: from their own errors or, where a single scene per law gives none,
    from how much they differ.
    """
    values, errors = np.array(found).T
    if np.isfinite(errors).all():
        return float(values.mean()), float(np.sqrt((errors**2).sum()) / len(values))
    return float(values.mean()), standard_error(values, range(len(values)))


def print_auc(rows: list[dict], by: str, name: str) -> None:
    """AUC +- standard error of one column: a line per critic, a column per violation ("kind") or per law
    ("world")."""
    titles = list(VIOLATIONS) if by == "kind" else list(WORLDS)
    print(f"\nAUC of {name}, by {'violation' if by == 'kind' else 'law, over all violations but frozen'}\n")
    print("| critic | " + " | ".join(titles) + " | mean |\n|---|" + "---|" * (len(titles) + 1))
    for critic in dict.fromkeys(row["critic"] for row in rows):
        cells = []
        for title in titles:
            pairs = (
                [(title, world) for world in WORLDS]
                if by == "kind"
                else [(k, title) for k in VIOLATIONS if k != "frozen"]
            )
            found = [
                auc(column(rows, name, critic, REAL, world), column(rows, name, critic, kind, world))
                for kind, world in pairs
                if column(rows, name, critic, REAL, world)
            ]
            cells.append(over_laws(found))
        mean = np.mean([value for value, _ in cells])
        print(f"| {critic} | " + " | ".join(f"{a:.2f} +- {e:.2f}" for a, e in cells) + f" | {mean:.2f} |")


def print_parts(rows: list[dict]) -> None:
    """Mean AUC over laws and violations (but frozen) of every raw part, beside plausibility and score."""
    print(
        "\nMean AUC over laws and violations (without frozen), of each raw part\n\n| critic | measure | "
        "AUC |\n|---|---|---|"
    )
    for critic in dict.fromkeys(row["critic"] for row in rows):
        names = next([n for n in row if n.startswith("part ")] for row in rows if row["critic"] == critic)
        for name in ("score", "plausibility", "motion", *names):
            found = [
                auc(column(rows, name, critic, REAL, world), column(rows, name, critic, kind, world))[0]
                for world in WORLDS
                for kind in VIOLATIONS
                if kind != "frozen" and column(rows, name, critic, REAL, world)
            ]
            print(f"| {critic} | {name.removeprefix('part ')} | {np.mean(found):.3f} |")


def print_frozen(rows: list[dict], reads: dict[str, str]) -> None:
    """Rate at which the frozen version of a scene comes first among all its versions."""
    print(
        "\nThe frozen clip first among a scene's versions\n\n| critic | by plausibility | by score "
        "|\n|---|---|---|"
    )
    for critic, what in reads.items():
        pools: dict[tuple, list[dict]] = {}
        for row in (row for row in rows if row["critic"] == critic):
            pools.setdefault((row["world"], row["scene"]), []).append(row)
        plain, gated = 0, 0
        for pool in pools.values():
            worth = torch.tensor([row["plausibility"] for row in pool])
            frozen = [row["kind"] for row in pool].index("frozen")
            plain += int(worth.argmax()) == frozen
            gated += (
                rank(worth, gate_of_pool(torch.tensor([row["motion"] for row in pool]), what))[0] == frozen
            )
        print(f"| {critic} | {plain} of {len(pools)} | {gated} of {len(pools)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=12, help="scenes per law")
    parser.add_argument("--seed", type=int, default=3000)
    parser.add_argument(
        "--stride", type=int, default=4, help="frames from one window of causal surprise to the next"
    )
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[4, 8], help="context lengths of causal surprise"
    )
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="those that geometry looks through")
    parser.add_argument(
        "--rows", type=Path, help="a JSON file that keeps every judgement; a stopped run goes on with it"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = judge_all(args)
    critics = list(dict.fromkeys(row["critic"] for row in rows))
    print(f"{args.clips} scenes per law, each as it is and in {len(VIOLATIONS)} broken versions")
    for by in ("kind", "world"):
        print_auc(rows, by, "score")
        print_auc(rows, by, "plausibility")
    print_parts(rows)
    print_frozen(rows, {name: "latent" if name.startswith("motion") else "frames" for name in critics})
    print("\n| critic | clips/s |\n|---|---|")
    for name in critics:
        seconds = [row["seconds"] for row in rows if row["critic"] == name]
        print(f"| {name} | {1 / np.mean(seconds):.1f} |")


if __name__ == "__main__":
    main()
