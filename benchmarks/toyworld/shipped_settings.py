"""Effect of LaMo Guidance at the settings of every graph that ships with it, in the toy world.

    python3 dev.py bench toyworld/shipped_settings           every graph in workflows/api
    python3 dev.py bench toyworld/shipped_settings --grid    4 to 50 steps, CFG 1 and 2, shift 3 to 12
    python3 dev.py bench toyworld/shipped_settings --cell euler 20 2 3 --share 0.25    one schedule

A graph's sampler, scheduler, steps, CFG, shift and guidance are read from the graph; model, prompts and size
are the toy world's. Every row compares with the same clips unguided: same prompts, same noise. Needs a
ComfyUI (dev.py puts one beside the pack).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from latent_physics.devtools import comfyui
from latent_physics.toyworld import WORLDS, evaluate
from latent_physics.toyworld import sample as draw
from latent_physics.toyworld.canvas import LATENT
from latent_physics.toyworld.statistics import paired_difference
from latent_physics.toyworld.travel import travel
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SCORES = ("law", "adherence", "dynamic_degree", "travel")
"""Measures of a clip: three of `toyworld.Scores`, and the way of its things (`toyworld.travel`), which
flicker is no part of."""
CHANNELS = 16
SETS = (7000, 8000, 9000, 10000)
"""Seeds of the prompts and the noise; no constant was fitted on them."""
TOY_SHIFT = 3.0
"""Shift of a graph that sets none: the toy model's own."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One sampler node: which of the schedule's steps it takes, and the guidance of its MODEL."""

    first: int = 0
    last: int = 10_000
    guidance: Mapping[str, Any] | None = None
    """Inputs of LaMo Guidance, without its wires; None for an unguided MODEL."""
    levels: tuple[float, ...] = ()
    """Noise levels that the graph writes out: such a stage begins with noise of its own."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Sampling of a graph."""

    name: str
    sampler: str
    scheduler: str = "simple"
    steps: int
    cfg: float
    shift: float
    stages: tuple[Stage, ...] = field(default=(Stage(),))

    def unguided(self) -> Schedule:
        return replace(self, stages=tuple(replace(stage, guidance=None) for stage in self.stages))

    def guided(self, **guidance: Any) -> Schedule:
        return replace(self, stages=tuple(replace(stage, guidance=guidance) for stage in self.stages))


# -- what the graphs say -------------------------------------------------------------------------------------


def shipped(folder: Path = ROOT / "workflows" / "api") -> list[Schedule]:
    """The schedules of the graphs that sample a MODEL with LaMo Guidance and without other corrections of
    ours; graphs that sample alike are one row with all their names."""
    rows: dict[str, Schedule] = {}
    for path in sorted(folder.glob("*.json")):
        found = schedule_of(path.stem, json.loads(path.read_text(encoding="utf-8")))
        if found is not None:
            alike = repr(replace(found, name=""))
            known = f"{rows[alike].name}, " if alike in rows else ""
            rows[alike] = replace(found, name=f"{known}{found.name}")
    return list(rows.values())


def schedule_of(name: str, graph: Mapping[str, Any]) -> Schedule | None:
    """A graph's schedule, None where it has no sampler guided by LaMo alone, or makes a video block by block.

    CogVideoX's VOIDSampler takes DDIM steps, which for a flow are those of euler.
    """
    stages, settings = [], {}
    for node in graph.values():
        inputs = sampler_inputs(graph, node) if "Sampler" in node["class_type"] else {}
        chain = list(models_above(graph, inputs))
        kinds = [above["class_type"] for above in chain]
        guided = [above["inputs"] for above in chain if above["class_type"] == "LatentPhysicsLaMoGuidance"]
        blocks = "num_frame_per_block" in inputs
        if len(guided) != 1 or "LatentPhysicsPilaCorrection" in kinds or blocks:
            continue
        silent = ("model", "predictor", "full_trace")
        guidance = {key: value for key, value in guided[0].items() if key not in silent}
        levels = tuple(float(level) for level in inputs.get("levels", "").split(",") if level)
        last = inputs.get("end_at_step", 10_000)
        stages.append(
            Stage(first=inputs.get("start_at_step", 0), last=last, guidance=guidance, levels=levels)
        )
        shifts = [above["inputs"]["shift"] for above in chain if above["class_type"] == "ModelSamplingSD3"]
        settings = {
            "sampler": inputs.get("sampler_name", "euler"),
            "scheduler": inputs.get("scheduler", "simple"),
            "steps": sum(len(stage.levels) - 1 for stage in stages) if levels else inputs["steps"],
            "cfg": inputs.get("cfg", 1.0),
            "shift": shifts[0] if shifts else TOY_SHIFT,
        }
    if not stages:
        return None
    return Schedule(name=name, stages=tuple(sorted(stages, key=lambda stage: stage.first)), **settings)


