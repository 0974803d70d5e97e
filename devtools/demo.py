"""The demo: toy clips with and without guidance through a real ComfyUI, heatmaps over real clips, a predictor
trained on them, and a table of what guidance did to physics. dev.py starts it in the environment that it has
made.

    python devtools/demo.py --comfyui .comfyui/0.30.0 --base .bench/base-0.30.0
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from latent_physics.devtools.background import Training
from latent_physics.devtools.server import ComfyServer, output_files, was_interrupted
from latent_physics.devtools.shell import BenchError, explain, say
from latent_physics.devtools.toy_size import FRAMES, SIDE

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / ".bench" / "logs" / "demo-server.log"
WORLDS = (
    "rigid_body",
    "elastic",
    "fluid",
    "compressible_flow",
    "collision",
    "phase_change",
    "thermal",
    "optical",
)
STEPS, CFG = 20, 2.0
LONG = {
    "LatentPhysicsTrainMotionPredictor",
    "LatentPhysicsTrainPhysicsLora",
    "LatentPhysicsBestOfNSampler",
    "LatentPhysicsAttributeBankView",
    "TemporalScoreRescaling",
}
"""Nodes of graphs that the demo leaves to the menu of templates: they train, sample several candidates or
draw tens of fields."""
REAL_CLIPS = "*wan*"  # names of the clips in ComfyUI's template packages that Wan generated
SCORES = ("law", "adherence", "dynamic_degree")


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    predictor: str | None = None
    """A name of Load Motion Predictor's menu, guiding as the node comes; None for no guidance."""


ARMS = (
    Arm("unguided"),
    Arm("LaMo, the paper's prior (order 1)", "toy/toy_predictor_order1.safetensors"),
    Arm("LaMo, order-2 prior", "toy/toy_predictor_order2.safetensors"),
)


@dataclass
class Measured:
    """Scores of one arm's clips, in the order of their seeds."""

    scores: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SCORES})
    seconds: list[float] = field(default_factory=list)
    """Per clip, from the prompt's start to its end."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def clip_graph(
    arm: Arm, world: str, prompt: str, seed: int, batch: int, steps: int = STEPS
) -> dict[str, Any]:
    """Generates `batch` clips of one prompt, scores them, and keeps the first as a file."""
    graph = {
        "toy": node("LatentPhysicsLoadToyWorld"),
        "positive": node("CLIPTextEncode", clip=["toy", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["toy", 1], text=""),
        "latent": node("EmptyHunyuanLatentVideo", width=SIDE, height=SIDE, length=FRAMES, batch_size=batch),
        "sampler": node(
            "KSampler",
            model=["toy", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=seed,
            steps=steps,
            cfg=CFG,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["toy", 2]),
        "score": node(
            "LatentPhysicsLawScore", images=["decoded", 0], world=world, prompt=prompt, frames=FRAMES
        ),
        "table": node("PreviewAny", source=["score", 4]),
        "first": node("ImageFromBatch", image=["decoded", 0], batch_index=0, length=FRAMES),
        "file": node(
            "SaveAnimatedWEBP", images=["first", 0], filename_prefix=f"demo/{world}", fps=12.0, lossless=True
        ),
    }
    if arm.predictor is not None:
        graph["predictor"] = node("LatentPhysicsLoadMotionPredictor", name=arm.predictor)
        graph["guidance"] = node("LatentPhysicsLaMoGuidance", model=["toy", 0], predictor=["predictor", 0])
        graph["sampler"]["inputs"]["model"] = ["guidance", 0]
    return graph


def heatmap_graph(clip: str) -> dict[str, Any]:
    """Drift heatmap over a real clip that lies in ComfyUI's input folder."""
    return {
        "toy": node("LatentPhysicsLoadToyWorld"),
        "clip": node("LoadImage", image=clip),
        "part": node("ImageFromBatch", image=["clip", 0], batch_index=0, length=FRAMES),
        "small": node(
            "ImageScale", image=["part", 0], upscale_method="area", width=192, height=192, crop="center"
        ),
        "latent": node("VAEEncode", pixels=["small", 0], vae=["toy", 2]),
        "heat": node("LatentPhysicsMotionDriftHeatmap", latent=["latent", 0], images=["small", 0]),
        "file": node("SaveAnimatedWEBP", images=["heat", 0], filename_prefix="demo/drift", fps=12.0),
    }


