"""`latent-physics plan` against what small real runs take on this processor: peak memory and seconds a step.

    python3 dev.py bench cost/plan

Each run trains a transformer of diffusers' Wan class with the trainer's own module, objective and optimiser,
in a process of its own. Measured: the largest resident memory over that before the model was built (of
Linux, with large tensors given back at once), and the processor time of a step, the smallest of three. The
plan's seconds are its operations and bytes over this processor's speed at a matrix product and an addition.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.optim import make_optimizer, trainable
from latent_physics.training.loop.task import ParameterGroup
from latent_physics.training.plan.model import Model
from latent_physics.training.plan.step import StepCount, build_student, count_step, some_batch
from latent_physics.training.tasks.finetune import FinetuneConfig
from torch import nn

MIB = 2**20
SIZES = {"attention_head_dim": 64, "text_dim": 256, "freq_dim": 64}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small run."""

    name: str
    heads: int
    layers: int
    frames: int
    side: int
    mode: str
    checkpointing: bool = False
    objective: str = ""
    batch: int = 1

    def model(self) -> Model:
        """Its transformer."""
        width = self.heads * SIZES["attention_head_dim"]
        sizes = {"num_attention_heads": self.heads, "num_layers": self.layers, "ffn_dim": 4 * width}
        return Model("wan", SIZES | sizes)

    def config(self) -> FinetuneConfig:
        """Its recipe."""
        return FinetuneConfig(
            backbone="wan", width=self.side, height=self.side, frames=self.frames,
            objectives=[self.objective] if self.objective else [],
            tune=TuneConfig(mode=self.mode, rank=16, alpha=16),
            trainer=TrainerConfig(batch=self.batch, checkpointing=self.checkpointing),
        )  # fmt: skip


CASES = (
    Case(name="full", heads=8, layers=6, frames=17, side=256, mode="full"),
    Case(name="full, checkpointed", heads=8, layers=12, frames=17, side=256, mode="full", checkpointing=True),
    Case(name="LoRA", heads=12, layers=6, frames=17, side=256, mode="lora", batch=2),
    Case(name="LoRA, checkpointed", heads=12, layers=8, frames=33, side=256, mode="lora", checkpointing=True),
    Case(
        name="LoRA, drift, checkpointed", heads=8, layers=8, frames=33, side=320, mode="lora",
        checkpointing=True, objective="drift weight=0.4 lag=2",
    ),
    Case(
        name="LoRA, TSA, checkpointed", heads=8, layers=8, frames=33, side=256, mode="lora",
        checkpointing=True, objective="tsa weight=0.5 block=4 hidden=512",
    ),
)  # fmt: skip


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process's memory by /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) * 1024


def measure(case: Case) -> dict[str, float]:
    """Peak memory and processor seconds of a step, of one that is not the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = case.config()
    _one_step(config, Case(**{**vars(case), "layers": 1}).model())  # libraries load their own memory
    base = resident()
    step = _make_step(config, case.model())
    step()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the largest resident memory
    times = []
    for _ in range(3):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return {"peak": resident("VmHWM") - base, "seconds": min(times)}


def _one_step(config: FinetuneConfig, model: Model) -> None:
    _make_step(config, model)()


def _make_step(config: FinetuneConfig, model: Model) -> Callable[[], None]:
    """A function that takes one step of a real model with random weights."""
    with torch.device("meta"):
        student, backbone = build_student(config, model, model.layers)
    student.to_empty(device="cpu")
    with torch.no_grad():
        for value in [*student.parameters(), *student.buffers()]:
            if value.is_floating_point():
                value.uniform_(-0.02, 0.02)
    backbone.device = torch.device("cpu")
    optimizer = make_optimizer(
        [ParameterGroup(parameters=list(trainable(student).values()), learning_rate=1e-4)], config.trainer
    )

    def step() -> None:
        batch = some_batch(config, backbone, student)
        losses = student(batch, backbone.sample_t(len(batch.names)), torch.randn_like(batch.latent))
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def speeds() -> tuple[float, float]:
    """Operations a second of this processor in a matrix product, and bytes a second in an addition."""
    torch.set_num_threads(1)
    a, layer = torch.rand(1024, 512), nn.Linear(512, 2048)
    product = 2 * 1024 * 512 * 2048 / _best(lambda: layer(a))
    b, c = torch.rand(4 * MIB), torch.rand(4 * MIB)
    return product, 3 * 4 * 4 * MIB / _best(lambda: b + c)


@torch.no_grad()
def _best(work: Callable[[], Any], repeats: int = 20) -> float:
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def measured(case: Case) -> dict[str, float]:
    """`measure` in a process of its own."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"{__package__}.plan", "--measure", case.name]
    found = subprocess.run(
        command, env={**os.environ, **settings}, check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def planned(case: Case) -> StepCount:
    """The plan's count: of two shallow transformers, as for a large one."""
    return count_step(case.config(), case.model(), on_gpu=False)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", help="measure one run in this process and print it as JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(next(case for case in CASES if case.name == args.measure))))
        return
    speed, bandwidth = speeds()
    print(f"Matrix products {speed / 1e9:.0f} GFLOP/s, additions {bandwidth / 1e9:.1f} GB/s, one thread.\n")
    print("| run | peak, measured | planned | off | seconds, measured | planned | off |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        plan, found = planned(case), measured(case)
        seconds = (plan.work + plan.update).seconds(speed, bandwidth)
        cells = [
            case.name,
            f"{found['peak'] / MIB:.0f} MiB", f"{plan.peak / MIB:.0f} MiB",
            f"{plan.peak / found['peak'] - 1:+.0%}",
            f"{found['seconds']:.2f}", f"{seconds:.2f}", f"{seconds / found['seconds'] - 1:+.0%}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
