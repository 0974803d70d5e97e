"""Seconds and peak memory of an iteration of `latent-physics grpo`, with and without each memory measure.

    python3 dev.py bench cost/grpo [--clips 16]

The toy world on one thread, each arm in a process of its own: an iteration is timed after a first one, apart
for sampling and judging (the rollout) and for learning. Peak memory is the largest resident memory over that
before the transformer learned or sampled anything (of Linux, large tensors given back at once). A GPU's
memory is not measured, so `offload_samples_to_cpu` has no arm: on a CPU it changes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from latent_physics.benchmarks.cost.plan import resident
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import ProgressLine
from latent_physics.training.loop.loop import Loop
from latent_physics.training.tasks.grpo.run import make_run
from latent_physics.training.tasks.grpo.settings import GrpoConfig, PolicyTrainerConfig

MIB = 2**20
TRAINER = PolicyTrainerConfig(steps=3, batch=8, validation_clips=0, save_every=100)
FULL = TuneConfig(mode="full")
LORA = TuneConfig(rank=32, alpha=64.0)
ARMS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"tune": LORA},
    "LoRA, with the reference (kl_beta)": {"tune": LORA, "kl_beta": 0.01},
    "LoRA, checkpointing": {"tune": LORA, "trainer": replace(TRAINER, checkpointing=True)},
    "LoRA, half the batch": {"tune": LORA, "trainer": replace(TRAINER, batch=4)},
    "LoRA, twice the batch": {"tune": LORA, "trainer": replace(TRAINER, batch=16)},
    "LoRA, a window of 1": {"tune": LORA, "num_sde_steps": 1},
    "LoRA, nothing decoded": {"tune": LORA, "rewards": ["motion source=PREDICTOR"], "watch": []},
    "LoRA, nft": {"tune": LORA, "algorithm": "nft"},
}
"""Differences from an iteration of all weights at a batch of 8, a window of 2, judged by the law."""


def config_of(name: str, clips: int, out: Path) -> GrpoConfig:
    """The settings of an arm."""
    weights = Path(__file__).resolve().parents[2] / "toyworld" / "weights"
    more = dict(ARMS[name])
    if "rewards" in more:
        predictor = str(weights / "toy_predictor_order1.safetensors")
        more["rewards"] = [text.replace("PREDICTOR", predictor) for text in more["rewards"]]
    usual = {
        "backbone": "toy", "toy_prompts": 16, "eval_count": 1, "group_size": 8, "guidance_scale": 2.0,
        "unique_sample_num_per_epoch": clips // 8, "num_inference_steps": 8, "rewards": ["law"],
        "watch": ["dynamic_degree"], "tune": FULL, "trainer": TRAINER, "out": out,
    }  # fmt: skip
    return GrpoConfig(**(usual | more))


def measure(name: str, clips: int) -> dict[str, float]:
    """Seconds of the second iteration's rollout and learning, and peak memory of both."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        progress = ProgressLine("grpo", stream=io.StringIO())
        run = replace(make_run(config_of(name, clips, Path(folder)), progress), out=None)
        spent: dict[str, float] = {"rollout": 0.0}
        collect = run.task.collector.collect

        def timed(number: int) -> Any:
            begin = time.process_time()
            made = collect(number)
            spent["rollout"] = time.process_time() - begin
            return made

        run.task.collector.collect = timed
        loop = Loop(run)
        base = resident()
        times = []

        def observe(_: Any) -> bool:
            times.append(time.process_time())
            return len(times) < 2

        loop.run.on_step = observe
        loop.go(None, progress)
    learning = times[1] - times[0] - spent["rollout"]
    return {"rollout": spent["rollout"], "learning": learning, "peak": resident("VmHWM") - base}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16, help="clips of an iteration, a multiple of 8")
    parser.add_argument("--arm", choices=list(ARMS), help="one arm, as JSON")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args.arm, args.clips)))
        return
    found: dict[str, dict[str, float]] = {}
    print("| arm | rollout, s a clip | learning, s a clip | of all weights | peak memory, MiB |")
    print("|---|---|---|---|---|")
    for name in ARMS:
        command = [sys.executable, "-m", "latent_physics.benchmarks.cost.grpo", "--clips", str(args.clips)]
        limits = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--arm", name], capture_output=True, text=True, check=True, env=os.environ | limits
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        row = {key: value / args.clips for key, value in found[name].items() if key != "peak"}
        first = found["all weights"]
        ratio = sum(row.values()) * args.clips / (first["rollout"] + first["learning"])
        print(
            f"| {name} | {row['rollout']:.2f} | {row['learning']:.2f} | {ratio:.2f} "
            f"| {found[name]['peak'] / MIB:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