class Demo:
    """One run. Every step says what it does and keeps its files under `out`."""

    def __init__(self, server: ComfyServer, options: argparse.Namespace) -> None:
        self.server, self.options, self.out = server, options, options.out
        self.files: list[Path] = []
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        say(f"{time.monotonic() - self.started:4.0f} s  {text}")

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """The history entry of a graph, each widget that it leaves out at its default. Raises BenchError."""
        entry = self.server.run(self.server.with_defaults(graph))
        if was_interrupted(entry):
            reason = f"somebody interrupted a prompt at {self.server.url}"
            raise BenchError(f"{reason}: run the demo again. Log: {self.server.log}")
        return entry

    def keep(self, entry: dict[str, Any], only: str | None, name: str) -> None:
        """Copies a prompt's saved files (of node `only`) to `out` under `name`, numbered if there are
        several.
        """
        found = [
            item
            for node_id, item in output_files(entry)
            if item["type"] == "output" and only in (None, node_id)
        ]
        for index, item in enumerate(found):
            number = f"-{index + 1}" if len(found) > 1 else ""
            target = self.out / f"{name}{number}{Path(item['filename']).suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.server.path_of(item), target)
            self.files.append(target)

    def run_workflows(self) -> None:
        """The shipped graphs that need no model but the toy one and take seconds."""
        for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
            graph = json.loads(path.read_text(encoding="utf-8"))
            kinds = {entry["class_type"] for entry in graph.values()}
            if "LatentPhysicsLoadToyWorld" in kinds and not kinds & LONG:
                self.say(f"workflow {path.stem}")
                self.keep(self.run(graph), None, f"workflows/{path.stem}")

    def draw_heatmaps(self, count: int) -> None:
        """Drift heatmaps over real clips: those that ComfyUI's own template packages install."""
        from latent_physics.training.data.videos import template_clips

        clips = template_clips(REAL_CLIPS)
        for path in clips[:: max(1, len(clips) // count)][:count]:
            shutil.copyfile(path, self.server.base / "input" / path.name)
            self.say(f"drift heatmap over {path.name}")
            self.keep(self.run(heatmap_graph(path.name)), "file", f"heatmaps/{path.stem}")

    def measure(self, clips: int) -> dict[Arm, Measured]:
        """Generates and scores `clips` clips per arm, the arms by turns so that none has a quieter
        machine.
        """
        from latent_physics.toyworld import sample

        for arm in ARMS:  # loads the models, so that no row pays for it
            self.run(clip_graph(arm, WORLDS[0], "", 0, 1, steps=1))
        measured = {arm: Measured() for arm in ARMS}
        batch = min(self.options.batch, clips)
        rounds = -(-clips // batch)
        for index in range(rounds):
            world, seed = WORLDS[index % len(WORLDS)], self.options.seed + index
            prompt = sample(world, 1, seed)[1][0]
            for arm in ARMS:
                entry = self.run(clip_graph(arm, world, prompt, seed, batch))
                table = json.loads(entry["outputs"]["table"]["text"][0])
                for name in SCORES:
                    measured[arm].scores[name] += table[name]
                measured[arm].seconds += [seconds_of(entry) / batch] * batch
                if index < len(WORLDS):
                    self.keep(
                        entry,
                        "file",
                        f"clips/{world}-{ARMS.index(arm)}-{'guided' if arm.predictor else 'unguided'}",
                    )
            done = f"{(index + 1) * batch} of {rounds * batch} clips"
            self.say(f"{done}, each with {len(ARMS)} priors ({world}: {prompt!r})")
        return measured


def seconds_of(entry: dict[str, Any]) -> float:
    """Seconds that ComfyUI worked on a prompt."""
    times = {
        name: message["timestamp"] for name, message in entry["status"]["messages"] if "timestamp" in message
    }
    return (times["execution_success"] - times["execution_start"]) / 1000


def table_of(measured: dict[Arm, Measured], batch: int) -> Iterator[str]:
    """The lines of the table: means per arm, and for guided ones the paired difference to the unguided with
    its interval. `batch` clips in a row share a prompt."""
    from latent_physics.toyworld.statistics import paired_difference

    reference = measured[ARMS[0]]
    yield f"{'':36}{'law':>26}{'adherence':>26}{'dynamic degree':>26}{'s/clip':>8}"
    for arm, found in measured.items():
        cells = [f"{np.mean(found.scores[name]):.3f}" for name in SCORES]
        yield f"{arm.name:36}{''.join(f'{cell:>26}' for cell in cells)}{np.mean(found.seconds):8.2f}"
        if arm.predictor is not None:
            prompts = [index // batch for index in range(len(found.scores[SCORES[0]]))]
            cells = [
                str(paired_difference(found.scores[name], reference.scores[name], prompts)) for name in SCORES
            ]
            yield f"{'  less unguided':36}{''.join(f'{cell:>26}' for cell in cells)}"


def at_least_1(text: str) -> int:
    """A count from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count: give 1 or more")
    return int(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI's main.py")
    parser.add_argument(
        "--base", type=Path, required=True, help="base directory whose custom_nodes holds the pack"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo", help="folder for the files")
    parser.add_argument("--clips", type=at_least_1, default=64, help="clips per row of the table")
    parser.add_argument("--batch", type=at_least_1, default=2, help="clips per prompt")
    parser.add_argument("--seed", type=int, default=5000, help="seed of the table's first clips")
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="how long the predictor is trained on real clips"
    )
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """The whole demo. Raises BenchError, and OSError if a file cannot be written; server and training have
    ended then.

    Where only the training on real clips failed, files and table are printed first.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    training = None
    try:
        say(f"starting ComfyUI from {options.comfyui}")
        with ComfyServer(
            python=Path(sys.executable), comfyui=options.comfyui, base=options.base, log=LOG
        ) as server:
            demo = Demo(server, options)
            demo.say("training a motion predictor on real clips, in the background")
            training = Training(REAL_CLIPS, options.out, options.minutes, clips=24)
            demo.run_workflows()
            demo.draw_heatmaps(3)
            measured = demo.measure(options.clips)
            demo.say("waiting for the training to end")
            failure = None
            try:
                demo.files += training.wait()
            except (
                BenchError
            ) as error:  # said at the end: the measured clips took minutes, and stand without it
                failure = error
    finally:
        if training is not None:
            training.stop()
    report(demo, measured)
    if failure is not None:
        raise failure


def report(demo: Demo, measured: dict[Arm, Measured]) -> None:
    """Prints the files and the table, and keeps the table as one more file. Raises OSError."""
    options = demo.options
    lines = list(table_of(measured, min(options.batch, options.clips)))
    (options.out / "table.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say("\nfiles:")
    for path in [*demo.files, options.out / "table.txt"]:
        say(f"  {os.path.relpath(path)}")
    count = len(measured[ARMS[0]].seconds)
    same = "the same prompts and seeds in each; differences with 95 % confidence intervals"
    say(f"\n{count} clips per row, {same}\n")
    say("\n".join(lines))


def sentence(error: Exception) -> str:
    """The error, in one line that names a log."""
    text = " ".join(str(error).split())  # exceptions of nodes may have several lines
    if isinstance(error, OSError):
        text = explain(text) or text
    return text if "Log: " in text else f"{text.rstrip('.')}. Log: {LOG}"


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = parse(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that server and training are stopped then, too
    try:
        run(options)
    except (BenchError, OSError) as error:
        print(f"demo: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"demo: stopped; what it made until then is in {options.out}. Log: {LOG}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