def sampler_inputs(graph: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler node's inputs with those of its guider, sampler and schedule; `levels` are those of Manual
    Sigmas."""
    schedule, sampler, guider = (
        graph[wire[0]] if isinstance(wire := node["inputs"].get(name), list) else {"inputs": {}}
        for name in ("sigmas", "sampler", "guider")
    )
    levels = schedule["inputs"].get("sigmas", "")
    return {**schedule["inputs"], **sampler["inputs"], **node["inputs"], **guider["inputs"], "levels": levels}


def models_above(graph: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The nodes that the MODEL of `inputs` went through, from the sampler upwards."""
    wire = inputs.get("model")
    while isinstance(wire, list):
        yield graph[wire[0]]
        wire = graph[wire[0]]["inputs"].get("model")


# -- sampling ------------------------------------------------------------------------------------------------


@functools.cache
def toy() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of Load Toy World, on the CPU."""
    found = comfyui.find(ROOT)
    if found is None:
        raise SystemExit(
            "there is no ComfyUI beside the pack: run `python dev.py` once, or set COMFYUI_PATH."
        )
    sys.path.append(str(found.path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from latent_physics.nodes.toyworld import LoadToyWorld

    with torch.inference_mode():
        return LoadToyWorld.execute().args


@functools.cache
def predictor(order: int) -> Any:
    """Output of Load Motion Predictor for the toy world's file of that order."""
    toy()
    from latent_physics.nodes.lamo import LoadMotionPredictor

    with torch.inference_mode():
        return LoadMotionPredictor.execute(f"toy/toy_predictor_order{order}.safetensors").args[0]


def model_for(schedule: Schedule, guidance: Mapping[str, Any] | None, order: int) -> Any:
    """The toy MODEL at the schedule's shift, guided."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from latent_physics.nodes.lamo import LaMoGuidance

    model = ModelSamplingSD3().patch(toy()[0], schedule.shift)[0]
    return model if guidance is None else LaMoGuidance.execute(model, predictor(order), **guidance).args[0]


def conditioning(texts: Sequence[str]) -> list[Any]:
    """One CONDITIONING of as many prompts as clips."""
    clip = toy()[1]
    pairs = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
    masks = torch.cat([options["attention_mask"] for _, options in pairs])
    return [[torch.cat([tokens for tokens, _ in pairs]), {"attention_mask": masks}]]


def clips_of(schedule: Schedule, prompts: Sequence[str], seed: int, order: int) -> Tensor:
    """`B 3 T H W` in [0, 1]; noise of clip i is seeded by seed + i."""
    toy()  # puts ComfyUI on the path
    import comfy.sample

    rows = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    noise = torch.stack([torch.randn(CHANNELS, *LATENT, generator=generator) for generator in rows])
    with torch.inference_mode():
        wanted, empty = conditioning(prompts), conditioning([""])
        latent = torch.zeros_like(noise)
        for number, stage in enumerate(schedule.stages):
            fresh = number == 0 or bool(stage.levels)
            latent = comfy.sample.sample(
                model_for(schedule, stage.guidance, order), noise if fresh else torch.zeros_like(noise),
                schedule.steps, schedule.cfg, schedule.sampler, schedule.scheduler, wanted, empty, latent,
                disable_noise=not fresh, start_step=stage.first, last_step=min(stage.last, schedule.steps),
                force_full_denoise=stage is schedule.stages[-1], disable_pbar=True, seed=seed,
                sigmas=torch.tensor(stage.levels) if stage.levels else None,
            )  # fmt: skip
        images = torch.cat([toy()[2].decode(part) for part in latent.split(8)])
    return images.movedim(-1, 1).clamp(0, 1).float()


def scores_of(schedule: Schedule, sets: Sequence[int], per_world: int, order: int) -> dict[str, list[float]]:
    """Every clip's scores and its prompt, seed set after seed set, `per_world` clips of each world."""
    found: dict[str, list[Any]] = {name: [] for name in (*SCORES, "prompts", "worlds")}
    for seed in sets:
        prompts = [prompt for name in WORLDS for prompt in draw(name, per_world, seed)[1]]
        names = [name for name in WORLDS for _ in range(per_world)]
        clips = clips_of(schedule, prompts, seed, order)
        scores = vars(evaluate(clips, names, prompts)) | {"travel": travel(clips, names)}
        for name in SCORES:
            found[name] += scores[name].tolist()
        found["prompts"] += [f"{seed} {prompt}" for prompt in prompts]
        found["worlds"] += names
    return found


# -- tables --------------------------------------------------------------------------------------------------


def row(schedule: Schedule, plain: Mapping[str, list[float]], guided: Mapping[str, list[float]]) -> str:
    """One line of the table: means unguided, and the paired differences with their 95 % intervals."""
    mean = " | ".join(f"{sum(plain[name]) / len(plain[name]):.3f}" for name in SCORES)
    less = " | ".join(str(paired_difference(guided[name], plain[name], plain["prompts"])) for name in SCORES)
    run = f"{schedule.sampler}, {schedule.steps} | {schedule.cfg:g} | {schedule.shift:g}"
    return f"| {schedule.name} | {run} | {mean} | {less} |"


NAMES = [name.replace("_", " ") for name in SCORES]
HEAD = (
    f"| graph | sampler, steps | CFG | shift | {' | '.join(f'{name}, unguided' for name in NAMES)} "
    f"| {' | '.join(NAMES)} |\n" + "|---" * (4 + 2 * len(SCORES)) + "|"
)


def by_world(plain: Mapping[str, list[Any]], guided: Mapping[str, list[Any]]) -> Iterator[str]:
    """A table of every world's means, unguided -> guided: where guidance gains and what it costs."""
    yield f"\n| world | clips | {' | '.join(NAMES)} |\n" + "|---" * (2 + len(SCORES)) + "|"
    for world in WORLDS:
        rows = [row for row, name in enumerate(plain["worlds"]) if name == world]
        means = [[fmean(found[name][row] for row in rows) for found in (plain, guided)] for name in SCORES]
        cells = " | ".join(f"{before:.2f} -> {after:.2f}" for before, after in means)
        yield f"| {world} | {len(rows)} | {cells} |"


def grid(share: float, start: float) -> list[Schedule]:
    """4 to 50 steps, CFG 1 and 2, shift 3 to 12, with samplers of ComfyUI's templates."""
    samplers = {4: "euler", 6: "uni_pc", 8: "res_multistep", 20: "euler", 30: "uni_pc", 50: "dpmpp_2m"}
    return [
        cell(samplers[steps], steps, cfg, shift, share, start)
        for steps in samplers
        for cfg in (1.0, 2.0)
        for shift in (3.0, 5.0, 8.0, 12.0)
    ]


def cell(sampler: str, steps: int, cfg: float, shift: float, share: float, start: float) -> Schedule:
    """One schedule, guided with the graphs' other settings."""
    guidance = {"strength": 25.0, "active": 0.8, "share": share, "start": start}
    stages = (Stage(guidance=guidance),)
    return Schedule(name="grid", sampler=sampler, steps=steps, cfg=cfg, shift=shift, stages=stages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grid", action="store_true", help="the grid of schedules instead of the shipped graphs"
    )
    parser.add_argument(
        "--orders", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="orders of the predictor"
    )
    parser.add_argument("--sets", type=int, nargs="+", default=list(SETS), help="seed sets")
    parser.add_argument("--clips", type=int, default=2, help="clips per world and seed set")
    parser.add_argument(
        "--cell", nargs=4, metavar=("SAMPLER", "STEPS", "CFG", "SHIFT"), help="one schedule instead"
    )
    parser.add_argument("--share", type=float, default=0.5, help="share of the stable step, for the grid")
    parser.add_argument(
        "--start", type=float, default=0.9, help="noise level below which steps are guided, for the grid"
    )
    parser.add_argument("--worlds", action="store_true", help="after every row a table by world")
    args = parser.parse_args()
    schedules = grid(args.share, args.start) if args.grid else shipped()
    if args.cell:
        sampler, steps, cfg, shift = args.cell
        schedules = [cell(sampler, int(steps), float(cfg), float(shift), args.share, args.start)]
    for order in args.orders:
        print(
            f"\npredictor of order {order}, {len(args.sets)} seed sets of {args.clips * len(WORLDS)} "
            f"clips\n\n{HEAD}"
        )
        for schedule in schedules:
            plain = scores_of(schedule.unguided(), args.sets, args.clips, order)
            guided = scores_of(schedule, args.sets, args.clips, order)
            print(row(schedule, plain, guided), flush=True)
            if args.worlds:
                print("\n".join(by_world(plain, guided)), flush=True)


if __name__ == "__main__":
    main()
